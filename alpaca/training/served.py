"""What is trained can be served, or the plan says before training what can't be, and where else it runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from alpaca.adapter.lora_config import LoraSpec
from alpaca.base.skeleton import model_config
from alpaca.errors import BadBase

HIGH_RANK = 32  # from which on rank-stabilised scaling is much stronger than the plain one
ELSEWHERE = "An adapter of it runs with transformers and PEFT, or merged, wherever the base itself runs"


def unserved(base: Path) -> str:
    """Why the engine would refuse the base; empty where it serves it."""
    from alpaca.serving.decoder import check_family

    try:
        check_family(model_config(base))
    except BadBase as error:
        return error.message
    return ""


def serving_notes(base: Path, spec: LoraSpec) -> Iterator[str]:
    """What a person should know of an adapter before it is trained. Figures: PEFT's published comparison of methods
    (Llama-3.2-3B on MetaMathQA, 2026): r 64 with and without rank stabilisation; DoRA against LoRA at r 32."""
    if reason := unserved(base):
        yield f"this engine won't serve what is trained: {reason}. {ELSEWHERE}; there is no report either"
    if spec.use_dora:
        yield (
            "--use_dora: vLLM refuses DoRA adapters; this engine serves them on a base held in bf16 or fp32, at scale "
            "0 or 1. It takes about a quarter more time, and in PEFT's comparison it was no better than LoRA"
        )
    if spec.use_rslora and spec.r >= HIGH_RANK:
        yield (
            f"--use_rslora at rank {spec.r}: in PEFT's comparison (rank 64) it learned more and forgot about twice as "
            "much as the plain scale; the report measures both, and serving can scale an adapter down"
        )
