"""A base in this process as the model, many answers at a time."""

from __future__ import annotations

from typing import Any

from alpaca.errors import BadRequest, GenerationFailed, QuestionFailed
from alpaca.progress import Say
from alpaca.synthesis.question import Question, Reply

SMALL = 3_000_000_000  # parameters; below, most of what a base writes is of no use


class EngineModel:
    """The base `base_model` (a folder, a name in weights/ or a hub id) behind the project's engine."""

    def __init__(self, base_model: str | None, at_once: int, precision: str = "auto", *, say: Say) -> None:
        """Raises the errors of alpaca.base, and NoRoom."""
        from alpaca.base.headers import count_weights, fingerprint
        from alpaca.serving.limits import EngineLimits
        from alpaca.serving.loading import load_base, open_engine

        base = load_base(base_model, precision, say=say)
        self._engine = open_engine(base, limits=EngineLimits(concurrency=at_once), say=say)
        self.name = base.folder.name
        self._print = fingerprint(base.folder)
        size = count_weights(base.folder)
        self.is_small = size < SMALL
        if self.is_small:
            say(
                f"model: {self.name} has {size / 1e6:,.0f} million parameters, too few to write good rows: use them to "
                "try the way, not to train on. For rows that teach something, ask a larger model with --url"
            )

    async def ask(self, question: Question) -> Reply:
        from alpaca.serving.inputs import request_from_inputs
        from alpaca.serving.stream import FinishReason

        given = {"temperature": question.temperature, "top_p": question.top_p}
        settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        try:
            request = request_from_inputs(
                messages=question.as_messages(), max_tokens=question.max_tokens, seed=question.seed, **settings
            )
            with self._engine.submit(request) as stream:
                chunks = [chunk async for chunk in stream]
        except (BadRequest, GenerationFailed) as error:
            raise QuestionFailed(f"{self.name}: {error.message}") from None
        usage = chunks[-1].usage
        assert usage is not None, "the last chunk of an answer has its usage"
        text = "".join(chunk.text for chunk in chunks).strip()
        return Reply(text, chunks[-1].finish is FinishReason.STOP, usage.input_tokens, usage.output_tokens)

    def described(self) -> dict[str, Any]:
        return {"name": self.name, "fingerprint": self._print, "server": None}

    async def close(self) -> None:
        self._engine.close()
