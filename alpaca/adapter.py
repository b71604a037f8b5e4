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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import SafetensorError, safe_open

from alpaca.base import fingerprint as base_fingerprint
from alpaca.base import read_config, tensor_entries
from alpaca.errors import AdapterChanged, AdapterNotFound, BadAdapter, WrongBase

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "alpaca.json"
PREFIX = "base_model.model."
MAX_RANK = 1024
MAX_JSON_BYTES = 1 << 20
MAX_HEADER_BYTES = 1 << 20, 1 << 10  # of adapter_model.safetensors: for its metadata, and for each expected tensor
MAX_NESTED = 100_000  # lists and objects in one JSON: a MiB of empty ones would be fifty of memory
MAX_PATTERNS = 20_000
MAX_NAME, MAX_PROMPT = 200, 20_000  # characters that a card may spend on a name, and on a piece of its template
MODULE_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
# Settings that change nothing in what a loaded adapter computes, and those that must be left at "nothing".
HARMLESS = {
    "base_model_name_or_path", "fan_in_fan_out", "inference_mode", "lora_dropout",
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
        return _first(self.rank_pattern, module, self.r)

    def scaling(self, module: str) -> float:
        """The factor on B·A: alpha / r, or alpha / sqrt(r) with rank-stabilised LoRA (arXiv:2312.03732)."""
        alpha = _first(self.alpha_pattern, module, self.lora_alpha)
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


Number = TypeVar("Number", int, float)


def _first(pattern: Mapping[str, Number], module: str, default: Number) -> Number:
    """The number of the first name in `pattern` that means `module`, as PEFT chooses it."""
    hits = {name for name in _names_of(module) if name in pattern}
    return next((pattern[name] for name in pattern if name in hits), default) if hits else default


def _names_of(module: str) -> Iterator[str]:
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
    return _parse_json(content, path.name)


def _parse_json(content: bytes, where: str) -> dict[str, Any]:
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
    for f in dataclasses.fields(Card):
        needed = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if f.name in content or needed:
            _check_field(f.name, content.get(f.name), str(f.type))
    card = Card(**{f.name: content[f.name] for f in dataclasses.fields(Card) if f.name in content})
    if len(card.special_tokens) > 20:
        raise BadAdapter(f"{CARD}: special_tokens has {len(card.special_tokens)} entries; at most 20")
    for name, token in card.special_tokens.items():
        if token is not None and (not isinstance(token, int) or isinstance(token, bool)):
            raise BadAdapter(f"{CARD}: special_tokens holds {name[:20]!r}: {str(token)[:20]!r}, which is no token's id")
    for name, text in card.template.items():
        limit = MAX_NAME if name == "name" else MAX_JSON_BYTES if name == "chat_template" else MAX_PROMPT
        if isinstance(text, str) and len(text) > limit:
            raise BadAdapter(f"{CARD}: the template's {name[:40]!r} has {len(text):,} characters; at most {limit:,}")
        if name == "name" and isinstance(text, str) and not text.isprintable():
            raise BadAdapter(f"{CARD}: the template's name must be one line")
    return card


def _check_field(name: str, value: Any, kind: str) -> None:
    wanted = {"str": str, "int": int}.get(kind, dict)
    if not isinstance(value, wanted):
        raise BadAdapter(f"{CARD}: {name} must be {wanted.__name__}, not {type(value).__name__}")
    if isinstance(value, str) and (len(value) > MAX_NAME or not value.isprintable()):
        raise BadAdapter(f"{CARD}: {name} must be one line of at most {MAX_NAME} characters")


def check_special_tokens(card: Card, tokenizer: Any) -> None:
    """Raise WrongBase where the card's EOS or BOS is not the tokenizer's: an answer would not end, a prompt differ."""
    for name in ("eos", "bos"):
        ours, theirs = getattr(tokenizer, f"{name}_token_id"), card.special_tokens.get(name)
        if name in card.special_tokens and ours != theirs:
            raise WrongBase(
                f"it was trained with {name.upper()} {theirs}, this base's tokenizer has {name.upper()} {ours}: "
                "use the tokenizer it was made for"
            )


# --- verify -------------------------------------------------------------------------------------------------------
Stamp = tuple[tuple[int, int, int] | None, ...]


def stamp(*files: Path) -> Stamp:
    """What tells from outside that files were changed: time (ns), size and inode of each, None where there is none."""
    found: list[tuple[int, int, int] | None] = []
    for file in files:
        try:
            status = file.stat()
            found.append((status.st_mtime_ns, status.st_size, status.st_ino))
        except OSError:
            found.append(None)
    return tuple(found)


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter folder whose files were found to fit a base."""

    folder: Path
    spec: LoraSpec
    card: Card | None
    modules: tuple[str, ...]  # dotted names of the base's linear layers that the adapter changes
    stamp: Stamp  # of the three files when they were checked

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS

    def changed(self) -> bool:
        """Whether the files are no longer those that were checked."""
        return stamp(*parts(self.folder)) != self.stamp


def parts(folder: Path) -> tuple[Path, Path, Path]:
    """The files of an adapter that a program reads; the card may be missing."""
    return folder / CONFIG, folder / WEIGHTS, folder / CARD


class BaseShape:
    """What adapters are held against, read from the base once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def fingerprint(self) -> str:
        return base_fingerprint(self.folder)

    @cached_property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Name → (out, in) of every two-dimensional weight of the base, but for the embeddings and a tied head."""
        shapes = {
            entry.name.removesuffix(".weight"): (entry.shape[0], entry.shape[1])
            for entry in tensor_entries(self.folder)
            if len(entry.shape) == 2 and entry.name.endswith(".weight")
        }
        tied = read_config(self.folder).get("tie_word_embeddings")
        skipped = ("embed_tokens", *(("lm_head",) if tied else ()))
        return {name: shape for name, shape in shapes.items() if not name.endswith(skipped)}


def check_there(folder: Path, name: str | None = None) -> None:
    """Raise AdapterNotFound unless `folder`, called `name` in messages, holds an adapter's two files."""
    for part in (CONFIG, WEIGHTS):
        if not (folder / part).is_file():
            pickled = (folder / "adapter_model.bin").is_file()
            hint = "; adapter_model.bin is pickled and could run code: docs/migrating.md converts it" if pickled else ""
            raise AdapterNotFound(f"{name or folder} has no {part}: it is not an adapter folder{hint}")


def verify_files(folder: Path, base: Path | BaseShape, *, name: str | None = None) -> AdapterFiles:
    """Check an adapter folder against the base it is meant for, from headers alone; no tensor is loaded.

    `base`: its folder, or what was read from it before. `name` is how messages call the adapter, if not by its folder.
    Raises AdapterNotFound, BadAdapter (configuration, tensor names, shapes or dtypes), WrongBase (fingerprint).
    """
    base = base if isinstance(base, BaseShape) else BaseShape(base)
    checked = stamp(*parts(folder))
    check_there(folder, name)
    spec = parse_config(read_json_file(folder / CONFIG))
    card = read_card(folder)
    if card is not None and card.base_fingerprint != base.fingerprint:
        raise WrongBase(
            f"{name or folder} was trained on {card.base_model} (fingerprint {card.base_fingerprint}); "
            f"this base is {base.folder.name} (fingerprint {base.fingerprint})"
        )
    targets = set(spec.target_modules)
    used = {module: targets.intersection(_names_of(module)) for module in base.linears}
    if unmatched := targets.difference(*used.values()):
        raise BadAdapter(f"target_modules names {min(unmatched)!r}, which {base.folder.name} does not have")
    modules = tuple(sorted(module for module, names in used.items() if names))
    names = {name for module in modules for name in _names_of(module)}  # patterns for other modules mean nothing
    spec = dataclasses.replace(
        spec,
        rank_pattern={name: rank for name, rank in spec.rank_pattern.items() if name in names},
        alpha_pattern={name: alpha for name, alpha in spec.alpha_pattern.items() if name in names},
    )
    _verify_tensors(folder / WEIGHTS, spec, {module: base.linears[module] for module in modules})
    return AdapterFiles(folder, spec, card, modules, checked)


def _verify_tensors(weights: Path, spec: LoraSpec, modules: dict[str, tuple[int, int]]) -> None:
    expected: dict[str, tuple[int, ...]] = {}
    for module, (rows, columns) in modules.items():
        rank = spec.rank(module)
        expected[f"{PREFIX}{module}.lora_A.weight"] = (rank, columns)
        expected[f"{PREFIX}{module}.lora_B.weight"] = (rows, rank)
        if spec.use_dora:
            expected[f"{PREFIX}{module}.lora_magnitude_vector"] = (rows,)
    found = _read_header(weights, MAX_HEADER_BYTES[0] + MAX_HEADER_BYTES[1] * len(expected))
    for name in sorted(expected.keys() - found.keys())[:1]:
        lacking = len(expected.keys() - found.keys())
        raise BadAdapter(f"{WEIGHTS} lacks {lacking} of {len(expected)} tensors, {name} for one")
    for name in sorted(found.keys() - expected.keys())[:1]:
        raise BadAdapter(f"{WEIGHTS} has a tensor {name[:120]!r} that its configuration does not name")
    for name, wanted in expected.items():
        shape, dtype = found[name]
        if shape != wanted:
            raise BadAdapter(f"{WEIGHTS}: {name} has shape {str(shape)[:80]}, the base needs {wanted}")
        if dtype not in ("F32", "F16", "BF16"):
            raise BadAdapter(f"{WEIGHTS}: {name} is {dtype}; F32, F16 or BF16 is expected")


def _read_header(weights: Path, limit: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name → (shape, dtype), by the library that loads the tensors; the header's size and keys are checked before."""
    with weights.open("rb") as handle:
        size = int.from_bytes(handle.read(8), "little")
        if size > limit:
            raise BadAdapter(f"{WEIGHTS} claims a header of {size} bytes; at most {limit} are read")
        _parse_json(handle.read(size), f"the header of {WEIGHTS}")
    try:
        with safe_open(
            str(weights), framework="numpy"
        ) as opened:  # holds offsets, shapes and dtypes against each other
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - it is no dict
            return {name: (tuple(found.get_shape()), found.get_dtype()) for name, found in slices.items()}
    except SafetensorError as error:
        raise BadAdapter(f"{WEIGHTS} is not a whole safetensors file: {str(error)[:200]}") from None


def load_tensors(files: AdapterFiles) -> dict[str, torch.Tensor]:
    """The adapter's tensors on the CPU, by name, in memory of their own.

    The file is read, not mapped: one that is cut short under a mapping ends the process. Raises BadAdapter for a value
    that is not finite, AdapterChanged where the files are gone or are not those that were checked.
    """
    import torch
    from safetensors.torch import load

    try:
        content = files.weights.read_bytes()
    except OSError as error:
        raise AdapterChanged(f"{files.folder.name} can't be read any more: {error.strerror}") from None
    if files.changed():
        raise AdapterChanged(f"{files.folder.name} was changed after it was checked; ask for it again")
    tensors: dict[str, torch.Tensor] = load(content)
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
