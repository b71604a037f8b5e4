"""How well the base knows the language of the rows, measured before it is trained on them.

Loss per token can't be compared between languages: a tokenizer cuts a language that it hardly knows into many small
pieces, each of which is easy. Loss per byte of the text can, and so the rows' answers are set against general answers
in English, which every base knows best.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from alpaca.data.general import SHIPPED
from alpaca.data.languages import UNCLEAR, language_of, languages_of
from alpaca.data.reader import read_examples
from alpaca.evaluation.history import ENGLISH, Familiarity
from alpaca.packed.batch import label_count
from alpaca.packed.taught import without_adapter
from alpaca.progress import Say
from alpaca.prompts.encode import Encoded
from alpaca.prompts.example import Example
from alpaca.training.plan import Plan, validation_packs
from alpaca.training.rows import encode
from alpaca.training.trainer import PackedTrainer
from alpaca.words import tagged

ROWS = 16  # of each: enough to tell a language that is known from one that is not, in a second or two


def measure_familiarity(plan: Plan, trainer: PackedTrainer, say: Say) -> Familiarity | None:
    """Measure rows and English general answers, and say what it means; None where either is missing or has a loss that
    is not finite, which the training itself will find.
    """
    if trainer.is_fsdp_enabled or not SHIPPED.is_file():  # a sharded model is whole only inside training
        return None
    rows = spread(plan.split.train, ROWS)
    english = [row for row in read_examples(str(SHIPPED)).examples if language_of(_answer(row)) == ENGLISH]
    ours, theirs = (_loss_per_byte(plan, trainer, examples) for examples in (rows, spread(english, ROWS)))
    if not ours or not theirs or not math.isfinite(ours + theirs):
        return None
    found = Familiarity(round(ours, 4), round(theirs, 4), _main_language(plan.split.train))
    for line in lines(found):
        say(line)
    return found


def lines(found: Familiarity) -> list[str]:
    """What was measured, and a warning where the base hardly knows the language."""
    name = f" ({found.language})" if found.language else ""
    said = f"your answers{name} surprise the base {found.times:.1f} times as much, byte by byte, as English ones"
    measured = tagged("language", f"{said} ({found.rows:.2f} and {found.english:.2f} per byte)")
    if not found.strange:
        return [measured]
    helps = "The adapter may learn its sound, not to speak it: take a larger base, or one that knows it"
    return [measured, tagged("warning", f"the base hardly knows {found.language or 'this language'}. {helps}")]


def spread(rows: Sequence[Example], most: int) -> list[Example]:
    """At most `most` rows, from all over the list."""
    step = max(1, len(rows) // most)
    return list(rows[::step][:most])


def _loss_per_byte(plan: Plan, trainer: PackedTrainer, examples: Sequence[Example]) -> float | None:
    encoded = encode(plan.tokenizer, plan.template, list(examples), plan.train.report.cutoff_len, False).examples
    bytes_of_text = sum(_trained_bytes(plan, row) for row in encoded)
    if not bytes_of_text:
        return None
    labels = sum(label_count(row) for row in encoded)
    with without_adapter(trainer.packed):
        loss = trainer.loss_on(encoded, validation_packs(encoded, plan.budget[0]), finite=False)
    return loss * labels / bytes_of_text


def _trained_bytes(plan: Plan, row: Encoded) -> int:
    """Bytes of the text that carries labels; what ends a turn is not text."""
    pieces = [plan.tokenizer.decode(row.input_ids[start:end], skip_special_tokens=True) for start, end in row.trained]
    return sum(len(str(piece).encode()) for piece in pieces)


def _main_language(rows: Sequence[Example]) -> str:
    """The language of most rows, "" where most have none that is known here."""
    numbers = languages_of(spread(rows, 1_000))
    name = max(numbers, key=lambda name: len(numbers[name]), default=UNCLEAR)
    return "" if name == UNCLEAR else name


def _answer(row: Example) -> str:
    return "\n".join(row.turns[-1].written)
