"""The report as one HTML page: the verdict first, then the evidence, each part with a sentence on what it means."""

from __future__ import annotations

from alpaca.evaluation import sections
from alpaca.evaluation.findings import Findings
from alpaca.evaluation.markup import facts, figure, folded, paragraph, table, text
from alpaca.evaluation.style import STYLE
from alpaca.evaluation.verdict import Forgetting

MOST_SETTING = 60  # characters of a setting's value
MARKS = {Forgetting.NOTHING: "good", Forgetting.LITTLE: "good", Forgetting.CLEAR: "mixed", Forgetting.MUCH: "bad"}


def make_page(found: Findings) -> str:
    """The whole page: no script, no link to anywhere, figures inside."""
    title = f"{found.name}: what it learned and what it forgot"
    parts = [
        ("Verdict", _verdict(found)),
        ("1. How the training went", sections.curves(found)),
        ("2. Your data: better than before?", sections.domain(found)),
        ("3. Everything else: what was forgotten?", sections.general(found)),
        ("4. Does it talk like your data when nobody asked?", sections.drift(found)),
        ("5. How strong should the adapter be?", sections.sweep(found)),
        ("6. The data", _data(found)),
        ("7. The run", _run(found)),
    ]
    body = "".join(f"<section><h2>{text(heading)}</h2>{inner}</section>" for heading, inner in parts[1:])
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head><body>"
        f'<header><h1>{text(title)}</h1><p class="dim">{text(_subtitle(found))}</p></header>'
        f"{parts[0][1]}{body}"
        f'<footer class="dim">{text(_footer(found))}</footer></body></html>\n'
    )


def _subtitle(found: Findings) -> str:
    source = f" on {found.data.source}" if found.data.source else ""
    trained = f", trained {found.run.created[:10]}" if found.run.created else ""
    return f"A LoRA adapter for {found.run.base}{source}{trained}"


def _footer(found: Findings) -> str:
    made = f"Made on {found.made} in {_duration(found.seconds)}."
    return f"{made} docs/report.md explains each measure; report.json holds the numbers."


def _verdict(found: Findings) -> str:
    verdict = found.verdict
    mark = "bad" if verdict.learned is False else MARKS[verdict.forgetting]
    titles = ("What it learned", "What it forgot", "What to do")
    items = "".join(
        f"<div><h3>{title}</h3><p>{text(sentence)}</p></div>"
        for title, sentence in zip(titles, verdict.sentences, strict=True)
    )
    return f'<section class="verdict {mark}">{items}</section>'


# --- 6, 7 ---------------------------------------------------------------------------------------------------------
def _data(found: Findings) -> str:
    data, count = found.data, found.data.counts
    names = {
        "rows_read": "rows read", "train": "trained on", "validation": "held out", "truncated": "cut to cutoff_len",
        "dropped": "too long, left out", "empty_outputs": "without an answer, left out", "bad_rows": "faulty, left out",
        "duplicates": "exact copies", "replay": "general rows mixed in, each epoch",
    }  # fmt: skip
    pairs: list[tuple[str, object]] = [(label, f"{count[name]:,}") for name, label in names.items() if name in count]
    if data.near_copies is not None:
        pairs.append(("near copies among those trained on", f"{data.near_copies:,}"))
    parts = [paragraph("What the adapter was made of. python -m alpaca.data FILE looks closer.")]
    parts.append(
        facts(pairs) if pairs else paragraph("The adapter has no card that would say what it was trained on.", "note")
    )
    if data.languages:
        total = sum(data.languages.values())
        rows = [[name, f"{number:,}", f"{number / total:.1%}"] for name, number in list(data.languages.items())[:12]]
        parts += ["<h3>Languages of the answers</h3>", table(["language", "rows", "share"], rows)]
    if data.lengths:
        half = ", ".join(f"{at} %: {length}" for at, length in data.percentiles.items())
        parts += [
            "<h3>Lengths</h3>",
            paragraph(
                f"Tokens per row with the template, and the share of the rows that have at most that many: {half}."
            ),
        ]
        parts.append(figure(found.figures["lengths"], "How many rows are how long, in tokens"))
    return "".join(parts)


def _run(found: Findings) -> str:
    run = found.run
    pairs: list[tuple[str, object]] = [
        ("base", f"{run.base}, {run.weights / 1e6:,.0f} M weights"),
        ("fingerprint", run.fingerprint or "–"),
        ("template", run.template),
        ("weights trained", f"{run.adapter_weights:,} ({run.adapter_weights / run.weights:.1%} of the base)"),
        ("this report's precision", run.precision),
    ]
    if run.seconds:
        pairs.append(("time", _duration(run.seconds)))
    if run.steps:
        pairs.append(("steps", f"{run.steps:,}"))
    if run.tokens:
        speed = f", {run.tokens / run.seconds:,.0f} per second" if run.seconds else ""
        pairs.append(("tokens trained on", f"{run.tokens:,}{speed}"))
    if run.flop:
        rate = f", {run.flop / run.seconds / 1e12:.3g} TFLOP/s" if run.seconds else ""
        pairs.append(("work", f"{run.flop / 1e12:,.3g} TFLOP{rate}"))
    pairs.append(("utilisation", f"{run.utilisation:.0%}" if run.utilisation else "not noted by the run"))
    if run.peak_memory:
        pairs.append(("memory at the peak", f"{run.peak_memory / 1e9:.1f} GB"))
    note = ("Work is 4 · N · tokens for the N weights in the layers' matrices: 2N forward, 2N backward through a "
            "frozen base. Time includes evaluation; energy is time times the power the machine draws.")  # fmt: skip
    settings = [[name, _short(value)] for name, value in run.settings.items()]
    versions = [[name, value] for name, value in run.versions.items()]
    parts = [paragraph("What it took, and what is needed to do it again."), facts(pairs), paragraph(note, "note")]
    parts.append(folded("Settings", table(["setting", "value"], settings)))
    return "".join(parts + ([folded("Versions", table(["package", "version"], versions))] if versions else []))


def _short(value: object) -> str:
    shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return shown if len(shown) <= MOST_SETTING else f"{shown[: MOST_SETTING - 1]}…"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
