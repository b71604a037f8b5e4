"""A request for an answer: every field bounded and checked before any work begins."""

from __future__ import annotations

import math
from dataclasses import dataclass

from alpaca.errors import ConflictingInputs, EmptyPrompt, OutOfRange
from alpaca.prompts.example import Example
from alpaca.prompts.template import MAX_TEXT_CHARS, Template
from alpaca.serving.composition import SCALES, Composition

MAX_STOP_SEQUENCES = 16
MAX_STOP_CHARS = 256

# field → (lowest, highest); whole numbers where both ends are ints
BOUNDS: dict[str, tuple[float, float]] = {
    "max_tokens": (1, 131_072),
    "min_tokens": (-1, 131_072),
    "total_tokens": (1, 131_072),
    "temperature": (0.0, 5.0),
    "top_p": (0.0, 1.0),
    "top_k": (-1, 100_000),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 5.0),
    "presence_penalty": (-5.0, 5.0),
    "frequency_penalty": (-5.0, 5.0),
    "seed": (0, 2**32 - 1),
    "n": (1, 5),
    "adapter_scale": SCALES,
}
OPTIONAL = ("seed", "total_tokens")


@dataclass(frozen=True)
class GenerationRequest:
    """What to answer, and how. Raises EmptyPrompt, OutOfRange or ConflictingInputs when it can't be served."""

    example: Example
    """The prompt side: its last turn has no output and is the one to answer."""
    max_tokens: int = 512
    """The answer ends after this many tokens; less where the context ends earlier."""
    min_tokens: int = 0
    """The model may not end the answer before; 0 or -1: whenever it likes. A stop sequence still ends it."""
    temperature: float = 0.7
    """0 takes the likeliest token always (greedy); higher is more varied."""
    top_p: float = 0.95
    """Draw from the likeliest tokens that together hold this much probability; 1 keeps all."""
    top_k: int = 0
    """Draw from this many likeliest tokens; 0 or -1 keeps all."""
    min_p: float = 0.0
    """Draw from tokens at least this fraction as likely as the likeliest; 0 keeps all."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens of the prompt and of the answer so far less likely (arXiv:1909.05858)."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of every token that the answer already holds."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit as often as the answer holds it."""
    stop_sequences: tuple[str, ...] = ()
    """The answer ends before the first of these; none of them is ever sent."""
    seed: int | None = None
    """The same seed gives the same answer (0 is a seed like any other); None draws one below 2³¹."""
    n: int = 1
    """How many answers."""
    prompt_template: str | Template = ""
    """A template's name, or a text with {prompt} in it; empty takes the adapter's, else the base's. Within this process
    also a template itself: request_from_inputs, which clients' inputs go through, takes texts only."""
    adapter: Composition | None = None
    """The adapters that make the answer together, each at its own strength; None takes the default adapter."""
    adapter_scale: float = 1.0
    """Strength of all adapters, times each one's own: 0 is the base alone, 1 as trained."""
    total_tokens: int | None = None
    """Prompt and answer together may have this many tokens (an older way to say max_tokens)."""

    def __post_init__(self) -> None:
        self._check_text()
        for name in BOUNDS:
            self._check_number(name)
        if self.min_tokens > self.max_tokens:
            raise ConflictingInputs(f"min_tokens {self.min_tokens} is more than max_tokens {self.max_tokens}")
        if len(self.stop_sequences) > MAX_STOP_SEQUENCES:
            raise OutOfRange(f"stop_sequences has {len(self.stop_sequences)} entries; at most {MAX_STOP_SEQUENCES}")
        for text in self.stop_sequences:
            if not isinstance(text, str) or not 1 <= len(text) <= MAX_STOP_CHARS:
                raise OutOfRange(f"stop_sequences: each entry is a text of 1 to {MAX_STOP_CHARS} characters")

    def _check_text(self) -> None:
        turns = self.example.turns
        if not turns or not (turns[-1].instruction.strip() or turns[-1].results):
            raise EmptyPrompt("there is nothing to answer: give a prompt, or messages that end with the user's")
        size = sum(map(len, self.example.texts))
        size += len(self.prompt_template) if isinstance(self.prompt_template, str) else 0
        if size > MAX_TEXT_CHARS:
            raise OutOfRange(f"the request's text has {size:,} characters; at most {MAX_TEXT_CHARS:,}")

    def _check_number(self, name: str) -> None:
        value = getattr(self, name)
        if value is None and name in OPTIONAL:
            return
        low, high = BOUNDS[name]
        whole = isinstance(low, int)
        kinds = (int,) if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise OutOfRange(f"{name} must be a {'whole ' if whole else ''}number, not {value!r}")
        if not math.isfinite(value) or not low <= value <= high:
            raise OutOfRange(f"{name} is {value}: it must be from {low} to {high}")
