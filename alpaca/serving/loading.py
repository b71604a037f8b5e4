"""From a base's name and an adapter's to an engine that answers; every choice is said with its reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpaca.adapter import changed_modules, load_adapter, load_tensors, verify_files
from alpaca.base import WEIGHTS, choose_precision, load_model, load_tokenizer, pick_device, resolve_base
from alpaca.prompts import load_template, template_from_card
from alpaca.serving.engine import GenerateEngine

Say = Callable[[str], None]


@dataclass(frozen=True)
class LoadedBase:
    """A base in memory. One engine at a time may have it."""

    folder: Path
    model: Any
    tokenizer: Any


def load_base(
    base_model: str | None = None, precision: str = "auto", *, weights_dir: Path = WEIGHTS, say: Say = print
) -> LoadedBase:
    """Find and load the base, saying which, in what precision, and why. Raises the errors of alpaca.base."""
    folder = resolve_base(base_model, weights_dir)
    device = pick_device()
    choice = choose_precision(folder, precision, device)
    say(f"base: {folder.name} in {choice.precision} on {device} ({choice.reason})")
    return LoadedBase(folder, load_model(folder, choice.precision, device), load_tokenizer(folder))


def open_engine(base: LoadedBase, adapter: Path | None = None, *, say: Say = print) -> GenerateEngine:
    """An engine for the base with `adapter` on it, or alone. Raises the errors of alpaca.adapter.

    The template is the one the adapter was trained with, else chat where the base has a chat template, else alpaca.
    """
    if adapter is None:
        template = load_template("auto", base.tokenizer)
        say("adapter: none")
        say(f"template: {template.name} ({_auto_reason(base.tokenizer)})")
        return GenerateEngine(base.model, base.tokenizer, template)
    files = verify_files(adapter, base.folder)
    if files.card is None:
        template, reason = load_template("auto", base.tokenizer), f"no card; {_auto_reason(base.tokenizer)}"
    else:
        template, reason = template_from_card(files.card.template, base.tokenizer), "the adapter was trained with it"
    tensors = load_tensors(files)
    changed = changed_modules(tensors)
    say(f"adapter: {adapter} (rank {files.spec.r}, changes {changed} of its {len(files.modules)} modules)")
    if not files.card:
        say("adapter: it has no card (alpaca.json), so only names and shapes were checked against this base")
    if changed == 0:
        say("adapter: WARNING: every B is zero, so it changes nothing; was it saved before it was trained?")
    say(f"template: {template.name} ({reason})")
    return GenerateEngine(load_adapter(base.model, files, tensors=tensors), base.tokenizer, template)


def _auto_reason(tokenizer: Any) -> str:
    return "the base has a chat template" if tokenizer.chat_template else "the base has no chat template"
