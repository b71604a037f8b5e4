"""The report's pieces of HTML: paragraphs, tables, facts, figures. Whatever is not HTML of ours is escaped in them."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence

from alpaca.pages import Html

SHOWN = 1_200  # characters of one text
NOTHING = Html("")


def concat(parts: Iterable[str]) -> Html:
    """One piece after the other."""
    return NOTHING.join(parts)


def passage(value: str) -> Html:
    """A longer text with its line breaks, in the direction of its own script, cut where it is very long."""
    cut = value if len(value) <= SHOWN else f"{value[:SHOWN]} … ({len(value) - SHOWN} more characters)"
    if not cut.strip():
        return Html('<div class="say none">(empty)</div>')
    return Html('<div class="say" dir="auto">{}</div>').format(cut)


def paragraph(value: str, kind: str = "") -> Html:
    return Html('<p class="{}">{}</p>').format(kind, value) if kind else Html("<p>{}</p>").format(value)


def heading(value: str) -> Html:
    """The title of a part of a section."""
    return Html("<h3>{}</h3>").format(value)


def points(values: Iterable[str]) -> Html:
    """A list of short texts."""
    return Html("<ul>{}</ul>").format(concat(map(Html("<li>{}</li>").format, values)))


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Html:
    """A table that scrolls inside itself where the window is narrow. The first column names the row."""
    top = concat(Html('<th scope="col">{}</th>').format(name) for name in head)
    body = concat(
        Html('<tr><th scope="row">{}</th>{}</tr>').format(row[0], concat(map(Html("<td>{}</td>").format, row[1:])))
        for row in rows
    )
    return Html('<div class="scroll"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>').format(
        top, body
    )


def facts(pairs: Iterable[tuple[str, object]]) -> Html:
    """Names and values."""
    inner = concat(Html("<div><dt>{}</dt><dd>{}</dd></div>").format(name, value) for name, value in pairs)
    return Html('<dl class="facts">{}</dl>').format(inner)


def figure(png: bytes, what: str) -> Html:
    """A picture inside the page; `what` says what it shows, for those who can't see it."""
    data = base64.b64encode(png).decode("ascii")
    return Html('<figure><img src="data:image/png;base64,{}" alt="{}"></figure>').format(data, what)


def side_by_side(parts: Iterable[Html]) -> Html:
    """Two in a row where there is room, else one below the other."""
    return Html('<div class="two">{}</div>').format(concat(parts))


def folded(label: str, inner: Html) -> Html:
    """Something that is opened by a click."""
    return Html("<details><summary>{}</summary>{}</details>").format(label, inner)
