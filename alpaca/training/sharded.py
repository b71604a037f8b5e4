"""A model sharded over the processes by FSDP2, which accelerate launch switches on: what is trained of it, and the
optimizer's state, gathered as one process would have them and given back. So a checkpoint is a few files of process 0,
however many processes there are."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from alpaca.base.precision import Choice, native_precision
from alpaca.errors import BadSetting
from alpaca.progress import processes

GATHERED = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
GIVEN = StateDictOptions(full_state_dict=True, strict=False, ignore_frozen_params=True)


def choose_precision(wanted: str, device: Any) -> Choice:
    """How the weights of a sharded base are held. Raises BadSetting for a precision that can't be sharded."""
    if wanted in ("int8", "nf4"):
        raise BadSetting(
            f"quantization is {wanted!r}, which FSDP can't shard: give --quantization bf16, or start without FSDP "
            "(torchrun), where every process holds the whole base"
        )
    if wanted != "auto":
        return Choice(wanted, "as asked")
    return Choice(native_precision(device), f"each of the {processes()} processes holds its share of the base")


def check_version(plugin: Any) -> None:
    """Raise BadSetting for the first version of FSDP, which is not taken. `plugin`: accelerate's settings of FSDP."""
    if plugin.fsdp_version != 2:
        raise BadSetting(
            f"fsdp_version is {plugin.fsdp_version}: give accelerate fsdp_version 2, as deploy/fsdp2.yaml has it"
        )


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The weights that are trained, whole and on the CPU, for process 0; nothing for the others, who must ask too."""
    gathered: Any = get_model_state_dict(model, options=GATHERED)
    return dict(gathered)


def load_trained(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Give every process its share of whole weights, which all of them have."""
    set_model_state_dict(model, {**state}, options=GIVEN)


def optimizer_state(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    """The optimizer's state, whole and on the CPU, for process 0; nothing for the others, who must ask too."""
    return dict(get_optimizer_state_dict(model, optimizer.optimizer, options=GATHERED))


def load_optimizer(model: nn.Module, optimizer: Any, state: dict[str, Any]) -> None:
    """Give every process its share of a whole state, which all of them have."""
    set_optimizer_state_dict(model, optimizer.optimizer, state, options=GIVEN)
