"""The report of an adapter, made from what is on disk: measured, judged, drawn, written aside and put in place."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alpaca.data.general import SHIPPED
from alpaca.evaluation import figures
from alpaca.evaluation.budget import Budget
from alpaca.evaluation.doubt import checked, lexicon_of
from alpaca.evaluation.facts import DataFacts, RunFacts, data_facts, run_facts
from alpaca.evaluation.findings import Findings
from alpaca.evaluation.history import History, read_history
from alpaca.evaluation.measure import Subject, measure, open_subject
from alpaca.evaluation.on_top import on_top_of
from alpaca.evaluation.page import make_page
from alpaca.evaluation.sets import PROBES, Domain, find_domain, find_general, find_probes, replayed_file
from alpaca.evaluation.verdict import Verdict, judge
from alpaca.progress import Say
from alpaca.prompts.encode import encode_examples
from alpaca.words import tagged

FOLDER, INDEX, NUMBERS = "report", "index.html", "report.json"
FIGURES = ("loss", "rate", "speed", "memory", "scale", "probes", "lengths")
MOST_LENGTHS = 5_000  # training rows whose lengths are drawn


@dataclasses.dataclass(frozen=True)
class Report:
    """Where the page is, what it says first, and how long it took to make."""

    page: Path
    verdict: Verdict
    seconds: float


def write_report(
    adapter: Path,
    base: Path,
    *,
    precision: str,
    budget_seconds: float | None,
    data_path: str | None = None,
    general_path: Path = SHIPPED,
    probes_path: Path = PROBES,
    beside: Sequence[Path] = (),
    say: Say = print,
) -> Report:
    """Load base and adapter anew, measure both, and write `adapter`/report/ (index.html, report.json, figures).

    `precision` is auto or one of PRECISIONS. `budget_seconds`: about how long it may take; None measures
    everything. `data_path`: the rows trained on; None looks for the file that the card names. `beside`: where adapters
    may be that this one was trained beside and is measured together with, if not beside it. What lies in the folder
    stays until the new report is whole. Raises AlpacaError; the adapter itself is never touched.
    """
    budget = Budget(budget_seconds)
    subject = open_subject(adapter, base, precision, beside)
    domain = find_domain(subject.card, data_path)
    general = find_general(general_path, domain.train, replayed_file(subject.card))
    measured = measure(subject, domain, general, find_probes(probes_path), budget, say)
    lexicon = lexicon_of(subject.tokenizer, [*domain.train, *domain.held_out, *general.measuring, *general.other])
    measured = checked(measured, lexicon)
    history = read_history(adapter, subject.card)
    data, run = _facts(subject, domain)
    pictures = {
        "scale": figures.draw_sweep(measured.sweep) if measured.sweep else None,
        "probes": figures.draw_probes(measured.probing, subject.tuned.noun) if measured.probing else None,
        "lengths": figures.draw_lengths(data.lengths, subject.cutoff_len, "tokens") if data.lengths else None,
    }
    drawn = figures.draw_curves(history) | {name: png for name, png in pictures.items() if png is not None}
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    name = adapter.resolve().name
    on_top = on_top_of(name, subject.card)
    verdict = judge(measured, data.replay_ratio, history)
    found = Findings(name, made, budget.spent(), verdict, measured, history, data, run, drawn, on_top)
    put_in_place(_write_files(adapter, found), adapter / FOLDER)
    for sentence in (*on_top, *verdict.sentences, *verdict.hints):
        say(tagged("report", sentence))
    page = adapter / FOLDER / INDEX
    say(tagged("report", f"{page} ({budget.spent():.0f} s)"))
    return Report(page, verdict, budget.spent())


def _facts(subject: Subject, domain: Domain) -> tuple[DataFacts, RunFacts]:
    rows = domain.train[:MOST_LENGTHS]
    encoded = (
        encode_examples(subject.tokenizer, subject.template, rows, cutoff_len=subject.cutoff_len) if rows else None
    )
    lengths = encoded.report.lengths.tolist() if encoded else []
    return (
        data_facts(subject.card, domain.source, domain.train, lengths),
        run_facts(subject.tuned, subject.base, subject.template.name, subject.precision.precision),
    )


# --- files --------------------------------------------------------------------------------------------------------
def _write_files(adapter: Path, found: Findings) -> Path:
    """All files in a hidden folder of the adapter's, which a fine-tune clears away if it is left behind."""
    aside = adapter / ".saving-report"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    for name, png in found.figures.items():
        (aside / f"{name}.png").write_bytes(png)
    text = json.dumps(as_json(found), ensure_ascii=False, indent=1, allow_nan=False)
    (aside / NUMBERS).write_text(text.encode("utf-8", "replace").decode("utf-8") + "\n", encoding="utf-8")
    (aside / INDEX).write_text(make_page(found), encoding="utf-8")
    return aside


def put_in_place(aside: Path, folder: Path) -> None:
    """Move every file over its predecessor, the page last; figures that the new report has not are removed."""
    folder.mkdir(exist_ok=True)
    files = sorted(aside.iterdir(), key=lambda path: (path.name == INDEX, path.name))
    for path in files:
        os.replace(path, folder / path.name)
    for name in FIGURES:
        if f"{name}.png" not in {path.name for path in files}:
            (folder / f"{name}.png").unlink(missing_ok=True)
    aside.rmdir()


def as_json(found: Findings) -> dict[str, Any]:
    """The numbers of the page, for a program to read."""
    measured = dataclasses.asdict(found.measured)
    data = dataclasses.asdict(found.data) | {"percentiles": found.data.percentiles}
    del data["lengths"]
    verdict = dataclasses.asdict(found.verdict) | {"forgetting": found.verdict.forgetting.name.lower()}
    return _finite(
        {
            "format": 1, "adapter": found.name, "made": found.made, "seconds": round(found.seconds, 1),
            "on_top": list(found.on_top), "verdict": verdict, **measured, "outlook": _outlook(found.history),
            "data": data, "run": dataclasses.asdict(found.run),
        }
    )  # fmt: skip


def _outlook(history: History) -> dict[str, Any]:
    """Whether more training would have helped, and how well the base knew the rows before it."""
    familiar = history.familiar
    noted = None if familiar is None else dataclasses.asdict(familiar) | {"times": familiar.times}
    return {"still_falling": history.still_falling, "per_byte": noted}


def _finite(value: Any) -> Any:
    """The same with null for what JSON has no number for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
