"""Pages of HTML: one shell for all, in which whatever comes from a model or a file can neither hide nor turn it around.

A page is one file without a script or a link. Its body is a jinja2 template or made of `Html`; what is not `Html` is
escaped on the way in, with hidden and control characters made visible.
"""

from __future__ import annotations

import html
from functools import cache
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from alpaca.words import visible

if TYPE_CHECKING:
    from jinja2 import Environment

SHELL = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title><style>{{ look }}{{ style }}</style></head>
<body>
{% block body %}{% endblock %}
</body></html>
"""
LOOK = """
:root { color-scheme: light dark; --ink: #1a202c; --dim: #4a5568; --line: #e2e8f0; --soft: #f7fafc; --paper: #fff;
        --link: #2b6cb0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e5e7eb; --dim: #a3adbb; --line: #374151; --soft: #1f2937; --paper: #111827; --link: #7db8f0; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; color: var(--ink);
       background: var(--paper); max-width: 66rem; margin: 0 auto; padding: 1.5rem 1.25rem 3rem;
       overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
p { margin: .5rem 0; max-width: 48rem; }
"""


class Html(Markup):
    """HTML of our own making. Joined or formatted with anything else, it escapes that as `text` does."""

    @classmethod
    def escape(cls, value: object) -> Html:
        return text(value)


def text(value: object) -> Html:
    """A text for anywhere in a page: escaped, control characters as pictures, hidden ones by their number."""
    if isinstance(value, Markup):
        return Html(value)
    return Html(html.escape(visible(str(value).encode("utf-8", "replace").decode("utf-8"))))


def page(title: str, style: str, body: str, **values: Any) -> str:
    """A whole page. `body` is a jinja2 template that is given `title` and `values`; all of them are escaped."""
    return (
        _environment()
        .from_string('{% extends "shell" %}{% block body %}' + body + "{% endblock %}")
        .render(title=title, look=Html(LOOK), style=Html(style), **values)
    )


@cache
def _environment() -> Environment:
    from jinja2 import DictLoader, Environment, StrictUndefined

    return Environment(
        loader=DictLoader({"shell": SHELL}), autoescape=True, finalize=text, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
