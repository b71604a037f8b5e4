"""What a server says of itself, and of the prompt that it would send: JSON for programs such as the gateway.

It is asked as a prediction is (`answer_with`), because Cog's server takes no further routes: so it also works from
another machine, and a client needs no sight of the server's folders.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

MOST_LISTED = 200  # adapters: each is verified and hashed at its first look


@dataclass(frozen=True)
class Named:
    """An adapter that requests may name."""

    name: str
    digest: str
    """32 hex digits over its files; empty for an archive that nobody has asked for yet."""
    template: str
    """The one it was trained with; empty without a card."""
    created: int
    """Seconds since 1970."""
    beside: tuple[str, ...] = ()
    """The adapters that it was trained beside: it is meant to be asked together with them."""


@dataclass(frozen=True)
class Description:
    """Who answers here, under which names, and how many at a time."""

    base: str
    fingerprint: str
    template: str
    """For requests whose adapter brings none."""
    answers: int
    """Made at the same time; more wait."""
    context: int
    """Tokens of prompt and answer together."""
    default: Named | None
    """The adapter of requests that name none."""
    adapters: tuple[Named, ...]

    def json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)


@dataclass(frozen=True)
class Rendered:
    """What the model would see of a request."""

    prompt: str
    tokens: int

    def json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)
