"""`python -m alpaca.synthesis instruct`: from options to rows, their journal and their card."""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import replace

from alpaca.data.output_file import output_path
from alpaca.errors import BadSetting
from alpaca.paths import this_python
from alpaca.progress import progress, say
from alpaca.synthesis.budget import Budget
from alpaca.synthesis.card import write_card
from alpaca.synthesis.counts import listed
from alpaca.synthesis.desk import Desk, work_through
from alpaca.synthesis.filters import REASONS
from alpaca.synthesis.instruct import LABELLED, TASKS, Instructing, Order
from alpaca.synthesis.instruct_prompt import RULES
from alpaca.synthesis.journal import opened
from alpaca.synthesis.language import parse_language
from alpaca.synthesis.opened_model import check_limits, open_model
from alpaca.synthesis.seed_tasks import read_seed_tasks

MANY = 10  # tasks in an answer


def instruct(options: argparse.Namespace) -> None:
    """Make rows until there are as many as wanted. Raises the coded error of what stops it; what was made is kept."""
    limits = check_limits(options)
    order = _order(options)
    output = output_path("--output", options.output, ".jsonl", options.seed_tasks[0])
    with opened(output) as journal:
        model = open_model(options, say)
        if options.tasks is None and model.is_small:
            order = replace(order, tasks=1)
            say("tasks: 1 in an answer (a small model loses the form after the first; --tasks says otherwise)")
        journal.begin(order.work(model.name))
        budget = Budget(limits, *journal.tokens)
        desk = Desk(model, journal, budget)
        there = sum(1 for _ in journal.rows)
        if there:
            say(f"going on: {there} rows are there, {budget.spent()}")
        try:
            asyncio.run(_run(order, desk, options.concurrency, there))
        finally:
            card = write_card(
                desk, budget, order.work(model.name),
                {
                    "rules": RULES,
                    "first_question": "\n\n".join(f"{who}: {text}" for who, text in order.question(0).messages),
                },
                {"seed_tasks": {name: {"sha256": sha256} for name, sha256 in order.seeds.hashes.items()}},
            )  # fmt: skip
            _sum_up(desk)
            say(f"card: {card} (read its licence note before you train on the rows)")
    say(f"look at them: {this_python()} -m alpaca.data {output}")


def _order(options: argparse.Namespace) -> Order:
    return Order(
        rows=options.rows,
        seeds=read_seed_tasks(options.seed_tasks),
        language=parse_language(options.language) if options.language else None,
        shown=options.shown,
        tasks=MANY if options.tasks is None else options.tasks,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_p=_share(options.top_p),
        seed=options.seed,
    )


def _share(top_p: float | None) -> float | None:
    if top_p is not None and not 0 < top_p <= 1:
        raise BadSetting(f"--top_p is {top_p:g}: it must be above 0, and at most 1")
    return top_p


async def _run(order: Order, desk: Desk, workers: int, there: int) -> None:
    def more() -> str:
        refused = listed(desk.journal.counts, REASONS)
        return f"{desk.budget.spent()}" + (f"; rejected: {refused}" if refused else "")

    try:
        with progress("rows", max(0, order.rows - there), "row", say, more) as advance:
            running = Instructing(order, desk, advance)
            await work_through(workers, running.work)
    finally:
        await desk.model.close()


def _sum_up(desk: Desk) -> None:
    counts = desk.journal.counts
    say(
        f"rows: {sum(1 for _ in desk.journal.rows)} of {counts[TASKS]} tasks ({counts[LABELLED]} classifications) in "
        f"{desk.journal.output}"
    )
    say(f"rejected: {listed(counts, REASONS) or 'nothing'}")
    say(desk.sum_up())
