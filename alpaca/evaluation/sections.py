"""The evidence of the page: each part begins with a sentence on what it means."""

from __future__ import annotations

from alpaca.evaluation.findings import Findings
from alpaca.evaluation.markup import concat, facts, figure, folded, heading, paragraph, passage, side_by_side, table
from alpaca.evaluation.results import Change, Drift, Probing, Sample, Sweep
from alpaca.evaluation.verdict import KEPT
from alpaca.pages import Html
from alpaca.words import percent, plural, size_text

CURVES = {"loss": "Loss", "rate": "Learning rate", "speed": "Tokens per second", "memory": "Memory in use"}
SHOWN_SAMPLES, SHOWN_WORST = 4, 2  # the others are folded away


# --- 1 ------------------------------------------------------------------------------------------------------------
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
        parts.append(
            paragraph(
                f"The lowest held-out loss was {best:.3f}, at step {step:.0f}; the adapter is the one of that step."
            )
        )
    if not history.curve("memory"):
        peak = f"; the peak of the whole run was {size_text(found.run.peak_memory)}" if found.run.peak_memory else ""
        parts.append(paragraph(f"Memory was not noted step by step{peak}.", "note"))
    return concat(parts)


# --- 2 ------------------------------------------------------------------------------------------------------------
def domain(found: Findings) -> Html:
    change, samples = found.measured.domain, found.measured.samples
    parts = _notes(found, "domain")
    if change is not None:
        meaning = (f"Measured on {plural(change.rows, 'row')} of your data that the training never saw "
                   f"({change.tokens:,} tokens of answers). The perplexity is the number of words (or pieces of words) "
                   "that the model wavers between at each place: lower is better.")  # fmt: skip
        parts += [paragraph(meaning), _loss_table([("your held-out rows", change)])]
    if samples:
        parts.append(heading("The same questions before and after"))
        parts.append(paragraph(f"{plural(len(samples), 'held-out question')}. Answers are the likeliest ones (greedy), "
                               "and are cut where they are long."))  # fmt: skip
        first, rest = samples[:SHOWN_SAMPLES], samples[SHOWN_SAMPLES:]
        parts += [_sample(sample) for sample in first]
        if rest:
            parts.append(folded(f"{len(rest)} more", concat(map(_sample, rest))))
    return concat(parts)


def _loss_table(changes: list[tuple[str, Change]]) -> Html:
    head = ["", "rows", "loss, base", "loss, adapter", "change", "95 % interval", "perplexity"]
    rows = []
    for name, change in changes:
        gap, (before, after) = change.difference, change.perplexities
        interval = f"{gap.low:+.3f} to {gap.high:+.3f}"
        losses = [f"{change.before:.3f}", f"{change.after:.3f}", f"{gap.value:+.3f}"]
        rows.append([name, change.rows, *losses, interval, f"{before:,.1f} → {after:,.1f}"])
    return table(head, rows)


def _sample(sample: Sample) -> Html:
    columns = concat(
        Html("<div><h4>{}</h4>{}</div>").format(name, passage(answer))
        for name, answer in (("Reference", sample.reference), ("Base", sample.base), ("Adapter", sample.adapter))
    )
    return Html('<article><div class="ask">{}</div><div class="three">{}</div></article>').format(
        passage(sample.prompt), columns
    )


# --- 3 ------------------------------------------------------------------------------------------------------------
def general(found: Findings) -> Html:
    measured = found.measured
    change = measured.general
    parts = [
        paragraph(f"Measured on {plural(change.rows, 'general row')} that are never trained on, and on small tests "
                  "that a program can check. A rise of the loss is forgetting; where the interval holds 0, it may be "
                  "chance."),
        *_notes(found, "general"),
        _loss_table([("all general rows", change), *measured.languages.items()]),
        _own_answers(measured.own_answers),
        *_notes(found, "answers"),
    ]  # fmt: skip
    if measured.probing is not None:
        parts += _probing(measured.probing, found.figures["probes"])
    return concat(parts)


