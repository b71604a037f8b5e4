"""What the model is given and what it is trained to write, token by token: for a terminal, or as a page of HTML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from alpaca import pages
from alpaca.data.plain_text import joined
from alpaca.data.yardstick import Yardstick
from alpaca.errors import NoRowsLeft
from alpaca.pages import Html
from alpaca.prompts.encode import Encoded, plain_preview, preview
from alpaca.prompts.example import Example

WINDOW = 8  # tokens decoded together with the next one, so that it is spelled as it is in a text
LONGEST = 4  # bytes, and so tokens, that one character may take
STYLE = """
:root { --masked: #6b7280; --trained: #065f46; --odd: #d1fae5; --even: #a7f3d0; --dull: #f3f4f6; }
@media (prefers-color-scheme: dark) {
  :root { --masked: #9ca3af; --trained: #d1fae5; --odd: #064e3b; --even: #047857; --dull: #1f2937; } }
body { max-width: 60rem; } h1 { font-size: 1.25rem; } h2 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
.row { font: 14px/1.7 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext;
       border: 1px solid var(--line); border-radius: .4rem; padding: .7rem; }
.m { color: var(--masked); } .m i { background: var(--dull); } .t { color: var(--trained); }
.m i, .t i { font-style: normal; border-radius: .15rem; }
.t i { background: var(--odd); } .t i:nth-child(even) { background: var(--even); }
.m i:nth-child(even) { background: none; } u { text-decoration: none; opacity: .5; }
"""
BODY = """
<h1>{{ title }}</h1>
<p>Tokens of {{ base }}, template {{ template }}.
<span class="t"><i> Green </i></span> is what the model is trained to write;
<span class="m"><i> grey </i></span> is given to it and masked from the loss.
Each shade is one token; <u>↵</u> is a line break.</p>
{% for heading, stretches in rows %}
<h2>{{ heading }}</h2>
<div class="row" dir="auto">
{%- for trained, tokens in stretches -%}
<span class="{{ "t" if trained else "m" }}">{% for token in tokens %}<i>{{ token }}</i>{% endfor %}</span>
{%- endfor -%}
</div>
{% endfor %}
{% for note in notes %}
<p>{{ note }}</p>
{% endfor %}
"""
BREAK = Html("<u>↵</u>\n")
Token = tuple[str, int]  # how it is spelled, and how many ids make it: a character may need several
Stretch = tuple[bool, list[Token]]  # whether it is trained, and its tokens


def encode_first(yardstick: Yardstick, examples: Sequence[Example], count: int) -> tuple[list[Encoded], list[str]]:
    """The first examples as training sees them, and what to say about those that it leaves out."""
    encoded = yardstick.encode(joined(examples[:count]))
    refused = [f"row {found.row} is refused: {found.problem}" for found in encoded.report.refused]
    if not encoded.examples and refused:
        raise NoRowsLeft("\n".join([f"none of the first {count} rows can be used; raise --preview", *refused]))
    if not encoded.examples:
        raise NoRowsLeft(
            f"none of the first {count} rows fits in cutoff_len {yardstick.cutoff_len}; raise --cutoff_len or --preview"
        )
    left_out = encoded.report.dropped_too_long
    too_long = [f"row {row} is too long for cutoff_len {yardstick.cutoff_len}" for row in left_out]
    return encoded.examples, [*refused, *too_long]


def heading(encoded: Encoded) -> str:
    """Row number and counts of one example."""
    return f"row {encoded.row}: {len(encoded)} tokens, {encoded.n_trained} trained"


def show(yardstick: Yardstick, rows: Sequence[Encoded], notes: Sequence[str]) -> None:
    """Print the rows in colour, for a terminal; with NO_COLOR, what is trained stands in brackets."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    colour = console.color_system is not None and not console.no_color
    console.print("green is trained, grey is masked" if colour else "what stands in ⟦…⟧ is trained, the rest is masked")
    for encoded in rows:
        console.print(f"\n{heading(encoded)}", style="bold")
        console.print((preview if colour else plain_preview)(yardstick.tokenizer, encoded))
    for note in notes:
        console.print(f"\n{note}")


def page(yardstick: Yardstick, rows: Sequence[Encoded], notes: Sequence[str], source: str) -> str:
    """A whole HTML page without any link: every token with a shade of its own, what is trained in green."""
    return pages.page(
        f"{Path(source).name}: what is trained and what is masked", STYLE, BODY, base=yardstick.base,
        template=yardstick.template.name, rows=[(heading(row), _stretches(yardstick, row)) for row in rows],
        notes=notes,
    )  # fmt: skip


def _stretches(yardstick: Yardstick, encoded: Encoded) -> Iterator[tuple[bool, list[Html]]]:
    """The tokens as they stand in the page, their line breaks visible."""
    for trained, tokens in stretches_of(yardstick.tokenizer, encoded):
        yield trained, [BREAK.join(spelled.split("\n")) for spelled, _ in tokens]


def stretches_of(tokenizer: Any, encoded: Encoded) -> Iterator[Stretch]:
    """The example's tokens in stretches that are masked or trained. Joined, they are the whole text."""
    done = 0
    for start, end in [*encoded.trained, (len(encoded), len(encoded))]:
        for first, last, trained in ((done, start, False), (start, end, True)):
            if first < last:
                yield trained, list(_tokens(tokenizer, encoded.input_ids[first:last]))
        done = end


def _tokens(tokenizer: Any, ids: Sequence[int]) -> Iterator[Token]:
    """Each token as it is spelled where it stands; the tokens of one character together."""
    start = 0
    for end in range(1, len(ids) + 1):
        before = ids[max(0, start - WINDOW) : start]
        known = tokenizer.decode(before, clean_up_tokenization_spaces=False) if before else ""
        text = tokenizer.decode([*before, *ids[start:end]], clean_up_tokenization_spaces=False)
        if text.endswith("\ufffd") and end - start < LONGEST and end < len(ids):
            continue
        yield text[len(known) :], end - start
        start = end
