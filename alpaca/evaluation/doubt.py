"""The answers of a report against their references: what a program can check of them, the most doubtful first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from alpaca.evaluation.claims import Claims, Comparison, Lexicon, compare
from alpaca.evaluation.results import Facts, Measured, Sample, Tally
from alpaca.prompts.example import Example

WORD_MARKS = ("Ġ", "▁")  # how tokenizers spell the space before a word


def lexicon_of(tokenizer: Any, rows: Iterable[Example]) -> Lexicon:
    """The words that rows and the tokenizer know in small letters."""
    small = (token[1:] for token in tokenizer.get_vocab() if token.startswith(WORD_MARKS) and token[1:].islower())
    return Lexicon((text for row in rows for turn in row.turns for text in turn.written), small)


def checked(measured: Measured, lexicon: Lexicon) -> Measured:
    """The same with each sample compared, the most doubtful one first, and with what the comparisons come to."""
    compared: list[tuple[Sample, Comparison, Comparison, int]] = []
    for sample in measured.samples:
        reference, question = lexicon.claims(sample.reference), lexicon.claims(sample.prompt)
        base, adapter = lexicon.claims(sample.base), lexicon.claims(sample.adapter)
        found = compare(adapter, reference, question)
        own = _said_by(base, adapter, {*found.invented, *found.contradicted})
        compared.append((replace(sample, differs=found), found, compare(base, reference, question), own))
    compared.sort(key=lambda item: -item[1].doubt)
    if not compared:
        return measured
    facts = Facts(
        answers=len(compared),
        checked=sum(bool(found.kept or found.missing) for _, found, _, _ in compared),
        base=_tally(base for _, _, base, _ in compared),
        adapter=_tally(adapter for _, adapter, _, _ in compared),
        from_base=sum(own for *_, own in compared),
    )
    return replace(measured, samples=[sample for sample, *_ in compared], facts=facts)


def _said_by(base: Claims, adapter: Claims, shown: set[str]) -> int:
    """How many of the adapter's claims that are `shown` the base's answer makes as well."""
    numbers = sum(a.shown in shown and any(a.agrees(b) for b in base.numbers) for a in adapter.numbers)
    return numbers + sum(a.shown in shown and any(a.agrees(b) for b in base.names) for a in adapter.names)


def _tally(comparisons: Iterable[Comparison]) -> Tally:
    found = list(comparisons)
    return Tally(*(sum(len(getattr(one, name)) for one in found)
                   for name in ("kept", "missing", "invented", "contradicted")))  # fmt: skip
