"""The part of the page that a person should read first: answers beside their references, the most doubtful on top."""

from __future__ import annotations

from collections.abc import Sequence

from alpaca.evaluation.findings import Findings
from alpaca.evaluation.markup import concat, folded, heading, paragraph, passage, table
from alpaca.evaluation.results import Facts, Sample
from alpaca.pages import Html
from alpaca.words import plural

SHOWN_SAMPLES = 4  # the others are folded away


def reading(found: Findings) -> Html:
    """The answers to held-out questions, with what a program sees in them, and what that comes to."""
    samples, noun = found.measured.samples, found.run.noun
    notes = [paragraph(note, "note") for note in found.measured.notes.get("answers", [])]
    if not samples:
        why = "your text has no questions" if found.measured.of_text else "no rows are held out, or none could be asked"
        return concat([paragraph(f"There are no answers to read: {why}.", "note"), *notes])
    parts = [
        paragraph(f"{plural(len(samples), 'held-out question')}, answered by the base and by the {noun}. Nobody has "
                  "judged whether the answers are true: only you can. The most doubtful one comes first: the one whose "
                  "numbers and names differ most from those of your row."),
        *(article(sample, noun) for sample in samples[:SHOWN_SAMPLES]),
    ]  # fmt: skip
    if rest := samples[SHOWN_SAMPLES:]:
        parts.append(folded(f"{len(rest)} more", concat(article(sample, noun) for sample in rest)))
    if found.measured.facts is not None:
        parts += _facts(found.measured.facts, noun)
    note = "Answers are the likeliest ones (greedy), and are cut where they are long."
    return concat([*parts, paragraph(note, "note")])


def article(sample: Sample, noun: str) -> Html:
    """A question with its reference and both answers."""
    differs = sample.differs
    columns = [
        ("Reference" if differs is None else "Your row", sample.reference, []),
        (noun.capitalize(), sample.adapter, [] if differs is None else [
            ("your row says otherwise", differs.contradicted), ("not in your row", differs.invented),
            ("only in your row", differs.missing),
        ]),
        ("Base", sample.base, []),
    ]  # fmt: skip
    inner = concat(
        Html("<div><h4>{}</h4>{}{}</div>").format(name, passage(text), _marked(marks)) for name, text, marks in columns
    )
    return Html('<article><div class="ask">{}</div><div class="three">{}</div></article>').format(
        passage(sample.prompt), inner
    )


def _marked(marks: Sequence[tuple[str, Sequence[str]]]) -> Html:
    return concat(
        Html('<p class="odd"><b>{}:</b> {}</p>').format(what, ", ".join(claims)) for what, claims in marks if claims
    )


def _facts(facts: Facts, noun: str) -> list[Html]:
    """The table of what a program found, with what it can't see."""
    names = {
        "kept": "those of your rows that the answers have", "missing": "those of your rows that they lack",
        "contradicted": "others, where your row says otherwise", "invented": "others, of which your row says nothing",
    }  # fmt: skip
    rows = [[label, getattr(facts.base, name), getattr(facts.adapter, name)] for name, label in names.items()]
    own = f" Of those that your rows don't have, the base says {facts.from_base} as well." if facts.from_base else ""
    return [
        heading("Numbers and names in these answers"),
        table(["numbers, dates, names, yes and no", "base", noun], rows),
        paragraph(f"Counted by a program, in {plural(facts.answers, 'answer')}, of which {facts.checked} have a "
                  f"reference with any.{own} It can't tell whether a sentence is true: a false one without a number or "
                  "a name passes, and a true number that your row does not mention counts as one of its own.", "note"),
    ]  # fmt: skip
