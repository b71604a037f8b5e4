"""The processes that train together, on one machine or several: they meet before anything else, must plan the same run,
and end with a plain line when one of them is lost. How they exchange gradients is torch's affair.

Process 0 alone reads and writes the output folder, so the machines need no disk in common: what it finds there is told
to the others, and a checkpoint to resume from is sent to those that lack it.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from alpaca.device import pick_device
from alpaca.errors import AlpacaError, BadSetting, PeerLost
from alpaca.progress import Say, is_main_process, processes
from alpaca.training.checkpoints import STATE, checkpoints_in, latest_run
from alpaca.words import clock, joined, tagged

LOST_AFTER = timedelta(minutes=10)  # without a word of a process; one that was killed is known to be gone at once
BEAT = 2.0  # seconds between two signs of a process that others wait for
CHUNK = 16 << 20  # bytes of a checkpoint that are sent at a time

T = TypeVar("T")


def meet(say: Say) -> None:
    """Find the other processes and say where they are. Raises PeerLost where they don't come."""
    import torch
    import torch.distributed as dist

    if processes() == 1:
        return
    device = pick_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=LOST_AFTER)
    machines = Counter(everyone((os.environ.get("GROUP_RANK", "0"), socket.gethostname())))
    where = joined([f"{count} on {host}" for (_, host), count in machines.items()])
    patience = f"one that is not heard of for {clock(LOST_AFTER.seconds)} is lost"
    say(tagged("processes", f"{processes()}: {where}; {patience}"))


def everyone(mine: T) -> list[T]:
    """What each process has, by its number."""
    import torch.distributed as dist

    found: list[Any] = [None] * processes()
    dist.all_gather_object(found, mine)
    return found


@contextlib.contextmanager
def keeping_touch() -> Iterator[None]:
    """Inside, one process may work for hours while others wait at the end: each tells all the others meanwhile that it
    is still there. Nothing else may be exchanged inside."""
    import torch
    import torch.distributed as dist

    if processes() == 1:
        yield
        return
    done, failed = threading.Event(), []

    def beat() -> None:
        try:
            while True:
                working = torch.tensor([not done.is_set()], dtype=torch.int32)
                dist.all_reduce(working)
                if not working.item():
                    return
                done.wait(BEAT)
        except RuntimeError as error:
            failed.append(error)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
    thread.join()
    if failed:
        raise failed[0]


def from_main(make: Callable[[], T]) -> T:
    """What process 0 makes, given to all of them. Where it raises an AlpacaError, all do."""
    import torch.distributed as dist

    if processes() == 1:
        return make()
    outcome: list[Any] = [None, None]
    with keeping_touch():
        if is_main_process():
            try:
                outcome = [make(), None]
            except AlpacaError as error:
                outcome = [None, error]
    dist.broadcast_object_list(outcome)
    made, refused = outcome
    if refused is not None:
        raise refused
    return made


def alike(make: Callable[[], T], describe: Callable[[T], dict[str, Any]]) -> T:
    """What every process makes for itself, and what must come out the same. Raises the AlpacaError of any of them, and
    BadSetting, naming what differs."""
    if processes() == 1:
        return make()
    made, refused = None, None
    with keeping_touch():
        try:
            made = make()
        except AlpacaError as error:
            refused = error
    told = everyone((socket.gethostname(), refused, describe(made) if made is not None else {}))
    if refused is not None:
        raise refused
    for number, (host, theirs, _) in enumerate(told):
        if theirs is not None:
            raise type(theirs)(f"process {number} on {host}: {theirs.message}")
    assert made is not None
    _check_alike([description for _, _, description in told], [host for host, _, _ in told])
    return made


def _check_alike(descriptions: list[dict[str, Any]], hosts: list[str]) -> None:
    first = descriptions[0]
    for number, description in enumerate(descriptions):
        differing = [name for name in first if description.get(name) != first[name]]
        if differing:
            values = "; ".join(f"{name}: {first[name]!s:.40} and {description.get(name)!s:.40}" for name in differing)
            raise BadSetting(
                f"process 0 on {hosts[0]} and process {number} on {hosts[number]} plan different runs ({values}). Give "
                "every machine the same rows, base, settings and packages"
            )


# --- a process that is lost ---------------------------------------------------------------------------------------
@contextlib.contextmanager
def explain_lost(output: Path) -> Iterator[None]:
    """Raise PeerLost for what fails inside because another process can't be reached; the libraries say it at length."""
    try:
        yield
    except RuntimeError as error:
        if processes() == 1 or not (reason := _of_the_network(error)):
            raise
        kept = checkpoints_in(latest_run(output)) if is_main_process() else []
        last = f" (the last checkpoint: {kept[-1]})" if kept else ""
        raise PeerLost(
            f"process {os.environ.get('RANK', '0')} on {socket.gethostname()} has lost the others ({reason}): one of "
            "them was ended, or its machine or the network is gone; its own log may say why. Start them all again "
            f"with --resume_from_checkpoint auto{last}"
        ) from None


def _of_the_network(error: RuntimeError) -> str:
    """The library's reason in a few words where an error is one of the exchange between processes, else nothing."""
    import torch.distributed as dist

    text = str(error)
    if not isinstance(error, dist.DistError) and not re.search(r"gloo|nccl|Connection (closed|reset)", text, re.I):
        return ""
    plain = re.sub(r"^\[[^\]]*\.cc:\d+\]\s*", "", text.strip().splitlines()[0])
    return plain.split(". This is typically")[0][:160]


# --- a checkpoint that only process 0 has -------------------------------------------------------------------------
@contextlib.contextmanager
def at_hand(checkpoint: Path | None) -> Iterator[Path | None]:
    """Where this process can read `checkpoint`, which process 0 has: that folder, or, where it is not there or is
    another run's, a copy that is removed afterwards."""
    if checkpoint is None or processes() == 1:
        yield checkpoint
        return
    files, state = from_main(lambda: _contents(checkpoint))
    there = checkpoint.is_dir() and _contents(checkpoint) == (files, state)
    if all(everyone(there)):
        yield checkpoint
        return
    with tempfile.TemporaryDirectory(prefix="alpaca-checkpoint-") as folder:
        copy = Path(folder) / checkpoint.name
        for name, size in files.items():
            _send(checkpoint / name, size, None if there else copy / name)
        yield checkpoint if there else copy


def _contents(checkpoint: Path) -> tuple[dict[str, int], bytes]:
    """(size of each file by name, the trainer's state, which tells two runs' checkpoints apart by times and losses)."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    state = checkpoint / STATE
    sizes = {str(path.relative_to(checkpoint)): path.stat().st_size for path in files}
    return sizes, state.read_bytes() if state.is_file() else b""


def _send(source: Path, size: int, target: Path | None) -> None:
    """Send a file of process 0, `size` bytes, to the processes that have a `target`."""
    import torch
    import torch.distributed as dist

    with contextlib.ExitStack() as stack:
        read = stack.enter_context(source.open("rb")) if is_main_process() else None
        if target is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
        write = stack.enter_context(target.open("wb")) if target is not None else None
        for begin in range(0, size, CHUNK):
            count = min(CHUNK, size - begin)
            block = torch.empty(count, dtype=torch.uint8)
            if read is not None:
                block = torch.frombuffer(bytearray(read.read(count)), dtype=torch.uint8)
            dist.broadcast(block, src=0)
            if write is not None:
                write.write(block.numpy().tobytes())
