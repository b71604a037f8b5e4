"""The evidence of the page: each part begins with a sentence on what it means."""

from __future__ import annotations

from alpaca.evaluation.findings import Findings
from alpaca.evaluation.markup import concat, facts, figure, folded, heading, paragraph, side_by_side, table
from alpaca.evaluation.power import hidden_by_answers, hidden_by_rows
from alpaca.evaluation.reading import article
from alpaca.evaluation.results import Change, Drift, GainParts, Sweep
from alpaca.evaluation.verdict import KEPT
from alpaca.pages import Html
from alpaca.words import percent, plural, size_text

CURVES = {"loss": "Loss", "rate": "Learning rate", "speed": "Tokens per second", "memory": "Memory in use"}
SHOWN_WORST = 2  # the others are folded away


# --- your data ------------------------------------------------------------------------------------------------------
def domain(found: Findings) -> Html:
    change, gain = found.measured.domain, found.measured.gain
    parts = notes_on(found, "domain")
    if change is not None:
        meaning = (f"Measured on {plural(change.rows, 'row')} of your data that the training never saw "
                   f"({change.tokens:,} tokens of answers). The loss says how much the right answers surprise "
                   "the model, the perplexity between how many words (or pieces of words) it wavers at each place: "
                   "lower is better.")  # fmt: skip
        parts += [paragraph(meaning), loss_table([("your held-out rows", change)], found.run.noun)]
        if change.difference.low <= 0 <= change.difference.high:
            parts.append(paragraph(hidden_by_rows(change.difference, change.rows), "note"))
    if gain is not None:
        parts += _gain_parts(gain, found.run.noun)
    parts += notes_on(found, "gain")
    if (familiar := found.history.familiar) is not None:
        language = f" ({familiar.language})" if familiar.language else ""
        parts.append(
            paragraph(
                f"Before the training, the answers of your rows{language} surprised the base "
                f"{familiar.times:.1f} times as much as general answers in English, byte by byte. The more, the less "
                "it knows their language and subject, and the larger a base they need."
            )
        )
    return concat(parts)


def _gain_parts(gain: GainParts, noun: str) -> list[Html]:
    """Manner and matter, and whether an answer's own question is told from others."""
    rows = [
        [name, f"{part.value:+.2f}", f"{part.low:+.2f} to {part.high:+.2f}"]
        for name, part in (("manner", gain.manner), ("matter", gain.matter))
    ]
    return [
        heading("Manner and matter"),
        paragraph(f"What the right answers gain even when they are asked after {plural(gain.others, 'other question')} "
                  "is their manner: how such answers are written. The rest is matter: how much more the right question "
                  "says about its answer."),
        table(["gain in loss per token", "", "95 % interval"], rows),
        paragraph(f"Of {plural(gain.rows, 'answer')}, {gain.told_before:.0%} are likeliest after their own question "
                  f"with the base, {gain.told_after:.0%} with the {noun}."),
    ]  # fmt: skip


def loss_table(changes: list[tuple[str, Change]], noun: str) -> Html:
    """Losses before and after, rounded; report.json has them whole."""
    head = ["", "rows", "loss, base", f"loss, {noun}", "change", "95 % interval", "perplexity"]
    rows = []
    for name, change in changes:
        gap, (before, after) = change.difference, change.perplexities
        interval = f"{gap.low:+.2f} to {gap.high:+.2f}"
        losses = [f"{change.before:.2f}", f"{change.after:.2f}", f"{gap.value:+.2f}"]
        rows.append([name, change.rows, *losses, interval, f"{before:,.1f} → {after:,.1f}"])
    return table(head, rows)


# --- when nobody asked ----------------------------------------------------------------------------------------------
def drift(found: Findings) -> Html:
    drift = found.measured.drift
    which = "An adapter" if found.run.noun == "adapter" else "A model"
    parts = [paragraph(f"{which} that learned too narrowly answers everything with its own subject. This counts such "
                       "answers to questions that have nothing to do with your data.")]  # fmt: skip
    parts += notes_on(found, "drift")
    return concat(parts + (_drift_parts(drift, found.run.noun) if drift else []))


