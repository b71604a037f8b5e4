"""The adapter folder: PEFT's own files plus a card, written aside and renamed, and verified before it is trusted.

    adapter_config.json  adapter_model.safetensors   PEFT's format: any PEFT tool loads them
    alpaca.json                                      the card: what it was trained on, how, and what came of it
    README.md  report/                               the same for people

An adapter from elsewhere is a stranger: its configuration is parsed here, never handed to PEFT, because PEFT follows
regular expressions, layer replication and start-up decompositions that a configuration may ask for.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from alpaca.base import fingerprint as base_fingerprint
from alpaca.base import read_config, read_header, tensor_entries
from alpaca.errors import AdapterNotFound, BadAdapter, BadBase, WrongBase

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "alpaca.json"
PREFIX = "base_model.model."
MAX_RANK = 1024
MAX_JSON_BYTES = 1 << 20
MODULE_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
# Settings that change nothing in what a loaded adapter computes, and those that must be left at "nothing".
HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "fan_in_fan_out", "inference_mode", "lora_dropout",
    "megatron_core", "peft_type", "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type",
}  # fmt: skip
UNDERSTOOD = {
    "r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "bias",
    "init_lora_weights",
}  # fmt: skip
# Other ways to begin (PiSSA, OLoRA, CorDA, LoftQ, …) take something out of the base, which such an adapter then lacks.
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


# --- the configuration --------------------------------------------------------------------------------------------
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
        return next((rank for name, rank in self.rank_pattern.items() if _matches(module, name)), self.r)

    def scaling(self, module: str) -> float:
        """The factor on B·A: alpha / r, or alpha / sqrt(r) with rank-stabilised LoRA (arXiv:2312.03732)."""
        alpha = next((a for name, a in self.alpha_pattern.items() if _matches(module, name)), self.lora_alpha)
        rank = self.rank(module)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

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


def _matches(module: str, target: str) -> bool:
    return module == target or module.endswith("." + target)


def read_json_file(path: Path) -> dict[str, Any]:
    """A JSON object from an adapter's folder. Raises BadAdapter for anything else, and for over 1 MiB."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise BadAdapter(f"{path.name} has {path.stat().st_size} bytes; at most {MAX_JSON_BYTES} are read")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadAdapter(f"{path.name} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise BadAdapter(f"{path.name} holds a {type(content).__name__}, not an object")
    return content


def parse_config(config: dict[str, Any]) -> LoraSpec:
    """Check an adapter_config.json and keep what is understood. Raises BadAdapter naming the field and its value."""
    if config.get("peft_type") != "LORA":
        raise BadAdapter(f"peft_type is {config.get('peft_type')!r}: only LORA adapters are served")
    for key, value in config.items():
        if key in UNDERSTOOD or key in HARMLESS or value in (None, False, [], {}, ""):
            continue
        raise BadAdapter(f"{CONFIG} sets {key} = {str(value)[:80]!r}, which is not supported")
    if config.get("bias", "none") != "none":
        raise BadAdapter(f"bias is {str(config['bias'])[:80]!r}: only 'none' is supported")
    if config.get("init_lora_weights") not in PLAIN_STARTS:
        raise BadAdapter(
            f"init_lora_weights is {str(config['init_lora_weights'])[:80]!r}: it fits a changed base only. "
            "Save it with PEFT's path_initial_model_for_weight_conversion, which makes plain LoRA of it"
        )
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
    if not isinstance(pattern, dict) or len(pattern) > 100_000:
        raise BadAdapter(f"{key} must be an object of module names and numbers")
    return {_module_name(n.strip("^$"), key): _number(pattern, n, low, high, whole=whole) for n in pattern}


# --- the card -----------------------------------------------------------------------------------------------------
@dataclass
class Card:
    """What travels with an adapter (alpaca.json). All fields are plain JSON."""

    base_model: str
    base_fingerprint: str
    template: dict[str, Any]
    special_tokens: dict[str, int | None]
    data: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    losses: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    created: str = ""
    format: int = 1

    def write(self, folder: Path) -> None:
        text = json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=2, allow_nan=False)
        (folder / CARD).write_text(text + "\n", encoding="utf-8")


def read_card(folder: Path) -> Card | None:
    """The card of the adapter in `folder`, or None where it has none. Raises BadAdapter for a damaged one."""
    if not (folder / CARD).is_file():
        return None
    content = read_json_file(folder / CARD)
    if content.get("format") != 1:
        raise BadAdapter(f"{CARD} has format {str(content.get('format'))[:20]!r}; this version reads format 1")
    known = {f.name: content[f.name] for f in dataclasses.fields(Card) if f.name in content}
    wanted: dict[str, type] = {"base_model": str, "base_fingerprint": str, "template": dict, "special_tokens": dict}
    for name, kind in wanted.items():
        if not isinstance(known.get(name), kind):
            raise BadAdapter(f"{CARD}: {name} must be {kind.__name__}, not {type(known.get(name)).__name__}")
    return Card(**known)


# --- verify -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class AdapterFiles:
    """An adapter folder whose files were found to fit a base."""

    folder: Path
    spec: LoraSpec
    card: Card | None
    modules: tuple[str, ...]  # dotted names of the base's linear layers that the adapter changes

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS


