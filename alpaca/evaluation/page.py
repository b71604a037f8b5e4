"""The report as one HTML page: the verdict first, then the evidence, each part with a sentence on what it means."""

from __future__ import annotations

from alpaca.evaluation import sections
from alpaca.evaluation.findings import Findings
from alpaca.evaluation.forgotten import forgotten
from alpaca.evaluation.lessons import lessons
from alpaca.evaluation.markup import concat, facts, figure, folded, heading, paragraph, points, table
from alpaca.evaluation.picture import picture
from alpaca.evaluation.reading import reading
from alpaca.evaluation.style import STYLE
from alpaca.evaluation.verdict import Verdict
from alpaca.pages import Html, page
from alpaca.words import duration, percent, size_text

MOST_SETTING = 60  # characters of a setting's value
BODY = """
<header><h1>{{ name }}</h1><p class="dim">{{ subtitle }}</p></header>
{{ on_top }}
<section class="verdict {{ mark }}">
<div><h3>What it learned</h3><p>{{ verdict[0] }}</p></div>
<div><h3>What it forgot</h3><p>{{ verdict[1] }}</p></div>
<div><h3>What to do</h3><p>{{ verdict[2] }}</p></div>
{{ picture }}
</section>
{{ more }}
{% for heading, inner in parts %}
<section><h2>{{ heading }}</h2>{{ inner }}</section>
{% endfor %}
<footer class="dim">{{ footer }}</footer>
"""


def make_page(found: Findings) -> str:
    """The whole page: no script, no link to anywhere, figures inside."""
    verdict = found.verdict
    parts = [
        ("1. Read these answers", reading(found)),
        ("2. Your data: better than before?", sections.domain(found)),
        ("3. Everything else: what was forgotten?", forgotten(found)),
        ("4. Does it talk like your data when nobody asked?", sections.drift(found)),
        (f"5. How strong should the {found.run.noun} be?", sections.sweep(found)),
        ("6. What became of your rows?", lessons(found)),
        ("7. How the training went", sections.curves(found)),
        ("8. The data", _data(found)),
        ("9. The run", _run(found)),
    ]
    return page(
        f"{found.name}: what it learned and what it forgot", STYLE, BODY, subtitle=_subtitle(found), mark=verdict.mark,
        name=found.name, on_top=concat(map(paragraph, found.on_top)), verdict=verdict.sentences,
        picture=picture(found.measured, verdict.gained),
        more=_more(verdict), parts=parts, footer=_footer(found),
    )  # fmt: skip


def _more(verdict: Verdict) -> Html:
    """What would make it better, and what the verdict rests on."""
    parts = [heading("What would make it better"), points(verdict.hints)] if verdict.hints else []
    parts += [heading("What was not tested"), points(verdict.untested)] if verdict.untested else []
    return concat([*parts, folded("What was tested", points(verdict.tested))])


def _subtitle(found: Findings) -> str:
    source = f" on {found.data.source}" if found.data.source else ""
    trained = f", trained {found.run.created[:10]}" if found.run.created else ""
    what = "All weights of" if found.run.noun == "model" else "A LoRA adapter for"
    return f"{what} {found.run.base}{source}{trained}"


def _footer(found: Findings) -> str:
    made = f"Made on {found.made} in {duration(found.seconds)}."
    return f"{made} docs/report.md explains each measure; report.json holds the numbers."


# --- 8, 9 ---------------------------------------------------------------------------------------------------------
def _data(found: Findings) -> Html:
    data, count = found.data, found.data.counts
    names = {
        "rows_read": "rows read", "train": "trained on", "validation": "held out", "truncated": "cut to cutoff_len",
        "dropped": "too long, left out", "empty_outputs": "without an answer, left out", "bad_rows": "faulty, left out",
        "duplicates": "exact copies", "copies_of_held_out": "copies of held-out rows, left out",
        "near_copies_of_held_out": "near copies of held-out rows, left out",
        "near_copies_trained_on": "near copies of held-out rows, trained on",
        "replay": "general rows mixed in, each epoch",
    }  # fmt: skip
    pairs: list[tuple[str, object]] = [(label, f"{count[name]:,}") for name, label in names.items() if name in count]
    if data.near_copies is not None:
        pairs.append(("near copies among those trained on", f"{data.near_copies:,}"))
    parts = [paragraph(f"What the {found.run.noun} was made of. python -m alpaca.data FILE looks closer.")]
    parts.append(
        facts(pairs) if pairs else paragraph("The adapter has no card that would say what it was trained on.", "note")
    )
    if data.languages:
        total = sum(data.languages.values())
        rows = [[name, f"{number:,}", percent(number, total)] for name, number in list(data.languages.items())[:12]]
        parts += [heading("Languages of the answers"), table(["language", "rows", "share"], rows)]
    if data.lengths:
        half = ", ".join(f"{at} %: {length}" for at, length in data.percentiles.items())
        parts += [
            heading("Lengths"),
            paragraph(f"Tokens per row with the template, and the share of the rows that have no more: {half}."),
        ]
        parts.append(figure(found.figures["lengths"], "How many rows are how long, in tokens"))
    return concat(parts)


def _run(found: Findings) -> Html:
    run = found.run
    pairs: list[tuple[str, object]] = [
        ("base", f"{run.base}, {run.weights / 1e6:,.0f} M weights"),
        ("fingerprint", run.fingerprint or "–"),
        ("template", run.template),
        ("weights trained", f"{run.adapter_weights:,} ({percent(run.adapter_weights, run.weights)} of the base)"),
        ("this report's precision", run.precision),
    ]
    if run.seconds:
        pairs.append(("time", duration(run.seconds)))
    if run.steps:
        pairs.append(("steps", f"{run.steps:,}"))
    if run.tokens:
        speed = f", {run.tokens / run.seconds:,.0f} per second" if run.seconds else ""
        pairs.append(("tokens trained on", f"{run.tokens:,}{speed}"))
    if run.flop:
        rate = f", {run.flop / run.seconds / 1e12:.3g} TFLOP/s" if run.seconds else ""
        pairs.append(("work", f"{run.flop / 1e12:,.3g} TFLOP{rate}"))
    if run.peak_memory:
        pairs.append(("memory at the peak", size_text(run.peak_memory)))
    work = "4 · N" if run.noun == "adapter" else "6 · N"
    backward = "2N backward through a frozen base" if run.noun == "adapter" else "4N backward"
    note = (f"Work is {work} · tokens for the N weights in the layers' matrices: 2N forward, {backward}. Time includes "
            "evaluation; energy is time times the power the machine draws.")  # fmt: skip
    settings = [[name, _short(value)] for name, value in run.settings.items()]
    versions = [[name, value] for name, value in run.versions.items()]
    parts = [paragraph("What it took, and what is needed to do it again."), facts(pairs), paragraph(note, "note")]
    parts.append(folded("Settings", table(["setting", "value"], settings)))
    return concat(parts + ([folded("Versions", table(["package", "version"], versions))] if versions else []))


def _short(value: object) -> str:
    whole = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return whole if len(whole) <= MOST_SETTING else f"{whole[: MOST_SETTING - 1]}…"
