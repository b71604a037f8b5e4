"""Pieces of HTML. Whatever comes from a model or a file is escaped, and can neither hide nor turn the page around."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence

SHOWN = 1_200  # characters of one text
CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}
# Marks that change the direction of writing, join or hide characters, and end lines in odd ways.
HIDDEN = [*range(0x80, 0xA0), *range(0x200B, 0x2010), *range(0x2028, 0x202F), *range(0x2060, 0x2070), 0xFEFF, 0xFFF9,
          0xFFFA, 0xFFFB, *range(0xE0000, 0xE0080)]  # fmt: skip
KEPT = {0x200C, 0x200D}  # joiners, which Persian, Hindi and emoji need
VISIBLE = CONTROLS | {code: f"\\u{code:04x}" for code in HIDDEN if code not in KEPT}


def text(value: object) -> str:
    """A text for anywhere in the page: escaped, control characters as pictures, hidden ones by their number."""
    written = str(value).encode("utf-8", "replace").decode("utf-8")
    return html.escape(written.translate(VISIBLE))


def passage(value: str) -> str:
    """A longer text with its line breaks, in the direction of its own script, cut where it is very long."""
    cut = value if len(value) <= SHOWN else f"{value[:SHOWN]} … ({len(value) - SHOWN} more characters)"
    return f'<div class="say" dir="auto">{text(cut)}</div>' if cut.strip() else '<div class="say none">(empty)</div>'


def paragraph(value: str, kind: str = "") -> str:
    return f'<p class="{kind}">{text(value)}</p>' if kind else f"<p>{text(value)}</p>"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table that scrolls inside itself where the window is narrow. The first column names the row."""
    top = "".join(f'<th scope="col">{text(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{text(row[0])}</th>{"".join(f"<td>{text(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """Names and values."""
    inner = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in pairs)
    return f'<dl class="facts">{inner}</dl>'


def figure(png: bytes, what: str) -> str:
    """A picture inside the page; `what` says what it shows, for those who can't see it."""
    data = base64.b64encode(png).decode("ascii")
    return f'<figure><img src="data:image/png;base64,{data}" alt="{text(what)}"></figure>'


def side_by_side(parts: Iterable[str]) -> str:
    """Two in a row where there is room, else one below the other."""
    return f'<div class="two">{"".join(parts)}</div>'


def folded(title: str, inner: str) -> str:
    """Something that is opened by a click."""
    return f"<details><summary>{text(title)}</summary>{inner}</details>"
