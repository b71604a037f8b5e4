"""What is exported: a base, adapters at their strengths, how questions are written to them and where answers end."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpaca.adapter.base_template import base_template
from alpaca.adapter.card import Card, read_card
from alpaca.base.ends import end_ids
from alpaca.base.find import resolve_base
from alpaca.base.headers import fingerprint
from alpaca.base.load import load_tokenizer
from alpaca.errors import BadSetting, ExportRefused
from alpaca.export.weights import MergedWeights, Strength
from alpaca.progress import Say
from alpaca.prompts.find import load_template
from alpaca.prompts.jinja import begins_with_bos, chat_template
from alpaca.prompts.template import Template
from alpaca.serving.adapters import Adapter, AdapterStore
from alpaca.serving.composition import Composition, parse_composition
from alpaca.words import joined


@dataclass(frozen=True)
class Leaving:
    """One model on its way out."""

    base: Path
    name: str
    """What it is called there: by its adapters, with strengths other than 1, or by the base."""
    tokenizer: Any
    template: Template
    strengths: tuple[Strength, ...]
    jinja: str
    """The template as a chat template."""
    ends: tuple[int, ...]
    """The tokens that end an answer, the tokenizer's EOS first."""
    held: tuple[Adapter, ...] = ()
    """The adapters as they were found: what was unpacked stays while these do."""

    @property
    def begins_with_bos(self) -> bool:
        """Whether the tokenizer puts BOS in front of every text."""
        return begins_with_bos(self.tokenizer)

    @property
    def card(self) -> Card | None:
        """The first adapter's, in full."""
        return next((card for used in self.strengths if (card := read_card(used.files.folder)) is not None), None)

    @property
    def weights(self) -> MergedWeights:
        return MergedWeights(self.base, self.strengths)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.base)


def leaving(base_model: str | None, adapter: str, scale: float, template_name: str, say: Say) -> Leaving:
    """Find the base and the adapters, and say what was chosen and why.

    `adapter`: as a request names them (`lora-mine`, `lora-a:0.7+lora-b:0.5`, or ""); `scale` multiplies all strengths.
    Raises the errors of alpaca.base and alpaca.adapter, and ExportRefused.
    """
    base = resolve_base(base_model)
    tokenizer = load_tokenizer(base)
    store = AdapterStore(base, tokenizer, say=say)
    composition = parse_composition(adapter) if adapter else Composition()
    if not 0 < scale <= 4:
        raise BadSetting(f"--adapter_scale is {scale:g}: a number over 0 and at most 4")
    found = [(store.find(str(part.source), trusted=True), part.scale * scale) for part in composition.parts]
    store.notice_alone([adapter for adapter, _ in found])
    strengths = tuple(Strength(adapter.files, strength) for adapter, strength in found)
    template, reason = _template([adapter for adapter, _ in found], template_name, base, tokenizer)
    say(f"base: {base.name}")
    say(f"adapters: {joined(f'{used.name} at {used.scale:g}' for used in strengths) or 'none, the base alone'}")
    say(f"template: {template.name} ({reason})")
    jinja = chat_template(template, begins_with_bos=begins_with_bos(tokenizer))
    name = plain_name("-".join(map(_called, strengths)), "adapter") if strengths else plain_name(base.name, "base")
    held = tuple(adapter for adapter, _ in found)
    return Leaving(base, name, tokenizer, template, strengths, jinja, end_ids(base, tokenizer, template.turn_end), held)


def _template(adapters: Sequence[Adapter], wanted: str, base: Path, tokenizer: Any) -> tuple[Template, str]:
    """The template that is carried, and why this one."""
    if wanted:
        return load_template(wanted, tokenizer), "as asked"
    carded = [adapter.template for adapter in adapters if adapter.template is not None]
    wordings = [{k: v for k, v in template.card().items() if k not in ("name", "description")} for template in carded]
    if any(wording != wordings[0] for wording in wordings):
        raise ExportRefused("the adapters were trained with different templates; say which with --prompt_template_name")
    if carded:
        return carded[0], "the adapter was trained with it"
    card = "the adapter has no card, and " if adapters else ""
    template, why = base_template(base, tokenizer)
    return template, f"{card}{why}"


def _called(used: Strength) -> str:
    return used.name if used.scale == 1 else f"{used.name}-{used.scale:g}"


def plain_name(text: str, otherwise: str) -> str:
    """A name that every tool takes: small letters without marks, digits, points, dashes; `otherwise` where none of
    `text` is left."""
    apart = unicodedata.normalize("NFKD", text)
    bare = "".join(sign for sign in apart if not unicodedata.combining(sign))
    return re.sub(r"[^a-z0-9.]+", "-", bare.lower()).strip("-.") or otherwise
