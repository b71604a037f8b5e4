"""--adapter_path: a run that begins with an adapter. It goes on training it, or, with --new_adapter, trains a second
one beside it, which is asked together with it. The adapter's own files are only read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from alpaca.adapter.ancestry import (
    BESIDE,
    CONTINUED,
    Ancestor,
    asked_together,
    find_together,
    is_plain_name,
)
from alpaca.adapter.card import Card, read_card
from alpaca.adapter.folder import WEIGHTS, AdapterFiles, BaseShape
from alpaca.adapter.head_copy import HEAD
from alpaca.adapter.lora_config import LoraSpec
from alpaca.base.load import load_tokenizer
from alpaca.errors import AdapterNotFound, BadAdapter, BadSetting
from alpaca.progress import Say
from alpaca.prompts.template import Template, wording
from alpaca.serving.adapters import Adapter, AdapterStore, check_given, is_url
from alpaca.serving.composition import MAX_ADAPTERS
from alpaca.serving.limits import COLUMNS
from alpaca.serving.lora import columns_taken, round_up
from alpaca.serving.roots import ARCHIVES
from alpaca.training.config import FinetuneConfig
from alpaca.training.preflight import resolve_targets
from alpaca.words import joined, tagged


@dataclass(frozen=True)
class OnTop:
    """What a run begins with: `continued`, whose weights are its first, and `frozen`, which stay in effect as they are.
    One adapter at least; `ancestor` is the one that was named, for the card."""

    ancestor: Ancestor
    card: Card | None
    continued: Adapter | None
    frozen: tuple[Adapter, ...]
    beside: tuple[str, ...]  # what the frozen ones are called

    @property
    def name(self) -> str:
        return self.ancestor.name

    @property
    def template(self) -> Template | None:
        """The one that the adapter was trained with; None without a card."""
        return (self.continued or self.frozen[0]).template

    @property
    def start(self) -> str:
        """What the run begins with, in words: the first validation loss is of it."""
        if self.continued is None:
            return f"the base with {joined(self.beside)}"
        return f"{self.name} with {joined(self.beside)}" if self.beside else self.name

    @property
    def spec(self) -> LoraSpec | None:
        """The shape that the new adapter takes over; None where it has one of its own."""
        return None if self.continued is None else self.continued.files.spec

    def identity(self) -> list[str]:
        """What a checkpoint must agree on: how the adapter is used, its weights, those of the others in effect."""
        others = [adapter.weights_sha256 for adapter in self.frozen]
        return [self.ancestor.how, self.ancestor.weights_sha256, *others]


def find_on_top(config: FinetuneConfig, base: Path, say: Say) -> tuple[FinetuneConfig, OnTop | None]:
    """The adapter that a run begins with, checked against its base, and the settings that follow from it, said.

    Raises BadSetting for settings that contradict it, and what AdapterStore.find raises.
    """
    source = config.adapter_path.strip()
    if not source:
        return config, None
    _check_source(source)
    _check_output(source, config)
    store = AdapterStore(base, load_tokenizer(base), say=_unsaid)
    found = store.find(source, trusted=True)
    card = read_card(found.files.folder)
    together = [store.find(str(path), trusted=True) for path in _together(found, card, source)]
    ancestor = _ancestor(source, found, card, BESIDE if config.new_adapter else CONTINUED)
    frozen = (*([found] if config.new_adapter else []), *together)
    continued = None if config.new_adapter else found
    beside = tuple(needed.name for needed in asked_together(ancestor))
    on_top = OnTop(ancestor, card, continued, frozen, beside)
    _check_trainable([found.files, *(adapter.files for adapter in together)], base)
    if on_top.continued is not None:
        config = _taken_over(config, on_top.name, on_top.continued.files.spec, base)
    _check_together(config, on_top)
    for line in _lines(config, on_top):
        say(line)
    return config, on_top


def _check_source(source: str) -> None:
    """Raise BadSetting for what names no single adapter at its own strength, AdapterNotFound for what is not there."""
    try:
        check_given(source, ())
    except AdapterNotFound:
        if not is_url(source) and not Path(source).exists() and set(source) & set("+:"):
            raise BadSetting(
                f"adapter_path is {source!r}: name one adapter by its folder, archive or URL. It is trained on as it "
                "is, without a strength (:0.7) or others (+); alpaca.export merges several into a base of their own"
            ) from None
        raise


def _check_output(source: str, config: FinetuneConfig) -> None:
    """Raise BadSetting where the new adapter would take the old one's place, or lie in its folder."""
    if is_url(source):
        return
    output, given = Path(config.output_dir).resolve(), Path(source).resolve()
    if output == given or output.is_relative_to(given) or given.is_relative_to(output):
        where = "the folder of adapter_path itself" if output == given else f"not apart from adapter_path, {source!r}"
        raise BadSetting(
            f"output_dir is {config.output_dir!r}, {where}: the new adapter needs a folder of its own, and the old one "
            f"stays. Give --output_dir {given.name if given.is_dir() else 'lora'}-2"
        )


