"""From a base's name and an adapter's to an engine that answers; every choice is said with its reason."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpaca.adapter.base_template import base_template
from alpaca.base.find import WEIGHTS, resolve_base
from alpaca.base.load import load_model, load_tokenizer
from alpaca.base.precision import choose_precision, quantised_by_engine
from alpaca.device import free_memory, pick_device
from alpaca.progress import Say
from alpaca.serving.adapters import AdapterStore
from alpaca.serving.cache import plan_cache
from alpaca.serving.decoder import Decoder, longest_context
from alpaca.serving.default import DefaultAdapter
from alpaca.serving.engine import Engine
from alpaca.serving.inputs import request_from_inputs
from alpaca.serving.kernels import open_kernels
from alpaca.serving.limits import EngineLimits, bytes_per_column, plan_columns

LEFT = {"cuda": 0, "cpu": 150_000_000}
"""Bytes that stay free for the steps: without them a small container thrashes, or is killed at its first request."""


@dataclass(frozen=True)
class LoadedBase:
    """A base in memory. One engine at a time may have it."""

    folder: Path
    model: Any
    tokenizer: Any
    bits: str | None = None
    """int8 or int4: the engine quantises the layers as it takes them over."""


def load_base(
    base_model: str | None = None, precision: str = "auto", *, weights_dir: Path = WEIGHTS, say: Say = print
) -> LoadedBase:
    """Find and load the base, saying which, in what precision, and why. Raises the errors of alpaca.base."""
    folder = resolve_base(base_model, weights_dir)
    device = pick_device()
    choice = choose_precision(folder, precision, device, serving=True)
    say(f"base: {folder.name} in {choice.precision} on {device} ({choice.reason})")
    bits = choice.precision if quantised_by_engine(choice.precision, device) else None
    return LoadedBase(
        folder, load_model(folder, "bf16" if bits else choice.precision, device), load_tokenizer(folder), bits
    )


def open_engine(
    base: LoadedBase, adapter: str | Path | None = None, *, limits: EngineLimits | None = None, say: Say = print
) -> Engine:
    """An engine for the base. `adapter` (a folder, archive or https URL) is for requests that name none.

    The template is the one an adapter was trained with, else the one that the base was tuned with here, else chat where
    it has a chat template, else alpaca.
    Raises the errors of alpaca.adapter, and NoRoom.
    """
    limits = limits or EngineLimits()
    store = AdapterStore(base.folder, base.tokenizer, roots=limits.roots, say=say)
    default = None if adapter is None else DefaultAdapter(str(adapter), store, say)
    template, reason = base_template(base.folder, base.tokenizer)
    say(f"adapter: {default.last.name if default else 'none'}")
    if default is not None and default.last.template is not None:
        say(f"template: {default.last.template.name} (the adapter was trained with it)")
    else:
        card = "" if default is None else "the adapter has no card; "
        say(f"template: {template.name} ({card}{reason})")
    decoder, plan = _make_room(base, limits, say)
    return Engine(
        decoder,
        plan,
        base.tokenizer,
        template,
        adapters=store,
        default=default,
        eos_ids=end_ids(base.model, base.tokenizer),
        separate=limits.separate,
        drafts=limits.drafts,
        patience=limits.patience,
        graphs=limits.graphs,
        say=say,
    )


def _make_room(base: LoadedBase, limits: EngineLimits, say: Say) -> tuple[Decoder, Any]:
    """The decoder with its room for adapters, and how much memory keys and values get of the rest."""
    model, config = base.model, base.model.config
    device, dtype = model.device, model.get_input_embeddings().weight.dtype
    kernels = open_kernels(config, dtype, device, limits.kernels, say)
    per_column = bytes_per_column(config, dtype, device, kernels=kernels is not None)
    columns = plan_columns(per_column, limits.columns, free_memory(device))
    longest = longest_context(config)
    decoder = Decoder(model, columns, min(longest, limits.context or longest), base.bits, kernels)
    plan = plan_cache(
        config,
        dtype,
        places=limits.concurrency,
        context=decoder.context,
        free=max(0, free_memory(device) - LEFT[device.type]),
        device=device,
    )
    say(f"adapters: room for {columns} ranks together, {columns * per_column / 1e9:.2f} GB")
    say(f"keys and values: {plan.reason}")
    return decoder, plan


def warm_up(engine: Engine, *, say: Say = print) -> None:
    """Answer once, so that the first client doesn't wait for what is made at first use, and faults show now."""
    started = time.perf_counter()
    try:
        for _ in engine.submit(request_from_inputs(prompt="Hello", max_tokens=2, temperature=0.0)):
            pass
    except BaseException:
        engine.close()
        raise
    say(f"warm-up: a prompt and two tokens in {time.perf_counter() - started:.2f} s")


def end_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end an answer, the tokenizer's EOS first; a chat base's settings may name several.

    Some settings name tokens that the base does not have; those can't be said.
    """
    ids = [tokenizer.eos_token_id]
    for config in (model.generation_config, model.config):
        named = getattr(config, "eos_token_id", None)
        ids += named if isinstance(named, list) else [named]
    vocabulary = len(model.get_input_embeddings().weight)
    return tuple(dict.fromkeys(i for i in ids if i is not None and 0 <= i < vocabulary))
