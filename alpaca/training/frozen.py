"""The adapter that a run begins with, on the model: its weights in the adapter that is trained, or frozen beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alpaca.adapter.folder import load_adapter, load_tensors
from alpaca.training.ancestor import OnTop

if TYPE_CHECKING:
    from peft import PeftModel

TRAINED = "default"  # PEFT's name for the adapter that is trained


def put_on_top(peft: PeftModel, on_top: OnTop) -> None:
    """Give the adapter that is trained the weights it goes on with, and put the frozen ones beside it."""
    from peft import set_peft_model_state_dict

    if on_top.continued is not None:
        set_peft_model_state_dict(peft, load_tensors(on_top.continued.files))
    trained = [weight for weight in peft.parameters() if weight.requires_grad]
    for name, adapter in zip(frozen_names(on_top), on_top.frozen, strict=True):
        load_adapter(peft, adapter.files, name=name)  # type: ignore[arg-type]
    activate(peft, on_top, TRAINED)
    peft.requires_grad_(False)
    for weight in trained:
        weight.requires_grad_(True)
    peft.train()


def frozen_names(on_top: OnTop | None) -> list[str]:
    """What PEFT calls the adapters that stay as they are."""
    return [] if on_top is None else [f"frozen_{number}" for number in range(len(on_top.frozen))]


def activate(peft: PeftModel, on_top: OnTop | None, name: str) -> None:
    """Let the adapter called `name` answer, together with the frozen ones."""
    tuner: Any = peft.base_model
    tuner.set_adapter([*frozen_names(on_top), name])