def _together(found: Adapter, card: Card | None, source: str) -> list[Path]:
    return [] if card is None else find_together(_place(found, source), WEIGHTS, card.on_top_of)


def _place(found: Adapter, source: str) -> Path:
    """Where others lie beside it: an archive's own place, not that of what was unpacked."""
    return found.files.folder if is_url(source) or Path(source).is_dir() else Path(source)


def _ancestor(source: str, found: Adapter, card: Card | None, how: str) -> Ancestor:
    path = Path(urlsplit(source).path) if is_url(source) else Path(source).resolve()
    name = path.name if path.is_dir() else _without_ending(path.name)
    sha256 = found.weights_sha256
    name = name if is_plain_name(name) and name.isprintable() else sha256[:12]
    if card is None:
        return Ancestor(name, how, sha256)
    rows, data = card.data.get("train"), card.data
    return Ancestor(
        name, how, sha256, card.base_model, card.base_fingerprint, _text(data.get("source")), _text(data.get("sha256")),
        rows if isinstance(rows, int) else None, _text(card.created), card.on_top_of,
    )  # fmt: skip


def _without_ending(name: str) -> str:
    for ending in (".tar.gz", *ARCHIVES):
        name = name.removesuffix(ending)
    return name[:100]


def _text(value: Any) -> str:
    """A line of a card, which may be a stranger's."""
    return value[:200] if isinstance(value, str) and value.isprintable() else ""


# --- what fits together -------------------------------------------------------------------------------------------
def _check_trainable(adapters: list[AdapterFiles], base: Path) -> None:
    """Raise BadAdapter for layers that the engine adapts and the training does not."""
    for files in adapters:
        if any(module.split(".")[-1] == HEAD for module in files.modules):
            raise BadAdapter(
                f"{files.folder.name} adapts the head ({HEAD}), which is not trained here. Merge it into a base of its "
                "own (python -m alpaca.export merged), and train on that"
            )
        resolve_targets(base, list(files.spec.target_modules))


def _taken_over(config: FinetuneConfig, name: str, spec: LoraSpec, base: Path) -> FinetuneConfig:
    """The settings with the adapter's shape. Raises BadSetting where another one was asked for."""
    taken: dict[str, Any] = {
        "lora_r": spec.r, "lora_alpha": spec.lora_alpha, "lora_target_modules": list(spec.target_modules),
        "use_rslora": spec.use_rslora, "use_dora": spec.use_dora,
    }  # fmt: skip
    for setting, value in taken.items():
        asked = getattr(config, setting)
        if config.asks_for(setting) and not _same(setting, asked, value, base):
            shown, there = (",".join(v) if isinstance(v, list) else v for v in (asked, value))
            raise BadSetting(
                f"{setting} is {shown}, and {name} has {there}: whoever goes on with an adapter keeps its shape. Leave "
                f"--{setting} out, or train a second one beside it with --new_adapter"
            )
    return dataclasses.replace(config, **taken)


def _same(setting: str, asked: Any, value: Any, base: Path) -> bool:
    if setting != "lora_target_modules":
        return bool(asked == value)
    linears = BaseShape(base).linears
    meant = (LoraSpec(1, 1, resolve_targets(base, names)).adapted(linears).keys() for names in (asked, value))
    return next(meant) == next(meant)


