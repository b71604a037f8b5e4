"""The command as a process of its own, which can be killed, and speakers that play a good model."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.conftest import ROOT
from tests.synthesis.misbehaving import Asked, last_text

COMMAND = [sys.executable, "-m", "alpaca.synthesis"]
WORDS = [
    "bridge",
    "river",
    "garden",
    "lantern",
    "winter",
    "violin",
    "market",
    "pepper",
    "harbour",
    "window",
    "orchard",
    "thunder",
    "pencil",
    "blanket",
    "mountain",
    "kettle",
    "ladder",
    "compass",
    "feather",
    "candle",
    "island",
    "meadow",
    "rocket",
    "teapot",
    "wagon",
    "saddle",
    "anchor",
    "basket",
    "canyon",
    "dragon",
]


def start(*options: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [*COMMAND, *options], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def kill_at(rows: int, output: Path, *options: str) -> None:
    """Start the command, and kill it once there are so many lines in `output`."""
    process = start(*options)
    deadline = time.monotonic() + 120
    while not output.exists() or output.read_bytes().count(b"\n") < rows:
        assert process.poll() is None and time.monotonic() < deadline, process.stdout and process.stdout.read()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def card_of(path: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads(path.with_name(f"{path.stem}.card.json").read_text(encoding="utf-8"))
    return card


def thinker(asked: Asked) -> str:
    """As many tasks as are asked for, other ones for every request, the same for the same."""
    numbers = re.findall(r"\d+", last_text(asked).rpartition("Write task")[2])
    first, last = int(numbers[0]), int(numbers[-1])
    return "\n\n".join(_task(json.dumps(asked, sort_keys=True), number) for number in range(first, last + 1))


def _task(said: str, number: int) -> str:
    digest = hashlib.sha256(f"{said}{number}".encode()).digest()
    words = [WORDS[byte % len(WORDS)] for byte in digest[:9]]
    answer = f"It is a {words[0]} by a {words[1]}."
    return f"Task {number}\nInstruction: Describe {' '.join(words)}.\nInput: none\nOutput: {answer}"


def interpreter(asked: Asked) -> str:
    """A Chinese text that keeps what must be kept."""
    text = re.search(r"<text>\n(.*)\n</text>", last_text(asked), re.DOTALL)
    assert text is not None
    kept = re.findall(r"⟦\d+⟧|`[^`]+`|https?://\S+\w|\{\w+\}|\d+(?:[.,]\d+)*", text[1])
    letters = "".join(chr(0x4E00 + byte) for byte in hashlib.sha256(text[1].encode()).digest()[: 4 + len(text[1]) // 8])
    return f"这是译文{letters}：{' '.join(kept)}。"
