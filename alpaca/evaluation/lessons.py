"""The part of the page on single rows: which were learnt by heart, and which were not learnt."""

from __future__ import annotations

from collections.abc import Sequence

from alpaca.evaluation.findings import Findings
from alpaca.evaluation.markup import concat, heading, paragraph, table
from alpaca.evaluation.results import Learnt, LearntRow
from alpaca.evaluation.sections import notes_on
from alpaca.pages import Html
from alpaca.words import numbered_rows, plural

SHOWN = 8  # rows in a table
HEAD = ["row", "loss, base", "if never seen", "loss, adapter", "said by itself"]


def lessons(found: Findings) -> Html:
    """What training did to the rows one by one."""
    learnt = found.measured.learnt
    parts = [paragraph("A row that was trained on should come out a little better than one that was not. Much better, "
                       "and it was learnt by heart. No better, and it taught nothing.")]  # fmt: skip
    return concat([*parts, *notes_on(found, "learnt"), *(_parts(learnt) if learnt else [])])


def _parts(learnt: Learnt) -> list[Html]:
    few = "" if learnt.rows == learnt.of else f", of {learnt.of:,} in all"
    about = (f"Looked at: {plural(learnt.rows, 'row')} that the adapter was trained on{few}. Of the base's loss, "
             f"{learnt.left:.0%} is left on rows that it never saw.")  # fmt: skip
    return [paragraph(about, "note"), *_by_heart(learnt), *_not_learnt(learnt)]


def _by_heart(learnt: Learnt) -> list[Html]:
    title = heading("Learnt by heart, or nearly")
    control = f"Of {plural(learnt.held_out, 'held-out row')}, {learnt.mistaken} would be listed by mistake."
    if not learnt.by_heart:
        return [title, paragraph(f"None was found. {control}")]
    advice = ("What was learnt by heart may come out again as it stands in the row, private details too. Rows that "
              "come many times in other words go first, and so do answers that many rows share: python -m alpaca.data "
              "FILE finds near copies. Fewer epochs (--num_epochs) leave less by heart.")  # fmt: skip
    return [
        title,
        paragraph(f"{_named(learnt.by_heart)} {control}"),
        _table(learnt.by_heart),
        paragraph(advice, "note"),
    ]


def _not_learnt(learnt: Learnt) -> list[Html]:
    title = heading("Not learnt")
    if not learnt.not_learnt:
        return [title, paragraph("None was found.")]
    advice = ("Read them: garbled text and answers without sense look like this, and so may a row in another language "
              "or full of rare names. An answer that merely belongs to another question does not: python -m "
              "alpaca.data FILE --base_model BASE looks for those.")  # fmt: skip
    return [title, paragraph(_named(learnt.not_learnt)), _table(learnt.not_learnt), paragraph(advice, "note")]


def _named(rows: Sequence[LearntRow]) -> str:
    return f"{plural(len(rows), 'row')}: {numbered_rows([row.row for row in rows])}."


def _table(rows: Sequence[LearntRow]) -> Html:
    """The first of them, which are the worst."""
    cells = [
        [row.row, f"{row.before:.2f}", f"{row.unseen:.2f}", f"{row.after:.2f}", f"{row.said:.0%}"]
        for row in rows[:SHOWN]
    ]
    return table(HEAD, cells)