def _drift_parts(drift: Drift, noun: str) -> list[Html]:
    counts = facts([
        ("questions outside your data", drift.asked),
        ("answers that talk like your data, base", f"{drift.before} ({percent(drift.before, drift.asked)})"),
        (f"answers that talk like your data, {noun}", f"{drift.after} ({percent(drift.after, drift.asked)})"),
    ])  # fmt: skip
    known = "" if drift.recognised is None else f" Of your own held-out answers it recognises {drift.recognised:.0%}."
    how = (f"An answer talks like your data if more than {drift.threshold:.0%} of its content words are among the "
           f"{drift.own_words:,} that are far more frequent in your data than in general answers.{known} Of the "
           f"general references {drift.mistaken:.0%} are taken for yours by mistake.")  # fmt: skip
    parts = [counts, paragraph(how, "note"), paragraph(hidden_by_answers(drift.asked, drift.before), "note")]
    if drift.worst:
        parts.append(heading("The worst"))
        parts += [article(sample, noun) for sample in drift.worst[:SHOWN_WORST]]
        if drift.worst[SHOWN_WORST:]:
            more = concat(article(sample, noun) for sample in drift.worst[SHOWN_WORST:])
            parts.append(folded(f"{len(drift.worst) - SHOWN_WORST} more", more))
    return [*parts, folded("Words of your data", Html('<p dir="auto">{}</p>').format(", ".join(drift.words)))]


# --- the scale ------------------------------------------------------------------------------------------------------
def sweep(found: Findings) -> Html:
    sweep = found.measured.sweep
    if found.run.noun == "model":
        return concat(notes_on(found, "sweep"))
    parts = [paragraph("adapter_scale sets the strength of the adapter when it answers, without training again: less "
                       "of it keeps more of the base.")]  # fmt: skip
    parts += notes_on(found, "sweep")
    if sweep is not None:
        parts += [figure(found.figures["scale"], "Loss on held-out rows and on general rows over the adapter's scale")]
        parts += _sweep_parts(sweep)
    return concat(parts)


def _sweep_parts(sweep: Sweep) -> list[Html]:
    base, full = sweep.points[0], sweep.points[-1]
    gain = 0.0 if base.domain is None or full.domain is None else base.domain - full.domain
    rows = []
    for point in sweep.points:
        has = point.domain is not None and base.domain is not None
        kept = f"{(base.domain - point.domain) / gain:.0%}" if has and gain > 0 else "–"  # type: ignore[operator]
        domain = f"{point.domain:.2f}" if has else "–"
        parts = [f"{part:+.2f}" for part in (point.manner, point.matter) if part is not None]
        general = [f"{point.general:.2f}", f"{point.general - base.general:+.2f}"]
        rows.append([f"{point.scale:g}", domain, kept, *parts, *general])
    split = ["of it manner", "matter"] if base.manner is not None else []
    head = ["adapter_scale", "loss, held-out rows", "gain kept", *split, "loss, general rows", "change"]
    advice = "No scale is recommended, because nothing was gained or no held-out rows are at hand."
    if sweep.recommended is not None:
        advice = (f"Recommended: {sweep.recommended:g}, the scale with the lowest general loss among those that keep "
                  f"at least {KEPT:.0%} of the gain.")  # fmt: skip
    on = f"on {plural(sweep.general_rows, 'general row')}"
    on = f"on {plural(sweep.domain_rows, 'held-out row')} and {on[3:]}" if sweep.domain_rows else on
    return [table(head, rows), paragraph(f"{advice} Measured {on}.")]


# --- the training ---------------------------------------------------------------------------------------------------
def curves(found: Findings) -> Html:
    history = found.history
    drawn = [(name, what) for name, what in CURVES.items() if name in found.figures]
    if not drawn:
        return paragraph("The folder holds no record of the training steps (report/training.json).", "note")
    parts = [paragraph("The loss says how much the right answers surprise the model: lower is better. If the held-out "
                       "loss rises while the training loss still falls, the training was too long.")]  # fmt: skip
    parts.append(side_by_side(figure(found.figures[name], f"{what} over the steps") for name, what in drawn))
    if history.validation:
        step, best = min(history.validation, key=lambda point: point[1])
        noun = found.run.noun
        parts.append(
            paragraph(
                f"The lowest held-out loss was {best:.2f}, at step {step:.0f}; the {noun} is the one of that step."
            )
        )
    if history.still_falling is not None:
        parts.append(
            paragraph(
                f"Over the last third of the training the held-out loss still fell, by {history.still_falling:.2f}: "
                "longer training, or a larger base, would probably learn more."
            )
        )
    if not history.curve("memory"):
        peak = f"; the peak of the whole run was {size_text(found.run.peak_memory)}" if found.run.peak_memory else ""
        parts.append(paragraph(f"Memory was not noted step by step{peak}.", "note"))
    return concat(parts)


def notes_on(found: Findings, section: str) -> list[Html]:
    """What is to be said of how a section's numbers came about."""
    return [paragraph(note, "note") for note in found.measured.notes.get(section, [])]
