"""Run by torchrun: a model sharded by FSDP2 over two processes against the whole one, where the base teaches a row of
the first process and none of the second, or all weights are trained. Prints what differs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from alpaca.packed.batch import collate
from alpaca.packed.model import PackedModel
from alpaca.packed.packing import Pack
from alpaca.packed.taught import collate_taught
from alpaca.training.config import FinetuneConfig
from alpaca.training.fit import build_model
from alpaca.training.plan import Plan, make_plan

CPU = torch.device("cpu")


def build(plan: Plan) -> PackedModel:
    """The model with a B that is not zero, the same each time."""
    model = build_model(plan)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.05, generator=generator)
    return model


def inputs(pack: Pack, plan: Plan) -> dict[str, Any]:
    """What both processes give the model at the same time."""
    given = collate(pack, plan.examples).inputs(CPU)
    if plan.taught is None:
        return given
    return given | {"taught": collate_taught(pack, plan.examples, *plan.taught).inputs(CPU)}


def main(base: str, rows: str, kind: str) -> None:
    dist.init_process_group("gloo")
    rank, processes = dist.get_rank(), dist.get_world_size()
    plan = make_plan(
        FinetuneConfig(base_model=base, data_path=rows, quantization="fp32", finetuning_type=kind), lambda line: None
    )
    whole, sharded = build(plan), build(plan)
    mesh = init_device_mesh("cpu", (processes,))
    for layer in sharded.base.get_decoder().layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    replayed = len(plan.train.examples)
    batches = [inputs(pack, plan) for pack in ((0, 1, replayed), (3, 4, 5))]
    loss = sharded(**batches[rank])
    loss.backward()
    for number, batch in enumerate(batches):
        expected = whole(**batch)
        (expected / processes).backward()
        if number == rank:
            torch.testing.assert_close(loss.detach(), expected.detach())
    wanted = {name: p.grad for name, p in whole.named_parameters() if p.grad is not None}
    got = {name: p.grad.full_tensor() for name, p in sharded.named_parameters() if p.grad is not None}
    torch.testing.assert_close(got, wanted)
    if rank == 0:
        print(f"{len(got)} gradients equal")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
