"""Room on the disk for a run: refused before it begins where it can't be enough, explained where it ran out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from alpaca.errors import AlpacaError, DiskFull
from alpaca.files import free_space, ran_out

BYTES_PER_PARAMETER = 12  # of a checkpoint: a weight and AdamW's two moments in fp32
CHECKPOINTS = 3  # two are kept while the next one is written
BESIDES = 20_000_000  # records, report, and the tokens of the rows


def needed(parameters: int) -> int:
    """The most bytes that a run with that many trainable `parameters` writes: checkpoints and the result."""
    return parameters * (BYTES_PER_PARAMETER * CHECKPOINTS + 4) + BESIDES


def check_room(folder: Path, parameters: int, *, noun: str, smaller: str, resumes: bool) -> str:
    """What the run writes into `folder` and what is free there. Raises DiskFull where that can't be enough.

    `noun`: what comes out. `smaller`: what makes its files smaller, for the end of a sentence.
    """
    wanted, free, what = needed(parameters), free_space(folder), f"checkpoints and the {noun}"
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if resumes else 0
    if wanted > free + there:
        raise DiskFull(
            f"{folder}: the run writes up to {wanted / 1e9:.2f} GB ({what}), and {free / 1e9:.2f} "
            f"GB are free there. Make room, choose another --output_dir, or {smaller}"
        )
    return f"{what} take up to {wanted / 1e9:.2f} GB of {free / 1e9:.1f} GB free in {folder}"


@contextlib.contextmanager
def explain_disk(folder: Path) -> Iterator[None]:
    """Raise DiskFull for whatever fails inside because the disk is full; the libraries say it in many ways."""
    try:
        yield
    except AlpacaError:
        raise
    except Exception as error:
        if not ran_out(error, folder):
            raise
        raise DiskFull(
            f"{folder}: the disk is full ({free_space(folder) / 1e6:.1f} MB free). Make room and train again with "
            "--resume_from_checkpoint auto: the run resumes from its last checkpoint"
        ) from error
