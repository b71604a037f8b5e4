"""Whether a base can be trained, and its adapter used afterwards, before rows are read and weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from alpaca.adapter.folder import BaseShape
from alpaca.adapter.lora_config import names_of
from alpaca.base.skeleton import skeleton
from alpaca.errors import BadBase
from alpaca.packed.model import check_head
from alpaca.training.preflight import resolve_targets

HOW = "or adapt others: --lora_target_modules q_proj,k_proj,v_proj,o_proj"


def check_trainable(base: Path, wanted: Sequence[str]) -> None:
    """Raise BadBase unless the layers to adapt are the same in the base's files and in the model made of them.

    An adapter is verified against the files (`alpaca/adapter/folder.py`): one of other layers would be refused once it
    is trained.
    """
    model = skeleton(base)
    check_head(model)
    targets = set(resolve_targets(base, wanted))
    filed, built = (
        {name: shape for name, shape in shapes.items() if not targets.isdisjoint(names_of(name))}
        for shapes in (BaseShape(base).linears, _linears(model))
    )
    if unknown := filed.keys() - built.keys():
        raise BadBase(
            f"{base} has {len(unknown)} matrices, {min(unknown)} for one, which the model of its config.json does not "
            f"have as linear layers (experts may be joined into one). Take both from the same release, {HOW}"
        )
    if lacking := built.keys() - filed.keys():
        raise BadBase(
            f"{base} lacks {len(lacking)} of the matrices that its config.json asks for, {min(lacking)} for one. Take "
            "both from the same release"
        )
    for name, shape in built.items():
        if filed[name] != shape:
            raise BadBase(f"{base}: {name} has shape {filed[name]}, its config.json says {shape}")


def _linears(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Name → (out, in)."""
    linears = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return {name: (module.out_features, module.in_features) for name, module in linears}
