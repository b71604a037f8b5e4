"""The part of the page on what was forgotten: the tests that were lost, one by one, then losses on general rows."""

from __future__ import annotations

from alpaca.evaluation.findings import Findings
from alpaca.evaluation.markup import concat, figure, heading, paragraph, table
from alpaca.evaluation.power import hidden_by_rows, hidden_by_tests
from alpaca.evaluation.reading import article
from alpaca.evaluation.results import Change, Probing
from alpaca.evaluation.sections import loss_table, notes_on
from alpaca.pages import Html
from alpaca.words import plural


def forgotten(found: Findings) -> Html:
    measured = found.measured
    change, noun = measured.general, found.run.noun
    parts = [] if measured.probing is None else _probing(measured.probing, found.figures["probes"], noun)
    parts += [
        heading("General questions"),
        paragraph(f"Measured on {plural(change.rows, 'general row')} that are never trained on. A rise of the loss is "
                  "forgetting; where the interval holds 0, it may be chance."),
        *notes_on(found, "general"),
        loss_table([("all general rows", change), *measured.languages.items()], noun),
    ]  # fmt: skip
    if change.difference.low <= 0 <= change.difference.high:
        parts.append(paragraph(hidden_by_rows(change.difference, change.rows), "note"))
    parts += [
        paragraph(f"In {name}: {_few(part)}", "note") for name, part in measured.languages.items() if _unsure(part)
    ]
    parts.append(_own_answers(measured.own_answers, noun))
    return concat(parts)


def _unsure(change: Change) -> bool:
    return change.difference.low <= 0 <= change.difference.high


def _few(change: Change) -> str:
    sentence = hidden_by_rows(change.difference, change.rows)
    return sentence[0].lower() + sentence[1:]


def _own_answers(change: Change | None, noun: str) -> Html:
    """How far the tuned one moved from the base, for better or worse."""
    if change is None:
        return Html("")
    meaning = (
        f"How far it moved: on the base's own answers to {plural(change.rows, 'general question')} the base has a loss "
        f"of {change.before:.2f}, the {noun} of {change.after:.2f}. A rise is no fault by itself, but the larger it "
        "is, the less is left of the base's way to answer."
    )
    return paragraph(meaning)


def _probing(probing: Probing, drawing: bytes, noun: str) -> list[Html]:
    gap = probing.difference
    parts = [
        heading("Small tests"),
        paragraph(f"Of {plural(probing.asked, 'test')} that a program can check the base passed {probing.before}. Of "
                  f"these, {probing.lost} are lost; {probing.won} others are won. That is a change of "
                  f"{100 * gap.value:+.0f} points, by the interval between {100 * gap.low:+.0f} and "
                  f"{100 * gap.high:+.0f}."),
        paragraph(hidden_by_tests(probing), "note"),
        figure(drawing, f"Share of the tests that base and {noun} pass, by kind"),
        table(["kind", "asked", "base", noun, "lost"],
              [[score.kind, score.asked, score.before, score.after, score.lost] for score in probing.kinds]),
    ]  # fmt: skip
    if probing.examples:
        many = len(probing.examples)
        label = "The test that was lost" if probing.lost == 1 else f"The {probing.lost} tests that were lost"
        parts.append(heading(label if many == probing.lost else f"{many} of the {probing.lost} tests that were lost"))
        parts += [article(sample, noun) for sample in probing.examples]
    return parts
