"""An adapter's configuration, as much of it as is served.

A stranger's adapter_config.json is parsed here, never handed to PEFT, because PEFT follows regular expressions, layer
replication and start-up decompositions that a configuration may ask for.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from alpaca.errors import BadAdapter

if TYPE_CHECKING:
    from peft import LoraConfig

Shape = tuple[int, int]  # of a linear layer: (out, in)
CONFIG = "adapter_config.json"
MAX_RANK = 1024
MAX_JSON_BYTES = 1 << 20
MAX_NESTED = 100_000  # lists and objects in one JSON: a MiB of empty ones would be fifty of memory
MAX_PATTERNS = 20_000
MODULE_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
# Settings that change nothing in what a loaded adapter computes, and those that must be left at "nothing".
HARMLESS = {
    "base_model_name_or_path", "eva_config", "fan_in_fan_out", "inference_mode", "lora_dropout",
    "megatron_core", "peft_type", "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type",
}  # fmt: skip
UNDERSTOOD = {
    "r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "bias",
    "init_lora_weights",
}  # fmt: skip
# Other ways to begin (PiSSA, OLoRA, CorDA, LoftQ, …) take something out of the base, which such an adapter then lacks.
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class LoraSpec:
    """What an adapter's configuration may say, and nothing else."""

    r: int
    lora_alpha: float
    target_modules: tuple[str, ...]
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    use_rslora: bool = False
    use_dora: bool = False

    def rank(self, module: str) -> int:
        """The rank of `module` (dotted name in the base)."""
        return _first(self.rank_pattern, module, self.r)

    def scaling(self, module: str) -> float:
        """The factor on B·A: alpha / r, or alpha / sqrt(r) with rank-stabilised LoRA (arXiv:2312.03732)."""
        alpha = _first(self.alpha_pattern, module, self.lora_alpha)
        rank = self.rank(module)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def adapted(self, linears: Mapping[str, Shape]) -> dict[str, Shape]:
        """Those of a base's linear layers, name → (out, in), that the target modules name."""
        targets = set(self.target_modules)
        return {module: shape for module, shape in linears.items() if not targets.isdisjoint(names_of(module))}

    def count_weights(self, linears: Mapping[str, Shape]) -> int:
        """How many numbers are trained: rank · (in + out) of every adapted layer, and DoRA's magnitude per output."""
        return sum(
            self.rank(module) * (rows + columns) + (rows if self.use_dora else 0)
            for module, (rows, columns) in self.adapted(linears).items()
        )

    def peft_config(self, base_name: str = "") -> LoraConfig:
        """A configuration of our own making for PEFT, with nothing of the stranger's file but checked values."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.r,
            lora_alpha=self.lora_alpha,  # type: ignore[arg-type]  # PEFT takes fractions, whatever it declares
            target_modules=list(self.target_modules),
            rank_pattern={re.escape(k): v for k, v in self.rank_pattern.items()},
            alpha_pattern={re.escape(k): v for k, v in self.alpha_pattern.items()},
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
            base_model_name_or_path=base_name,
            inference_mode=True,
            task_type="CAUSAL_LM",
        )


Number = TypeVar("Number", int, float)


def _first(pattern: Mapping[str, Number], module: str, default: Number) -> Number:
    """The number of the first name in `pattern` that means `module`, as PEFT chooses it."""
    hits = {name for name in names_of(module) if name in pattern}
    return next((pattern[name] for name in pattern if name in hits), default) if hits else default


def names_of(module: str) -> Iterator[str]:
    """What a configuration may call `module`: its dotted name, and that without the parts in front."""
    yield module
    while (dot := module.find(".")) >= 0:
        module = module[dot + 1 :]
        yield module


def read_json_file(path: Path) -> dict[str, Any]:
    """A JSON object from an adapter's folder. Raises BadAdapter for anything else, and for over 1 MiB."""
    with path.open("rb") as handle:
        content = handle.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise BadAdapter(f"{path.name} has {path.stat().st_size} bytes; at most {MAX_JSON_BYTES} are read")
    return parse_json(content, path.name)


