"""finetune.py where accelerate shards on a CPU as it does on GPUs. It leaves FSDP's settings aside when the processes
compute on a CPU; all that follows, its own code and torch's, works there over gloo."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

begin = AcceleratorState.__init__


def begin_sharded(self: Any, *args: Any, fsdp_plugin: Any = None, **options: Any) -> None:
    begin(self, *args, fsdp_plugin=fsdp_plugin, **options)
    if fsdp_plugin is not None:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP


if __name__ == "__main__":
    AcceleratorState.__init__ = begin_sharded
    from finetune import main

    main()
