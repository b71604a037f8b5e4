"""What a model is asked, and what it answered."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Question:
    """A conversation that awaits the assistant's next text, and how it is to be sampled. None leaves it to the model's
    own setting."""

    messages: tuple[tuple[str, str], ...]
    """(role, text)."""
    max_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    seed: int = 0

    def key(self, model: str) -> str:
        """A hash of all that the answer depends on: who asks the same of the same model again has its answer already.

        Where the model is asked does not matter.
        """
        said = json.dumps([model, asdict(self)], sort_keys=True)
        return hashlib.blake2b(said.encode("ascii"), digest_size=16).hexdigest()

    def as_messages(self) -> list[dict[str, str]]:
        """As OpenAI's clients write it."""
        return [{"role": role, "content": text} for role, text in self.messages]

    @property
    def size(self) -> int:
        """Bytes of UTF-8 of its texts."""
        return sum(len(text.encode("utf-8", "replace")) for _, text in self.messages)


@dataclass(frozen=True, slots=True)
class Reply:
    """`whole`: the model ended it by itself; else it ran into max_tokens."""

    text: str
    whole: bool
    tokens_in: int
    tokens_out: int
