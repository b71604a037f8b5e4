"""The trial: the largest micro-batch of a run goes first, so that memory that is too short shows at once and not in
the third hour. It leaves nothing behind: a run with it is, bit for bit, the run without it."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from alpaca.device import peak_memory
from alpaca.packed.packing import Step
from alpaca.progress import Say
from alpaca.training.memory import explain_memory
from alpaca.training.preflight import largest_pack
from alpaca.training.trainer import PackedTrainer
from alpaca.words import tagged


def try_largest(trainer: PackedTrainer, steps: Sequence[Step], say: Say) -> float | None:
    """Forward and backward of the largest micro-batch, with room held for the optimizer's two moments; no step is
    taken. Returns the seconds it took, None where it can't be tried. Raises OutOfMemory."""
    if trainer.is_fsdp_enabled:  # a sharded model is whole only inside training
        return None
    device, started = trainer.args.device, time.monotonic()
    pack = largest_pack(steps, trainer.examples, trainer.args.process_index)
    lengths = [len(trainer.examples[index]) for index in pack]
    tokens = sum(lengths)
    model = trainer.packed
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    training, less = model.training, trainer.tuning.beside_memory
    say(tagged("trial", f"the largest micro-batch first: {tokens} tokens, the longest example {max(lengths)}"))
    with torch.random.fork_rng([device] if device.type == "cuda" else []), explain_memory(tokens, less):
        moments = [torch.ones_like(weight) for weight in weights for _ in range(2)]
        try:
            model.train()
            begun = time.monotonic()
            model(**trainer.inputs(pack, beside=[pack])).backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds = time.monotonic() - begun
        finally:
            model.train(training)
            for weight in weights:
                weight.grad = None
            del moments
    say(tagged("trial", f"{time.monotonic() - started:.1f} s, {peak_memory(device) / 1e9:.1f} GB at the peak"))
    return seconds
