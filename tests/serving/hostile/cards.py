"""Cards that belong elsewhere, or say what no card says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.serving.hostile.case import Case

CARD = "alpaca.json"
EVIL = "{{ ''.__class__.__mro__[1].__subclasses__() }}"


def card(**changes: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        found = json.loads((folder / CARD).read_text())
        (folder / CARD).write_text(json.dumps(found | changes))

    return make


def template(**changes: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        found = json.loads((folder / CARD).read_text())
        card(template=found["template"] | changes)(folder)

    return make


CARDS = [
    Case("of another base", card(base_fingerprint="0" * 16), "fingerprint 0000000000000000", "E4003"),
    Case("of a base with a long name", card(base_model="x" * 5000), "base_model must be one line"),
    Case("of a base whose name clears the screen", card(base_model="\x1b[2J\n"), "base_model must be one line"),
    Case("of format 99", card(format=99), "format '99'; this version reads format 1"),
    Case("of a long format", card(format="9" * 5000), "this version reads format 1"),
    Case("with another EOS", card(special_tokens={"eos": 0}), "trained with EOS 0, this base's tokenizer has EOS 2",
         "E4003"),
    Case("without an EOS", card(special_tokens={"eos": None}), "trained with EOS None", "E4003"),
    Case("with another BOS", card(special_tokens={"eos": 2, "bos": 7}), "trained with BOS 7", "E4003"),
    Case("whose EOS is text", card(special_tokens={"eos": "</s>"}), "no token's id"),
    Case("whose EOS is true", card(special_tokens={"eos": True}), "no token's id"),
    Case("with a thousand special tokens", card(special_tokens={f"t{n}": n for n in range(1000)}), "at most 20"),
    Case("whose special tokens are a list", card(special_tokens=[]), "special_tokens must be dict, not list"),
    Case("whose fingerprint is nothing", card(base_fingerprint=None), "base_fingerprint must be str, not NoneType"),
    Case("whose losses are text", card(losses="low"), "losses must be dict, not str"),
    Case("whose date is a number", card(created=2024), "created must be str, not int"),
    Case("whose template is a name", card(template="alpaca"), "template must be dict, not str"),
    Case("whose template is of no kind", card(template={}), "no template of a known kind", "E2102"),
    Case("with Jinja of its own", card(template={"kind": "chat", "chat_template": EVIL, "sha256": "0"}),
         "another chat template", "E2102"),
    Case("with Jinja in place of a prompt", template(prompt_input=EVIL), "lacks the placeholder", "E2102"),
    Case("whose prompt is a format string", template(prompt_no_input="{instruction.__class__}\n### Response:"),
         "lacks the placeholder", "E2102"),
    Case("whose prompt has a third placeholder",
         template(prompt_no_input="{instruction} {system}\n\n### Response:"), "holds {system}", "E2102"),
    Case("whose prompt is a list", template(prompt_input=["x"]), "is a list, not text", "E2102"),
    Case("whose prompt is a book", template(prompt_input="x" * 500_000), "has 500,000 characters"),
    Case("whose template has a long name", template(name="x" * 500), "has 500 characters"),
    Case("whose template's name clears the screen", template(name="\x1b[2J"), "must be one line"),
]  # fmt: skip
