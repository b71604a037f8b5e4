"""The card that travels with an adapter: what it was trained on, how, and with what results."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alpaca.adapter.ancestry import Ancestor, parse_ancestor
from alpaca.adapter.lora_config import MAX_JSON_BYTES, read_json_file
from alpaca.errors import BadAdapter, WrongBase

CARD = "alpaca.json"
MAX_NAME, MAX_PROMPT = 200, 20_000  # characters that a card may spend on a name, and on a piece of its template


@dataclass
class Card:
    """What travels with an adapter (alpaca.json). All fields are plain JSON."""

    base_model: str
    base_fingerprint: str
    template: dict[str, Any]
    special_tokens: dict[str, int | None]
    data: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    losses: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    ancestor: dict[str, Any] = field(default_factory=dict)  # what it was trained on top of: alpaca.adapter.ancestry
    created: str = ""
    format: int = 1

    @property
    def on_top_of(self) -> Ancestor | None:
        """The adapter that this one was trained on top of, None where there was none."""
        return parse_ancestor(self.ancestor)

    def write(self, folder: Path) -> None:
        text = json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=2, allow_nan=False)
        (folder / CARD).write_text(text + "\n", encoding="utf-8")


def read_card(folder: Path) -> Card | None:
    """The card of the adapter in `folder`, or None where it has none. Raises BadAdapter for a damaged one."""
    if not (folder / CARD).is_file():
        return None
    content = read_json_file(folder / CARD)
    if content.get("format") != 1:
        raise BadAdapter(f"{CARD} has format {str(content.get('format'))[:20]!r}; this version reads format 1")
    for f in dataclasses.fields(Card):
        needed = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if f.name in content or needed:
            _check_field(f.name, content.get(f.name), str(f.type))
    card = Card(**{f.name: content[f.name] for f in dataclasses.fields(Card) if f.name in content})
    parse_ancestor(card.ancestor)
    if len(card.special_tokens) > 20:
        raise BadAdapter(f"{CARD}: special_tokens has {len(card.special_tokens)} entries; at most 20")
    for name, token in card.special_tokens.items():
        if token is not None and (not isinstance(token, int) or isinstance(token, bool)):
            raise BadAdapter(f"{CARD}: special_tokens holds {name[:20]!r}: {str(token)[:20]!r}, which is no token's id")
    for name, text in card.template.items():
        limit = MAX_NAME if name == "name" else MAX_JSON_BYTES if name == "chat_template" else MAX_PROMPT
        if isinstance(text, str) and len(text) > limit:
            raise BadAdapter(f"{CARD}: the template's {name[:40]!r} has {len(text):,} characters; at most {limit:,}")
        if name == "name" and isinstance(text, str) and not text.isprintable():
            raise BadAdapter(f"{CARD}: the template's name must be one line")
    return card


def _check_field(name: str, value: Any, kind: str) -> None:
    wanted = {"str": str, "int": int}.get(kind, dict)
    if not isinstance(value, wanted):
        raise BadAdapter(f"{CARD}: {name} must be {wanted.__name__}, not {type(value).__name__}")
    if isinstance(value, str) and (len(value) > MAX_NAME or not value.isprintable()):
        raise BadAdapter(f"{CARD}: {name} must be one line of at most {MAX_NAME} characters")


def check_special_tokens(card: Card, tokenizer: Any) -> None:
    """Raise WrongBase where the card's EOS or BOS is not the tokenizer's: an answer would not end, a prompt differ."""
    for name in ("eos", "bos"):
        ours, theirs = getattr(tokenizer, f"{name}_token_id"), card.special_tokens.get(name)
        if name in card.special_tokens and ours != theirs:
            raise WrongBase(
                f"it was trained with {name.upper()} {theirs}, this base's tokenizer has {name.upper()} {ours}: "
                "use the tokenizer it was made for"
            )