def _check_together(config: FinetuneConfig, on_top: OnTop) -> None:
    """Raise BadSetting for what the engine would not let answer together."""
    if not on_top.frozen:
        return
    dora = [name for name, adapter in zip(on_top.beside, on_top.frozen, strict=True) if adapter.files.spec.use_dora]
    if dora or config.use_dora:
        which = f"{dora[0]} is a DoRA adapter" if dora else "use_dora is True"
        raise BadSetting(f"{which}, and DoRA answers alone: two adapters that answer together must be plain LoRA")
    if len(on_top.frozen) >= MAX_ADAPTERS:
        raise BadSetting(
            f"{on_top.name} would be the {len(on_top.frozen)}th beside the new adapter, and at most {MAX_ADAPTERS} "
            "make an answer: merge some into a base of their own (python -m alpaca.export merged)"
        )


def choose_template(config: FinetuneConfig, on_top: OnTop, chosen: Template, say: Say) -> tuple[Template, str]:
    """The template and why it is that one. `chosen`: what the settings and the base come to.

    Raises BadSetting where the two adapters could not be asked together.
    """
    theirs = on_top.template
    if theirs is None:
        return chosen, f"{on_top.name} has no card that would name its own"
    if config.prompt_template_name == "auto":
        return theirs, f"{on_top.name} was trained with it"
    if wording(theirs) == wording(chosen):
        return chosen, ""
    differs = f"prompt_template_name is {chosen.name}, and {on_top.name} was trained with {theirs.name}"
    if on_top.frozen:
        raise BadSetting(
            f"{differs}: adapters with different templates don't answer together. Leave --prompt_template_name out"
        )
    say(tagged("warning", f"{differs}: what it learned may show less in other words"))
    return chosen, ""


# --- what is said -------------------------------------------------------------------------------------------------
def _lines(config: FinetuneConfig, on_top: OnTop) -> Iterator[str]:
    ancestor, spec = on_top.ancestor, on_top.spec
    yield tagged("on top of", f"{ancestor.line()}")
    if on_top.card is None:
        yield tagged("warning", f"{on_top.name} has no card: that it fits this base is known by names and shapes only")
    if spec is not None:
        what = f"rank {spec.r}, alpha {spec.lora_alpha:g}"
        what += ", rslora" * spec.use_rslora + ", DoRA" * spec.use_dora
        yield tagged("on top of", f"{what} on {', '.join(spec.target_modules)}: taken from {on_top.name}, as its "
                     "weights are trained further; the optimizer begins anew")  # fmt: skip
    if on_top.beside:
        yield tagged("on top of", f"{joined(on_top.beside)} in effect and not changed; only the new adapter is "
                     "trained, and they are asked together")  # fmt: skip
        own = spec.r if spec else config.lora_r
        columns = columns_taken(adapter.files for adapter in on_top.frozen) + round_up(own)
        if columns > COLUMNS:
            yield tagged("warning", f"together they take {columns} columns, more than the {COLUMNS} that a server has "
                         "unless told otherwise: raise MAX_LORA_COLUMNS there")  # fmt: skip


def held_out_before(on_top: OnTop, data_sha256: str, config: FinetuneConfig) -> str:
    """A warning where the adapter was trained on rows of the same file that this run holds out; "" where it wasn't."""
    card = on_top.card
    if card is None or card.data.get("sha256") != data_sha256:
        return ""
    if all(card.settings.get(name) == getattr(config, name) for name in ("seed", "val_set_size")):
        return ""
    return (
        f"{on_top.name} was trained on the same rows with another --seed or --val_set_size: it has seen some of those "
        "that are held out now, and their loss says too little"
    )


def on_top_of(card: Card) -> str:
    """A paragraph of the model card; "" for an adapter that was trained on the base alone."""
    ancestor = card.on_top_of
    if ancestor is None:
        return ""
    names = [needed.name for needed in asked_together(ancestor)]
    belongs = f" It belongs together with {joined(names)}: ask for them in one answer." if names else ""
    called = [f"beside_{number}" for number in range(1, len(names) + 1)]  # a folder's name may be none for PEFT
    load = [f'model.load_adapter("../{name}", "{call}")' for name, call in zip(names, called, strict=True)]
    load += [f"model.base_model.set_adapter({json.dumps(['default', *called])})"] if names else []
    code = "".join(f"\n    {line}" for line in load)
    peft = f" With PEFT, once it is loaded as below:\n{code}\n" if names else "\n"
    return f"\nIt was trained on top of an adapter: {ancestor.line()}.{belongs}{peft}"


def _unsaid(line: str) -> None:
    """What the store says of an adapter, the run says itself."""
