"""How much the engine may take: set by the operator in the environment, else from the memory there is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alpaca.errors import BadSetting
from alpaca.serving.cache import head_dim
from alpaca.serving.lora import PAGE
from alpaca.serving.projection import alone_apart

QUEUE_SECONDS = 120
"""How long clients of a server wait for their turn, unless the operator says otherwise."""
COLUMNS = 256
"""Ranks of adapters in memory together, unless memory is short: sixteen adapters of rank 16."""
COLUMNS_SHARE = 0.1  # of the free memory


@dataclass(frozen=True)
class EngineLimits:
    """None leaves a size to the base and to the free memory."""

    concurrency: int | None = None
    """Answers made at the same time (MAX_CONCURRENCY)."""
    patience: float | None = None
    """Seconds that a request waits for its turn (QUEUE_SECONDS); None is for ever."""
    context: int | None = None
    """Tokens of a prompt and its answer together (MAX_CONTEXT)."""
    columns: int | None = None
    """Ranks of all adapters in memory together (MAX_LORA_COLUMNS)."""
    roots: tuple[Path, ...] = ()
    """Where requests may name adapters (ADAPTER_FOLDERS, with colons between): what lies directly in these folders. One
    may end in a pattern for names, such as lora-*."""

    separate: bool = False
    """Requests share nothing that was computed, so that the time an answer takes tells nothing of another client's
    prompt (SEPARATE_REQUESTS)."""
    graphs: bool | None = None
    """Whether decoding steps have fixed shapes and are replayed from graphs: None where the base is on a GPU, False
    nowhere (GRAPHS=0), True also on a CPU, one operation at a time."""
    drafts: bool = True
    """Next tokens are guessed, and several checked in one step (DRAFTS)."""
    kernels: bool = True
    """A step's operations are compiled for the processor, where the base is on a CPU (KERNELS)."""

    @classmethod
    def from_environment(cls, project: Path) -> EngineLimits:
        """`project`: where ADAPTER_FOLDERS is not set, its folder adapters/ and what is called lora-… in it, so that
        nothing else of a project can be named. Raises BadSetting for a value that is no number, or out of range."""
        folders = os.environ.get("ADAPTER_FOLDERS", os.pathsep.join(map(str, default_roots(project))))
        return cls(
            concurrency=_number("MAX_CONCURRENCY", 1, 256),
            patience=_number("QUEUE_SECONDS", 1, 86_400) or QUEUE_SECONDS,
            context=_number("MAX_CONTEXT", 16, 10_000_000),
            columns=_number("MAX_LORA_COLUMNS", PAGE, 65_536),
            roots=tuple(Path(folder) for folder in folders.split(os.pathsep) if folder),
            separate=_number("SEPARATE_REQUESTS", 0, 1) == 1,
            graphs=False if _number("GRAPHS", 0, 1) == 0 else None,
            drafts=_number("DRAFTS", 0, 1) != 0,
            kernels=_number("KERNELS", 0, 1) != 0,
        )


def default_roots(project: Path) -> tuple[Path, ...]:
    """Where the adapters of a project are."""
    return project / "adapters", project / "lora-*"


def plan_columns(per_column: int, wanted: int | None, free: int) -> int:
    """Rank columns to set aside, a multiple of 16, and at least 16; `per_column`: bytes of each."""
    count = wanted or min(COLUMNS, int(free * COLUMNS_SHARE) // per_column)
    return max(PAGE, count // PAGE * PAGE)


def bytes_per_column(config: Any, dtype: torch.dtype, device: torch.device, *, kernels: bool = False) -> int:
    """What one rank of every linear layer takes; see Projection for its matrices. `kernels`: whether there are any."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * head_dim(config)
    both = queries + 2 * config.num_key_value_heads * head_dim(config)
    down, up = dtype.itemsize, dtype.itemsize + 4 * (alone_apart(dtype, device) and not kernels)
    layer = 3 * (hidden * down + both * up) + (queries * down + hidden * up)
    layer += 2 * (hidden * down + 2 * inner * up) + (inner * down + hidden * up)
    head = 0 if config.tie_word_embeddings else hidden * down + config.vocab_size * up
    return int(layer * config.num_hidden_layers + head)


def _number(name: str, low: int, high: int) -> int | None:
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    if not text.isdecimal() or not low <= int(text) <= high:
        raise BadSetting(f"{name} is {text!r}: it must be a whole number from {low:,} to {high:,}")
    return int(text)