def parse_json(content: bytes, where: str) -> dict[str, Any]:
    if content.count(b"[") + content.count(b"{") > MAX_NESTED:
        raise BadAdapter(f"{where} is not valid JSON: over {MAX_NESTED:,} lists and objects")
    try:
        parsed = json.loads(content.decode("utf-8"), object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise BadAdapter(f"{where} is not valid JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise BadAdapter(f"{where} holds a {type(parsed).__name__}, not an object")
    return parsed


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Readers differ in which of two equal keys they take, so what one checks another would not use."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        double = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {double[:80]!r} is there twice")
    return found


def parse_config(config: dict[str, Any]) -> LoraSpec:
    """Check an adapter_config.json and keep what is understood. Raises BadAdapter naming the field and its value."""
    if config.get("peft_type") != "LORA":
        raise BadAdapter(f"peft_type is {config.get('peft_type')!r}: only LORA adapters are served")
    for key, value in config.items():
        if key in UNDERSTOOD or key in HARMLESS or key == "auto_mapping" or value in (None, False, [], {}, ""):
            continue
        if key == "modules_to_save":
            raise BadAdapter(
                f"modules_to_save is {str(value)[:80]!r}: the adapter brings whole layers of its own, and only LoRA is "
                "served. Merge it into its base (PEFT's merge_and_unload), and serve what comes of it as a base"
            )
        raise BadAdapter(f"{CONFIG} sets {key[:80]!r} = {str(value)[:80]!r}, which is not supported")
    if config.get("bias", "none") != "none":
        raise BadAdapter(f"bias is {str(config['bias'])[:80]!r}: only 'none' is supported")
    if config.get("init_lora_weights") not in PLAIN_STARTS:
        raise BadAdapter(
            f"init_lora_weights is {str(config['init_lora_weights'])[:80]!r}: it fits a changed base only. "
            "Save it with PEFT's path_initial_model_for_weight_conversion, which makes plain LoRA of it"
        )
    _check_auto_mapping(config.get("auto_mapping"))
    if config.get("fan_in_fan_out"):
        raise BadAdapter("fan_in_fan_out is true: LLaMA models have no such layers")
    targets = config.get("target_modules")
    if not isinstance(targets, list) or not 1 <= len(targets) <= 100_000:
        raise BadAdapter(f"target_modules must be a list of module names, not {str(targets)[:80]!r}")
    return LoraSpec(
        r=_number(config, "r", 1, MAX_RANK, whole=True),
        lora_alpha=_number(config, "lora_alpha", 0, 1e6),
        target_modules=tuple(sorted(_module_name(name, "target_modules") for name in targets)),
        rank_pattern=_pattern(config, "rank_pattern", 1, MAX_RANK, whole=True),
        alpha_pattern=_pattern(config, "alpha_pattern", 0, 1e6),
        use_rslora=_flag(config, "use_rslora"),
        use_dora=_flag(config, "use_dora"),
    )


def _check_auto_mapping(mapping: Any) -> None:
    """PEFT notes the base's class here, and imports it when asked to; what is no class of transformers is refused."""
    if not mapping:
        return
    library = mapping.get("parent_library") if isinstance(mapping, dict) else None
    if not isinstance(library, str) or not library.startswith("transformers."):
        raise BadAdapter(f"auto_mapping is {str(mapping)[:80]!r}: it may only name a class of transformers")


def _number(config: dict[str, Any], key: str, low: float, high: float, *, whole: bool = False) -> Any:
    value = config.get(key)
    right_type = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not right_type or not low <= value <= high:  # type: ignore[operator]
        raise BadAdapter(f"{key} is {str(value)[:80]!r}: a {'whole ' if whole else ''}number from {low} to {high}")
    return value


def _flag(config: dict[str, Any], key: str) -> bool:
    value = config.get(key) or False
    if not isinstance(value, bool):
        raise BadAdapter(f"{key} is {str(value)[:80]!r}: true or false")
    return value


def _module_name(name: Any, key: str) -> str:
    if not isinstance(name, str) or len(name) > 200 or not MODULE_NAME.fullmatch(name):
        raise BadAdapter(f"{key} names {str(name)[:80]!r}: only plain module names are accepted, no patterns")
    return name


def _pattern(config: dict[str, Any], key: str, low: float, high: float, *, whole: bool = False) -> dict[str, Any]:
    pattern = config.get(key) or {}
    if not isinstance(pattern, dict) or len(pattern) > MAX_PATTERNS:
        raise BadAdapter(f"{key} must be an object of at most {MAX_PATTERNS:,} module names and numbers")
    return {_module_name(n.strip("^$"), key): _number(pattern, n, low, high, whole=whole) for n in pattern}
