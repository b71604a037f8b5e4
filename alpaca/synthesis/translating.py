"""`python -m alpaca.synthesis translate`: from options to translated rows, their journal and their card."""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from alpaca.data.output_file import output_path
from alpaca.data.reader import read_examples
from alpaca.data.rows import to_row
from alpaca.errors import BadSetting
from alpaca.files import written_aside
from alpaca.paths import this_python
from alpaca.progress import progress, say, say_aside
from alpaca.prompts.example import Example
from alpaca.synthesis.budget import Budget
from alpaca.synthesis.card import write_card
from alpaca.synthesis.counts import listed
from alpaca.synthesis.desk import Desk, work_through
from alpaca.synthesis.glossary import Glossary, read_glossary
from alpaca.synthesis.journal import opened
from alpaca.synthesis.language import parse_language
from alpaca.synthesis.opened_model import check_limits, open_model
from alpaca.synthesis.sample import Sampled, show
from alpaca.synthesis.translate import LISTED, OUTCOMES, Lost, Order, QuestionFailed, Translating, sources
from alpaca.synthesis.translate_prompt import AGAIN, GLOSSARY, RULES
from alpaca.words import row_list


def translate(options: argparse.Namespace) -> None:
    """Translate all rows, or show some. Raises the coded error of what stops it; what was made is kept."""
    limits = check_limits(options)
    order = _order(options)
    if options.sample is None and not options.output:
        raise BadSetting("say where the rows go with --output, or look at some of them first with --sample 5")
    if options.sample is not None and options.sample < 1:
        raise BadSetting(f"--sample is {options.sample}: at least 1 row")
    rows = read_examples(options.data_path).examples
    if not order.language.sign:
        say(f"language: {order.language.name} has no sign here by which it is known, so it is not checked")
    with tempfile.TemporaryDirectory() as nowhere:
        given = options.output or str(Path(nowhere) / "sample.jsonl")
        output = output_path("--output", given, ".jsonl", options.data_path)
        with opened(output) as journal:
            model = open_model(options, say_aside if options.sample else say)
            desk = Desk(model, journal, Budget(limits, *journal.tokens))
            if options.sample:
                _sample(order, desk, rows, options.sample, options.concurrency)
                return
            journal.begin(order.work(model.name))
            _all(order, desk, rows, options)
    say(f"look at them: {this_python()} -m alpaca.data {output}")


def _order(options: argparse.Namespace) -> Order:
    return Order(
        parse_language(options.to),
        read_glossary(options.glossary) if options.glossary else Glossary(),
        options.language_tasks,
        options.tries,
        options.max_tokens,
        options.temperature,
    )


def _all(order: Order, desk: Desk, rows: Sequence[Example], options: argparse.Namespace) -> None:
    journal = desk.journal
    named = sources(rows)
    there = sum(source in journal.made for source, _ in named)
    if there:
        say(f"going on: {there} of {len(rows)} rows are done, {desk.budget.spent()}")
    faults: dict[int, str] = {}
    try:
        asyncio.run(_run(order, desk, rows, options.concurrency, len(rows) - there, faults))
        journal.put_in_order([source for source, _ in named])
    finally:
        counts = dict(journal.counts) | {LISTED: len(faults)}
        card = write_card(
            desk, desk.budget, order.work(desk.model.name),
            {"rules": RULES, "glossary": GLOSSARY, "again": AGAIN},
            {"source": {"file": options.data_path, "rows": len(rows)},
             "listed": {str(row): fault for row, fault in sorted(faults.items())}},
        )  # fmt: skip
        say(f"rows: {sum(1 for _ in journal.rows)} of {len(rows)} in {journal.output}: {listed(counts, OUTCOMES)}")
        _list_faults(journal.output, rows, faults)
        say(desk.sum_up())
        say(f"card: {card} (read its licence note before you train on the rows)")


async def _run(
    order: Order, desk: Desk, rows: Sequence[Example], workers: int, left: int, faults: dict[int, str]
) -> None:
    def more() -> str:
        done = listed(dict(desk.journal.counts) | {LISTED: len(faults)}, OUTCOMES)
        return desk.budget.spent() + (f"; {done}" if done else "")

    try:
        with progress("rows", left, "row", say, more) as advance:
            running = Translating(order, desk, rows, advance, faults)
            await work_through(workers, running.work)
    finally:
        await desk.model.close()


def _list_faults(output: Path, rows: Sequence[Example], faults: Mapping[int, str]) -> None:
    """Write the rows that were not translated beside the others, with the reason; an old list goes."""
    path = output.with_name(f"{output.stem}.listed.jsonl")
    if not faults:
        path.unlink(missing_ok=True)
        return
    with written_aside(path) as aside, aside.open("w", encoding="utf-8", errors="replace", newline="\n") as file:
        for example in rows:
            if example.row in faults:
                told = {"row": example.row, "fault": faults[example.row], **to_row(example)}
                file.write(json.dumps(told, ensure_ascii=False) + "\n")
    say(f"listed: {path} has those that were not translated, with the reason (rows {row_list(sorted(faults))})")


def _sample(order: Order, desk: Desk, rows: Sequence[Example], count: int, workers: int) -> None:
    """Show some rows from everywhere in the file with their translation."""
    step = max(1, len(rows) // count)
    chosen = rows[::step][:count]
    found: dict[int, Sampled] = {}

    async def run() -> None:
        running = Translating(order, desk, [])
        left = iter(chosen)

        async def work() -> None:
            for example in left:
                try:
                    translation, outcomes = await running.row(example)
                    found[example.row] = Sampled(example, translation, ", ".join(outcomes))
                except (Lost, QuestionFailed) as error:
                    found[example.row] = Sampled(example, None, f"{LISTED}: {error}")

        try:
            await work_through(workers, work)
        finally:
            await desk.model.close()

    try:
        asyncio.run(run())
    finally:
        show([found[row] for row in sorted(found)], order.language.name)
        say_aside(f"sample: {len(found)} of {len(rows)} rows; {desk.budget.spent()}")
