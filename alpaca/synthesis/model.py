"""The model that makes rows: on a server, or in this process."""

from __future__ import annotations

from typing import Any, Protocol

from alpaca.synthesis.question import Question, Reply


class Model(Protocol):
    """Answers many questions at once. `name` is part of every question's key; `is_small`: it is known to have too few
    parameters to write good rows."""

    name: str

    @property
    def is_small(self) -> bool: ...

    async def ask(self, question: Question) -> Reply:
        """Raises QuestionFailed where this one has no answer, ModelRefused where no other would have one either."""
        ...

    def described(self) -> dict[str, Any]:
        """For the card: what it is and where."""
        ...

    async def close(self) -> None: ...
