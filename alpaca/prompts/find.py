"""Find a template: by name, by the path of a file, or as an adapter's card describes it."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alpaca.errors import BadTemplate, TemplateNotFound
from alpaca.paths import TEMPLATES, as_written
from alpaca.prompts.alpaca import AlpacaTemplate
from alpaca.prompts.chat import ChatTemplate, template_hash
from alpaca.prompts.template import Template


def template_names(folder: Path = TEMPLATES) -> list[str]:
    """The names that load_template takes: the files in `folder`, chat and auto."""
    return [*sorted(file.stem for file in folder.glob("*.json")), "chat", "auto"]


def load_template(name: str, tokenizer: Any = None, *, folder: Path | None = None, allow_path: bool = True) -> Template:
    """A template by name, by the path of a .json file (unless `allow_path` is off), "chat", or "auto".

    "auto" is the tokenizer's chat template where there is one, else alpaca. Raises TemplateNotFound with what there
    is, BadTemplate with the reason why a template can't work.
    """
    if name == "auto":
        name = "chat" if tokenizer is not None and tokenizer.chat_template else "alpaca"
    if name == "chat":
        if tokenizer is None:
            raise BadTemplate("the template 'chat' belongs to a base's tokenizer, and no tokenizer was given")
        return ChatTemplate(tokenizer)
    folder = folder or TEMPLATES
    path = as_written(name)
    is_path = name.endswith(".json") or path.name != name
    found = path if is_path else folder / f"{name}.json"
    if (allow_path or not is_path) and os.path.isfile(found):  # which takes a name of any length, unlike is_file()
        return _read_template(found)
    there = template_names(folder)
    near = difflib.get_close_matches(name[:100], there, n=1)
    meant = f" Did you mean '{near[0]}'?" if near else ""
    raise TemplateNotFound(
        f"no template '{name[:100]}'. There are: {', '.join(there)} (in {folder}).{meant} "
        "Put your own JSON file there" + (" or give its path." if allow_path else ".")
    )


def template_from_card(card: Mapping[str, Any], tokenizer: Any) -> Template:
    """The template that `card()` described. A chat template is the base's own, and must be the same one."""
    if not isinstance(card, Mapping) or card.get("kind") not in ("alpaca", "chat"):
        raise BadTemplate("the adapter's card holds no template of a known kind (alpaca or chat)")
    if card["kind"] == "alpaca":
        name = card.get("name")
        return AlpacaTemplate(name if isinstance(name, str) and name else "alpaca", card)
    if tokenizer is None:
        raise BadTemplate("the template 'chat' belongs to a base's tokenizer, and no tokenizer was given")
    template = ChatTemplate(tokenizer)
    if card.get("sha256") != template_hash(template.jinja):
        raise BadTemplate(
            "the adapter was trained with another chat template than this base has "
            f"(sha256 {str(card.get('sha256'))[:12]}… against {template_hash(template.jinja)[:12]}…); "
            "use the base it was made for"
        )
    return template


def _read_template(path: Path) -> AlpacaTemplate:
    try:
        fields = json.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadTemplate(f"{path}: is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except json.JSONDecodeError as error:
        raise BadTemplate(f"{path}: is not JSON: line {error.lineno}, column {error.colno}: {error.msg}") from error
    except RecursionError as error:
        raise BadTemplate(f"{path}: is nested too deeply") from error
    if not isinstance(fields, dict):
        raise BadTemplate(f"{path}: is not a JSON object with prompt_input, prompt_no_input and response_split")
    try:
        return AlpacaTemplate(path.stem, fields)
    except BadTemplate as error:
        raise BadTemplate(f"{path}: {error.message}") from error
