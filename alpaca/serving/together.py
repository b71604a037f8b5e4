"""Many requests to an engine at once, and all their answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alpaca.errors import AlpacaError
from alpaca.serving.request import GenerationRequest
from alpaca.serving.stream import FinishReason, Stream, Usage

if TYPE_CHECKING:
    from alpaca.serving.engine import Engine


@dataclass(frozen=True)
class Answer:
    """The whole text of an answer, why it ended and what it took; the last two are None where it was not asked for."""

    text: str
    finish: FinishReason | None = None
    usage: Usage | None = None


def answers(
    engine: Engine,
    requests: Sequence[GenerationRequest],
    *,
    done: Callable[[int], object] = lambda count: None,
    unanswered: tuple[type[AlpacaError], ...] = (),
) -> list[Answer]:
    """Submit all, then read all: as many answers are made at once as the engine has room for.

    Each request is for one answer. `done` is told of each that has come. A request that is refused with one of
    `unanswered` has an empty answer; any other error is raised.
    """
    streams = [_submit(engine, request, unanswered) for request in requests]
    found = []
    for stream in streams:
        found.append(_read(stream) if stream is not None else Answer(""))
        done(1)
    return found


def _submit(engine: Engine, request: GenerationRequest, unanswered: tuple[type[AlpacaError], ...]) -> Stream | None:
    try:
        return engine.submit(request)
    except unanswered:
        return None


def _read(stream: Stream) -> Answer:
    chunks = list(stream)
    return Answer("".join(chunk.text for chunk in chunks).strip(), chunks[-1].finish, chunks[-1].usage)
