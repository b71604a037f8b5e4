"""Many requests to an engine at once, and all their answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from alpaca.serving.request import GenerationRequest

if TYPE_CHECKING:
    from alpaca.serving.engine import Engine


def answers(engine: Engine, requests: Sequence[GenerationRequest]) -> list[str]:
    """The whole text of every answer; as many are made at once as the engine has slots."""
    streams = [engine.submit(request) for request in requests]
    return ["".join(chunk.text for chunk in stream).strip() for stream in streams]
