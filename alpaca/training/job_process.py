"""A training job in a process of its own: whatever happens to it, the server stays up.

Its memory is free again when it ends. Where memory runs out, the system ends it and not the server. A cancellation ends
it at once, wherever it is. It lives no longer than the server: it reads a pipe that the server holds open.

    python -m alpaca.training.job_process WORK      settings as a line of JSON on stdin, the log on stdout
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from alpaca import errors
from alpaca.errors import AlpacaError, TrainingBusy, TrainingError, TrainingKilled
from alpaca.files import written_aside
from alpaca.training.job_inputs import ADAPTER, ANCESTOR, OUTPUT_DIR, prepare, secrets

RESULT = "result.json"
ENDING_SECONDS = 5.0  # Cog takes the next job when a cancelled one is still about to end
_one_at_a_time = threading.Lock()


# --- the server's side --------------------------------------------------------------------------------------------
async def train_apart(inputs: dict[str, Any]) -> Path:
    """Run the job and return its archive; what it says is printed. Raises AlpacaError, TrainingBusy among them.

    Without OUTPUT_DIR the archive stays until the next job, because Cog reads it after this has returned, and whatever
    else was written is gone, also when the job is cancelled.
    """
    values, hidden = prepare(inputs), secrets(inputs)
    await _turn()
    work = Path(tempfile.gettempdir()) / f"alpaca-job-{os.getpid()}"
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(mode=0o700)
        status = await _run(values, hidden, work)
        return _outcome(work, status)
    finally:
        for left in (ADAPTER, ANCESTOR):
            shutil.rmtree(work / left, ignore_errors=True)
        _one_at_a_time.release()


async def _turn() -> None:
    """Until no other job runs here. One that was just cancelled is waited for; any other raises TrainingBusy."""
    deadline = time.monotonic() + ENDING_SECONDS
    while not _one_at_a_time.acquire(blocking=False):
        if time.monotonic() > deadline:
            raise TrainingBusy("this server trains one adapter at a time and is busy; ask again later")
        await asyncio.sleep(0.05)


async def _run(values: dict[str, Any], hidden: dict[str, str], work: Path) -> int:
    """The exit status of the process, below zero where a signal ended it; its output is printed as it comes."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "alpaca.training.job_process", str(work),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, **hidden, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps(values).encode() + b"\n")
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        while chunk := await process.stdout.read(1 << 16):
            print(decoder.decode(chunk), end="", flush=True)
        return await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _outcome(work: Path, status: int) -> Path:
    """What the process left: its archive, or the error it met, raised again."""
    try:
        result = json.loads((work / RESULT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        result = {}
    if "archive" in result:
        return Path(result["archive"])
    if "error" in result:
        raise getattr(errors, result["error"])(result["message"])
    kept = "What it had saved is kept: repeat the request, and it resumes from there"
    lost = f"Nothing of it is kept; the variable {OUTPUT_DIR} would keep its checkpoints"
    again = kept if os.environ.get(OUTPUT_DIR, "").strip() else lost
    if status < 0:
        memory = (
            ", which mostly means that memory ran out: lower micro_batch_tokens or cutoff_len" if status == -9 else ""
        )
        raise TrainingKilled(f"the training was ended by signal {-status}{memory}. {again}")
    raise TrainingError(f"the training ended with status {status}; its log says why. {again}")


# --- the process --------------------------------------------------------------------------------------------------
def main() -> None:
    """Run one job. An error that is the user's goes into the result; a bug ends with its traceback and status 1."""
    work = Path(sys.argv[1])
    values = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    with contextlib.suppress(OSError):  # where memory runs out, this process goes and not the server
        Path("/proc/self/oom_score_adj").write_text("1000")
    from alpaca.training.job import run_job  # here, because the server has no use for torch

    try:
        result = {"archive": str(run_job(values, work))}
    except AlpacaError as error:
        result = {"error": type(error).__name__, "message": error.message}
    with written_aside(work / RESULT) as aside:
        aside.write_text(json.dumps(result), encoding="utf-8")


def _end_with_the_server() -> None:
    while os.read(0, 1 << 16):  # empty when the server has closed its end, or is gone; no lock that outlives the job
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
