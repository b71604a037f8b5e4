"""The report's figures as PNG. They hold numbers and fixed words only: texts of the data could be in any script."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from alpaca.evaluation.history import Curve, History
from alpaca.evaluation.results import Probing, Sweep

BLUE, ORANGE, GREY = "#2b6cb0", "#c05621", "#4a5568"
DPI = 150
WHOLE, HALF = (6.6, 3.7), (5.2, 3.3)  # inches: text stays readable when a phone shows them
BINS = 40


def draw_curves(history: History) -> dict[str, bytes]:
    """Loss, learning rate, speed and memory over the steps, each as a figure by name; none of what was not written."""
    panels = {
        "loss": ("loss per token", 1.0, [("training", "loss", GREY), ("held out", "", BLUE)]),
        "rate": ("learning rate", 1.0, [("", "learning_rate", BLUE)]),
        "speed": ("tokens per second", 1.0, [("", "tokens_per_second", BLUE)]),
        "memory": ("memory in use, GB", 1e-9, [("", "memory", BLUE)]),
    }
    drawn: dict[str, bytes] = {}
    for panel, (label, unit, lines) in panels.items():
        curves = [
            (name, history.curve(field) if field else history.validation, colour) for name, field, colour in lines
        ]
        if any(len(curve) > 1 for _, curve, _ in curves):
            drawn[panel] = _draw_panel(label, unit, curves)
    return drawn


def _draw_panel(label: str, unit: float, curves: Sequence[tuple[str, Curve, str]]) -> bytes:
    figure = _figure(HALF)
    axes = figure.subplots()
    for name, curve, colour in curves:
        _line(axes, curve, unit, name, colour)
    if len(curves) == 1:
        axes.set_ylim(bottom=0)
    if any(name and curve for name, curve, _ in curves):
        axes.legend(frameon=False)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    return _png(figure)


def _line(axes: Any, curve: Curve, unit: float, name: str, colour: str) -> None:
    if curve:
        steps, values = zip(*curve, strict=True)
        few = {"marker": "o", "markersize": 4} if len(curve) <= 30 and name != "training" else {}
        axes.plot(steps, np.array(values) * unit, color=colour, lw=2 if name != "training" else 1, label=name, **few)


def draw_sweep(sweep: Sweep) -> bytes:
    """General loss against domain loss over the adapter's scale."""
    figure = _figure(WHOLE)
    axes = figure.subplots()
    scales = [point.scale for point in sweep.points]
    handles = axes.plot(scales, [point.general for point in sweep.points], "s--", color=ORANGE, label="general rows")
    axes.set_ylabel("loss per token, general rows", color=ORANGE)
    if sweep.points[0].domain is not None:
        other = axes.twinx()
        handles += other.plot(
            scales, [point.domain for point in sweep.points], "o-", color=BLUE, lw=2, label="held-out rows"
        )
        other.set_ylabel("loss per token, held-out rows", color=BLUE)
    if sweep.recommended is not None:
        handles += [axes.axvline(sweep.recommended, color=GREY, ls=":", label=f"recommended: {sweep.recommended:g}")]
    axes.set_xlabel("adapter_scale (0: the base alone, 1: as trained)")
    axes.set_xticks(scales, [f"{scale:g}" for scale in scales])
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False)
    return _png(figure)


def draw_probes(probing: Probing, noun: str = "adapter") -> bytes:
    """Share of the probes passed, by kind, by the base and by the `noun` made of it."""
    figure = _figure(WHOLE)
    axes = figure.subplots()
    places = np.arange(len(probing.kinds))
    for offset, colour, name in ((-0.2, GREY, "base"), (0.2, BLUE, noun)):
        passed = [score.before if name == "base" else score.after for score in probing.kinds]
        height = [100 * count / score.asked for count, score in zip(passed, probing.kinds, strict=True)]
        bars = axes.bar(places + offset, height, 0.36, color=colour, label=name)
        axes.bar_label(bars, [str(count) for count in passed], padding=2, fontsize=9)
    axes.set_xticks(places, [f"{score.kind}\n({score.asked})" for score in probing.kinds])
    axes.set_ylabel("% passed")
    axes.set_xlabel("kind of test (how many were asked)")
    axes.set_ylim(0, 109)
    axes.legend(frameon=False, ncols=2, loc="upper right")
    return _png(figure)


def draw_lengths(lengths: Sequence[int], cutoff_len: int, unit: str) -> bytes:
    """How many rows are how long."""
    figure = _figure(HALF)
    axes = figure.subplots()
    values = np.asarray(lengths)
    top = max(float(np.percentile(values, 99.5)), 1.0) * 1.05
    axes.hist(values.clip(max=top), bins=BINS, range=(0, top), color=BLUE, edgecolor="white", lw=0.5)
    if cutoff_len <= top:
        axes.axvline(cutoff_len, color=ORANGE, ls="--")
        axes.annotate(f" cutoff_len {cutoff_len}", (cutoff_len, 0.95), xycoords=("data", "axes fraction"), color=ORANGE)
    axes.set_xlim(0, top)
    axes.set_xlabel(f"{unit} per row")
    axes.set_ylabel("rows")
    axes.yaxis.get_major_locator().set_params(integer=True)
    return _png(figure)


def _figure(size: tuple[float, float]) -> Any:
    """A figure of its own, with no state shared with others and no display (matplotlib's Agg)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Any) -> bytes:
    for axes in figure.axes:
        axes.spines["top"].set_visible(False)
        axes.spines["right"].set_visible(axes.yaxis.get_label_position() == "right")
        axes.grid(axis="y", alpha=0.25)
        axes.set_axisbelow(True)
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=DPI)
    return target.getvalue()
