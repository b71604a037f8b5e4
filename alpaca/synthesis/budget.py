"""What may be spent: tokens, and money by the provider's prices. It is kept, not merely noticed when it is passed.

Before a question is asked, the most that it can take is set aside: its prompt, and an answer as long as it may be.
"""

from __future__ import annotations

from dataclasses import dataclass

from alpaca.errors import BadSetting, LimitReached
from alpaca.synthesis.question import Question, Reply

MILLION = 1_000_000
FIRST_GUESS = 0.5  # tokens per byte of a prompt, before a server has counted any: English has 0.25, other scripts more


@dataclass(frozen=True, slots=True)
class Limits:
    """`price_in` and `price_out`: what a million tokens of questions and of answers cost; `max_cost` is in the same
    currency. None is no limit. Raises BadSetting for a limit that can't be kept."""

    max_tokens_total: int | None = None
    max_cost: float | None = None
    price_in: float = 0.0
    price_out: float = 0.0

    def __post_init__(self) -> None:
        for name in ("max_tokens_total", "max_cost"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise BadSetting(f"--{name} is {value}: it must be more than 0")
        for name in ("price_in", "price_out"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise BadSetting(f"--{name} is {getattr(self, name)}: a price is 0 or more")
        if self.max_cost is not None and not self.price_in + self.price_out:
            raise BadSetting("--max_cost needs the prices of a million tokens: give --price_in and --price_out")

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        """What so many tokens cost."""
        return (tokens_in * self.price_in + tokens_out * self.price_out) / MILLION


class Budget:
    """What was spent, and what is set aside for questions that are being asked."""

    def __init__(self, limits: Limits, tokens_in: int = 0, tokens_out: int = 0) -> None:
        """`tokens_in`, `tokens_out`: what earlier runs of the same work took."""
        self.limits = limits
        self.tokens_in, self.tokens_out = tokens_in, tokens_out
        self._aside_in = self._aside_out = 0
        self._per_byte = 0.0  # the most that was counted so far

    def set_aside(self, question: Question) -> int:
        """The tokens set aside for its prompt. Raises LimitReached where the question could go past a limit."""
        prompt = int(question.size * (self._per_byte or FIRST_GUESS)) + 16 * len(question.messages)
        tokens_in = self.tokens_in + self._aside_in + prompt
        tokens_out = self.tokens_out + self._aside_out + question.max_tokens
        limits = self.limits
        if limits.max_tokens_total is not None and tokens_in + tokens_out > limits.max_tokens_total:
            raise LimitReached(
                f"{self.tokens_in + self.tokens_out:,} tokens are spent, and the next question could go past "
                f"--max_tokens_total {limits.max_tokens_total:,}"
            )
        if limits.max_cost is not None and limits.cost(tokens_in, tokens_out) > limits.max_cost:
            raise LimitReached(
                f"{self.cost:.4f} is spent, and the next question could go past --max_cost {limits.max_cost:g}"
            )
        self._aside_in += prompt
        self._aside_out += question.max_tokens
        return prompt

    def settle(self, question: Question, aside: int, reply: Reply | None) -> None:
        """Count what the answer took in place of what was set aside; None: there was no answer."""
        self._aside_in -= aside
        self._aside_out -= question.max_tokens
        if reply is None:
            return
        self.tokens_in += reply.tokens_in
        self.tokens_out += reply.tokens_out
        if question.size and reply.tokens_in:
            self._per_byte = max(self._per_byte, reply.tokens_in / question.size)

    @property
    def cost(self) -> float:
        return self.limits.cost(self.tokens_in, self.tokens_out)

    def spent(self) -> str:
        """For people."""
        money = f", {self.cost:.4f} spent" if self.limits.price_in or self.limits.price_out else ""
        return f"{self.tokens_in:,} + {self.tokens_out:,} tokens{money}"
