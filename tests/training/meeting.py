"""Run by torchrun: two processes that meet, tell each other things, and refuse plans that differ."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from alpaca.errors import BadSetting, DataNotFound, TrainingBusy
from alpaca.training import peers

RANK = int(os.environ["RANK"])


def only_main() -> str:
    assert RANK == 0
    return "found by process 0"


def busy() -> str:
    raise TrainingBusy("another run writes there")


def rows() -> str:
    if RANK == 1:
        raise DataNotFound("rows.jsonl is not there")
    return "rows"


def check_what_is_told() -> None:
    assert peers.everyone(RANK) == [0, 1]
    assert peers.from_main(only_main) == "found by process 0"
    with pytest.raises(TrainingBusy, match="another run writes there"):
        peers.from_main(busy)


def check_plans() -> None:
    assert peers.alike(lambda: "plan", lambda plan: {"rows": plan}) == "plan"
    with pytest.raises(DataNotFound, match=r"rows\.jsonl is not there" if RANK else r"process 1 on .*: rows\.jsonl"):
        peers.alike(rows, lambda plan: {"rows": plan})
    with pytest.raises(BadSetting, match=r"process 0 on .* and process 1 on .* plan .*\(rows: 0 and 1\)\. Give every"):
        peers.alike(lambda: str(RANK), lambda plan: {"base": "same", "rows": plan})


def check_checkpoints(folder: Path) -> None:
    """One that only process 0 has is copied whole; one that both have is read where it is; another run's is not."""
    mine = folder / str(RANK) / "checkpoint-3"
    content = {"trainer_state.json": b"{}", "optimizer.pt": os.urandom(2 * peers.CHUNK + 7), "empty": b""}
    if RANK == 0:
        mine.mkdir(parents=True)
        for name, written in content.items():
            (mine / name).write_bytes(written)
    elsewhere = folder / "0" / "checkpoint-3" if RANK == 0 else mine
    content = peers.from_main(lambda: content)
    for written_before in (None, b"{ }"):
        if RANK == 1 and written_before is not None:  # what an earlier run left on this machine
            mine.mkdir(parents=True)
            for name, written in content.items():
                (mine / name).write_bytes(written_before if name == "trainer_state.json" else written)
        with peers.at_hand(elsewhere) as here:
            assert here is not None and (here == elsewhere) is (RANK == 0)
            assert {path.name: path.read_bytes() for path in here.iterdir()} == content
        assert here.exists() is (RANK == 0)
    with peers.at_hand(folder / "0" / "checkpoint-3") as here:
        assert here == folder / "0" / "checkpoint-3"


if __name__ == "__main__":
    peers.meet(print if RANK == 0 else lambda line: None)
    check_what_is_told()
    check_plans()
    check_checkpoints(Path(sys.argv[1]))
    if all(peers.everyone(True)) and RANK == 0:
        print("both agree")
