"""What a worker says and hears: JSON, a line each, on the output and input that it was started with.

It runs in a rival's own environment, so it imports nothing but the standard library. First the worker says what it is
(`Ready`), then it answers one question (`Question`) after another (`Reply`) until its input ends.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import TypedDict


class Ready(TypedDict):
    version: str
    """Name and version, for the table."""


class Question(TypedDict):
    texts: list[str]
    """All are asked at once; our engine takes these."""
    prompts: list[list[int]]
    """The same as token ids of the base's chat template; rivals take these."""
    adapters: list[str | None]
    """For each prompt the folder of an adapter, or None for the base alone."""
    tokens: int
    """Length of every answer: greedy, and no end token ends it."""


class Reply(TypedDict):
    seconds: float
    texts: list[str]


Ask = Callable[[Question], list[str]]


def work(open_rival: Callable[[dict[str, str]], tuple[Ready, Ask]]) -> None:
    """Open the rival with the settings in the first argument and answer until the input ends.

    Whatever its libraries print goes to the error output: the output belongs to the replies.
    """
    replies = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    ready, ask = open_rival(json.loads(sys.argv[1]))
    print(json.dumps(ready), file=replies)
    for line in sys.stdin:
        question: Question = json.loads(line)
        started = time.perf_counter()
        texts = ask(question)
        reply = Reply(seconds=time.perf_counter() - started, texts=texts)
        print(json.dumps(reply), file=replies)
