"""An adapter whose numbers run out of range harms nobody but those who ask for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from alpaca.errors import AlpacaError
from alpaca.serving.inputs import request_from_inputs
from alpaca.serving.limits import EngineLimits
from alpaca.serving.loading import load_base, open_engine
from tests.serving.oracle import Oracle
from tests.serving.peft_adapters import make_adapter

CHANGES: dict[str, tuple[Callable[[str, torch.Tensor], Any], dict[str, Any]]] = {
    "large A": (lambda name, t: t.fill_(3e38) if "lora_A" in name else None, {}),
    "large B": (lambda name, t: t.fill_(3e38) if "lora_B" in name else None, {"lora_alpha": 1000}),
    "large keys and values": (
        lambda name, t: t.fill_(1e37) if "lora_B" in name else None,
        {"target_modules": ["k_proj", "v_proj"]},
    ),
    "large hidden state": (
        lambda name, t: t.mul_(1e9),
        {"target_modules": ["o_proj", "down_proj", "gate_proj", "up_proj"]},
    ),
    "dora, large magnitude": (
        lambda name, t: t.fill_(3e38) if "magnitude" in name else None,
        {"use_dora": True, "target_modules": ["v_proj"]},
    ),
}


@pytest.mark.parametrize("kind", list(CHANGES))
def test_an_adapter_out_of_range_harms_nobody_else(tiny_base: Path, tmp_path: Path, kind: str) -> None:
    change, settings = CHANGES[kind]
    make_adapter(tiny_base, tmp_path / "good", seed=1)
    bad = make_adapter(tiny_base, tmp_path / "bad", seed=2, **settings)
    tensors = load_file(bad / "adapter_model.safetensors")
    for name, tensor in tensors.items():
        change(name, tensor)
    save_file(tensors, bad / "adapter_model.safetensors", metadata={"format": "pt"})
    oracle = Oracle(tiny_base, tmp_path)
    limits = EngineLimits(concurrency=3, roots=(tmp_path,))
    engine = open_engine(load_base(str(tiny_base), "fp32", say=lambda line: None), limits=limits, say=lambda line: None)

    def submit(prompt: str, adapter: str, length: int = 24) -> Any:
        return engine.submit(request_from_inputs(prompt=prompt, adapter=adapter, temperature=0.0, max_tokens=length))

    def text(stream: Any) -> str:
        return "".join(chunk.text for chunk in stream)

    # side by side in one step
    hostile = submit("hay " * 50, "bad", 200)
    others = [submit("hay", "good"), submit("grass", "none")]
    assert [text(stream) for stream in others] == [oracle.chat("hay", "good"), oracle.chat("grass")]
    for stream in [hostile, *(submit("hay " * 50, "bad", 60) for _ in range(3))]:  # fills every slot
        with contextlib.suppress(AlpacaError):
            text(stream)
    # afterwards, in the slots it used: a short answer beside a long one
    prompts = ["hay", "the herd " * 60, "grass"]
    streams = [submit(prompt, "none", 60) for prompt in prompts]
    assert [text(stream) for stream in streams] == [oracle.chat(prompt, max_tokens=60) for prompt in prompts]
    engine.close()