def check_there(folder: Path) -> None:
    """Raise AdapterNotFound unless `folder` holds an adapter's two files."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            pickled = (folder / "adapter_model.bin").is_file()
            hint = "; adapter_model.bin is pickled and could run code: docs/migrating.md converts it" if pickled else ""
            raise AdapterNotFound(f"{folder} has no {name}: it is not an adapter folder{hint}")


def verify_files(folder: Path, base: Path) -> AdapterFiles:
    """Check an adapter folder against the base it is meant for, from headers alone; no tensor is loaded.

    Raises AdapterNotFound, BadAdapter (configuration, tensor names, shapes or dtypes), WrongBase (fingerprint).
    """
    check_there(folder)
    spec = parse_config(read_json_file(folder / CONFIG))
    card = read_card(folder)
    if card is not None and card.base_fingerprint != (found := base_fingerprint(base)):
        raise WrongBase(
            f"{folder} was trained on {card.base_model} (fingerprint {card.base_fingerprint}); "
            f"this base is {base.name} (fingerprint {found})"
        )
    shapes = _linear_shapes(base, spec)
    modules = tuple(sorted(m for m in shapes if any(_matches(m, t) for t in spec.target_modules)))
    unmatched = [t for t in spec.target_modules if not any(_matches(m, t) for m in modules)]
    if unmatched:
        raise BadAdapter(f"target_modules names {unmatched[0]!r}, which {base.name} does not have")
    _verify_tensors(folder, spec, {m: shapes[m] for m in modules})
    return AdapterFiles(folder, spec, card, modules)


def _linear_shapes(base: Path, spec: LoraSpec) -> dict[str, tuple[int, int]]:
    """Name → (out, in) of every two-dimensional weight of the base, but for the embeddings and the head."""
    config = read_config(base)
    shapes = {
        entry.name.removesuffix(".weight"): (entry.shape[0], entry.shape[1])
        for entry in tensor_entries(base)
        if len(entry.shape) == 2 and entry.name.endswith(".weight")
    }
    skipped = ("embed_tokens", *(() if not config.get("tie_word_embeddings") else ("lm_head",)))
    return {name: shape for name, shape in shapes.items() if not name.endswith(skipped)}


def _verify_tensors(folder: Path, spec: LoraSpec, modules: dict[str, tuple[int, int]]) -> None:
    expected: dict[str, tuple[int, ...]] = {}
    for module, (rows, columns) in modules.items():
        rank = spec.rank(module)
        expected[f"{PREFIX}{module}.lora_A.weight"] = (rank, columns)
        expected[f"{PREFIX}{module}.lora_B.weight"] = (rows, rank)
        if spec.use_dora:
            expected[f"{PREFIX}{module}.lora_magnitude_vector"] = (rows,)
    try:
        found = {entry.name: entry for entry in read_header(folder / WEIGHTS)}
        with safe_open(str(folder / WEIGHTS), framework="numpy"):  # holds offsets, shapes and dtypes against each other
            pass
    except BadBase as error:
        raise BadAdapter(error.message) from None
    except SafetensorError as error:
        raise BadAdapter(f"{folder / WEIGHTS} is not a whole safetensors file: {error}") from None
    for name in sorted(expected.keys() - found.keys())[:1]:
        lacking = len(expected.keys() - found.keys())
        raise BadAdapter(f"{WEIGHTS} lacks {lacking} of {len(expected)} tensors, {name} for one")
    for name in sorted(found.keys() - expected.keys())[:1]:
        raise BadAdapter(f"{WEIGHTS} has a tensor {name[:120]!r} that its configuration does not name")
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise BadAdapter(f"{WEIGHTS}: {name} has shape {found[name].shape}, the base needs {shape}")
        if found[name].dtype not in ("F32", "F16", "BF16"):
            raise BadAdapter(f"{WEIGHTS}: {name} is {found[name].dtype}; F32, F16 or BF16 is expected")


def load_tensors(files: AdapterFiles) -> dict[str, torch.Tensor]:
    """The adapter's tensors on the CPU, by name. Raises BadAdapter for a value that is not finite."""
    import torch
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = load_file(str(files.weights))
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise BadAdapter(f"{WEIGHTS}: {name} holds values that are not finite")
    return tensors


def load_adapter(
    model: PreTrainedModel,
    files: AdapterFiles,
    *,
    name: str = "default",
    tensors: dict[str, torch.Tensor] | None = None,
) -> PeftModel:
    """Put a verified adapter on a loaded base (or beside others on a PeftModel) and return the PEFT model.

    `tensors`: what load_tensors gave, where the caller has it; else the file is read.
    """
    from peft import PeftModel, get_peft_model, set_peft_model_state_dict

    config = files.spec.peft_config(str(getattr(model, "name_or_path", "")))
    if isinstance(model, PeftModel):
        model.add_adapter(name, config)
    else:
        model = get_peft_model(model, config, adapter_name=name)  # type: ignore[assignment]
    state = load_tensors(files) if tensors is None else tensors
    result: Any = set_peft_model_state_dict(model, state, adapter_name=name)
    if result.unexpected_keys:
        raise BadAdapter(f"{WEIGHTS}: {result.unexpected_keys[0]} found no place in the base")
    model.requires_grad_(False)
    return model.eval()


def changed_modules(tensors: dict[str, torch.Tensor]) -> int:
    """How many modules the adapter changes: those whose B is not all zero."""
    return sum(1 for name, t in tensors.items() if name.endswith("lora_B.weight") and bool(t.any()))
