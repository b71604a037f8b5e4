"""The lengths of rows as a picture: bars of text for a terminal, two plots in a PNG."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from alpaca.data.lengths import Lengths
from alpaca.files import written_aside

WIDTH = 40  # columns of the longest bar
EIGHTHS = "▏▎▍▌▋▊▉█"
COLUMNS = 48  # of the histogram in the picture
BLUE, ORANGE, GREY = "#2b6cb0", "#c05621", "#4a5568"


def bars(lengths: Lengths) -> list[str]:
    """One line a bin: its range, a bar, the number of rows."""
    bins = lengths.histogram()
    most = max((part.rows for part in bins), default=0)
    names = [f"{part.start} – {part.end - 1}" if part.end else f"{part.start} and more" for part in bins]
    width = max(map(len, names), default=0)
    return [f"{name:>{width}}  {_bar(part.rows / most)} {part.rows}" for name, part in zip(names, bins, strict=True)]


def _bar(share: float) -> str:
    eighths = round(share * WIDTH * 8)
    if not eighths:
        return EIGHTHS[0] if share else ""
    return EIGHTHS[-1] * (eighths // 8) + (EIGHTHS[eighths % 8 - 1] if eighths % 8 else "")


def draw(lengths: Lengths, source: str, target: Path) -> None:
    """Write a PNG: how many rows are how long, and the share of rows that fit below each length. Needs a row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7.2), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{Path(source).name}: {len(lengths.values)} rows", fontsize=13, parse_math=False)
    above, below = figure.subplots(2, 1, sharex=True)
    _draw_histogram(above, lengths)
    _draw_coverage(below, lengths)
    below.set_xlabel(f"{lengths.unit} per row" + (" (whole row, with the template)" if lengths.cutoff_len else ""))
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
    with written_aside(target) as aside, aside.open("wb") as handle, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a file's name may be in any script
        figure.savefig(handle, format="png", dpi=120)


def _draw_histogram(axes: Any, lengths: Lengths) -> None:
    top = _right_edge(lengths)
    axes.hist(lengths.values.clip(max=top - 1), bins=COLUMNS, range=(0, top), color=BLUE, edgecolor="white", lw=0.5)
    axes.set_ylabel("rows")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_xlim(0, top)
    beyond = int((lengths.values >= top).sum())
    if beyond:
        axes.set_title(f"the last bar holds {beyond} rows from {top} on", fontsize=9, color=GREY, loc="right")
    _mark_cutoff(axes, lengths, top, named=True)


def _draw_coverage(axes: Any, lengths: Lengths) -> None:
    import numpy as np

    ordered = np.sort(lengths.values)
    axes.plot(ordered, np.arange(1, len(ordered) + 1) / len(ordered) * 100, color=BLUE, lw=2, drawstyle="steps-post")
    axes.set_ylabel("% of the rows that fit")
    axes.set_ylim(0, 103)
    for percent, length in lengths.percentiles().items():
        if percent in (50, 95, 100) and length <= _right_edge(lengths):
            axes.plot([length], [percent], "o", color=BLUE, ms=5)
            axes.annotate(
                f"{percent} %: {length}", (length, percent), xytext=(6, -12), textcoords="offset points", fontsize=9
            )
    _mark_cutoff(axes, lengths, _right_edge(lengths), named=False)


def _mark_cutoff(axes: Any, lengths: Lengths, top: int, *, named: bool) -> None:
    cutoff = lengths.cutoff_len
    if cutoff is not None and cutoff <= top:
        axes.axvline(cutoff, color=ORANGE, lw=1.5, ls="--")
        if named:
            axes.annotate(f"cutoff_len {cutoff}", (cutoff, 0.96), xycoords=("data", "axes fraction"), xytext=(-5, 0),
                          textcoords="offset points", ha="right", va="top", color=ORANGE, fontsize=9)  # fmt: skip


def _right_edge(lengths: Lengths) -> int:
    """Where the plots end: a little beyond the longest row, or where a few long rows would squeeze all others."""
    found = lengths.percentiles()
    edge = found[100] if found[100] <= 2.5 * found[99] else 2 * found[99]
    cutoff = lengths.cutoff_len or 0
    wanted = 1.05 * (cutoff if edge < cutoff <= 1.6 * edge else edge)
    return COLUMNS * (int(wanted) // COLUMNS + 1)  # columns of a whole number of tokens