def _own_answers(change: Change | None) -> Html:
    """How far the adapter moved from the base, for better or worse."""
    if change is None:
        return Html("")
    meaning = (
        f"How far it moved: on the base's own answers to {plural(change.rows, 'general question')} the base has a loss "
        f"of {change.before:.2f}, the adapter of {change.after:.2f}. A rise is no fault by itself, but the larger it "
        "is, the less is left of the base's way to answer."
    )
    return paragraph(meaning)


def _probing(probing: Probing, picture: bytes) -> list[Html]:
    gap = probing.difference
    parts = [
        heading("Small tests"),
        paragraph(f"Of {probing.asked} tests the base passed {probing.before} and the adapter passes {probing.after}: "
                  f"a change of {100 * gap.value:+.0f} points (95 % interval {100 * gap.low:+.0f} to "
                  f"{100 * gap.high:+.0f}). {probing.lost} were lost, {probing.won} won."),
        figure(picture, "Share of the tests that base and adapter pass, by kind"),
        table(["kind", "asked", "base", "adapter"],
              [[score.kind, score.asked, score.before, score.after] for score in probing.kinds]),
    ]  # fmt: skip
    if probing.examples:
        label = f"{len(probing.examples)} of the tests that were lost" if probing.lost > 1 else "The test that was lost"
        parts.append(folded(label, concat(map(_sample, probing.examples))))
    return parts


# --- 4 ------------------------------------------------------------------------------------------------------------
def drift(found: Findings) -> Html:
    drift = found.measured.drift
    parts = [paragraph("An adapter that learned too narrowly answers everything with its own subject. This counts such "
                       "answers to questions that have nothing to do with your data.")]  # fmt: skip
    parts += _notes(found, "drift")
    return concat(parts + (_drift_parts(drift) if drift else []))


def _drift_parts(drift: Drift) -> list[Html]:
    counts = facts([
        ("questions outside your data", drift.asked),
        ("answers that talk like your data, base", f"{drift.before} ({percent(drift.before, drift.asked)})"),
        ("answers that talk like your data, adapter", f"{drift.after} ({percent(drift.after, drift.asked)})"),
    ])  # fmt: skip
    known = "" if drift.recognised is None else f" Of your own held-out answers it recognises {drift.recognised:.0%}."
    how = (f"An answer talks like your data if more than {drift.threshold:.0%} of its content words are among the "
           f"{drift.own_words:,} that are far more frequent in your data than in general answers.{known} Of the "
           f"general references {drift.mistaken:.0%} are taken for yours by mistake.")  # fmt: skip
    parts = [counts, paragraph(how, "note")]
    if drift.worst:
        parts.append(heading("The worst"))
        parts += [_sample(sample) for sample in drift.worst[:SHOWN_WORST]]
        if drift.worst[SHOWN_WORST:]:
            parts.append(
                folded(f"{len(drift.worst) - SHOWN_WORST} more", concat(map(_sample, drift.worst[SHOWN_WORST:])))
            )
    return [*parts, folded("Words of your data", Html('<p dir="auto">{}</p>').format(", ".join(drift.words)))]


# --- 5 ------------------------------------------------------------------------------------------------------------
def sweep(found: Findings) -> Html:
    sweep = found.measured.sweep
    parts = [paragraph("adapter_scale sets the strength of the adapter when it answers, without training again: less "
                       "of it keeps more of the base.")]  # fmt: skip
    parts += _notes(found, "sweep")
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
        domain = f"{point.domain:.3f}" if has else "–"
        parts = [f"{part:+.2f}" for part in (point.manner, point.matter) if part is not None]
        general = [f"{point.general:.3f}", f"{point.general - base.general:+.3f}"]
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


def _notes(found: Findings, section: str) -> list[Html]:
    return [paragraph(note, "note") for note in found.measured.notes.get(section, [])]
