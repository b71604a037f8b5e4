"""The adapter folder: PEFT's own files plus a card, verified before it is trusted.

adapter_config.json  adapter_model.safetensors   PEFT's format: any PEFT tool loads them
alpaca.json                                      the card: what it was trained on, how, and with what results
README.md  report/                               the same for people
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from alpaca.adapter.card import CARD, Card, read_card
from alpaca.adapter.head_copy import COPY, HEAD, check_head_copy
from alpaca.adapter.lora_config import CONFIG, LoraSpec, names_of, parse_config, parse_json, read_json_file
from alpaca.base.earlier import earlier_fingerprints
from alpaca.base.headers import TensorEntry, read_config, read_header, tensor_entries
from alpaca.base.headers import fingerprint as base_fingerprint
from alpaca.errors import AdapterChanged, AdapterNotFound, BadAdapter, WrongBase

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

WEIGHTS = "adapter_model.safetensors"
ASIDE = ".saving-adapter"  # in an adapter's folder: a new one that is about to take its place
PREFIX = "base_model.model."
MAX_HEADER_BYTES = 1 << 20, 1 << 10  # of adapter_model.safetensors: for its metadata, and for each expected tensor


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

    @property
    def written(self) -> int:
        """When its weights were written, in seconds since 1970."""
        weights = self.stamp[1]
        return weights[0] // 10**9 if weights else 0

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
    def earlier_fingerprints(self) -> tuple[str, ...]:
        """Those by which earlier versions may have called it."""
        return earlier_fingerprints(self.folder)

    @cached_property
    def head(self) -> TensorEntry | None:
        """Where the base's own head lies; None where it is tied to the embeddings."""
        return next((entry for entry in tensor_entries(self.folder) if entry.name == f"{HEAD}.weight"), None)

    @cached_property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Name → (out, in) of every two-dimensional weight of the base, but for the embeddings and a tied head."""
        shapes = {
            entry.name.removesuffix(".weight"): (entry.shape[0], entry.shape[1])
            for entry in tensor_entries(self.folder)
            if len(entry.shape) == 2 and entry.name.endswith(".weight")
        }
        tied = read_config(self.folder).get("tie_word_embeddings")
        skipped = ("embed_tokens", *((HEAD,) if tied else ()))
        return {name: shape for name, shape in shapes.items() if not name.endswith(skipped)}


def check_there(folder: Path, name: str | None = None) -> None:
    """Raise AdapterNotFound unless `folder`, called `name` in messages, holds an adapter's two files."""
    for part in (CONFIG, WEIGHTS):
        if not (folder / part).is_file():
            pickled = (folder / "adapter_model.bin").is_file()
            hint = "; adapter_model.bin is pickled and could run code: docs/migrating.md converts it" if pickled else ""
            if (folder / "config.json").is_file():
                hint = "; it is a whole model, which is served as a base: BASE_MODEL"
            raise AdapterNotFound(f"{name or folder} has no {part}: it is not an adapter folder{hint}")


def verify_files(folder: Path, base: Path | BaseShape, *, name: str | None = None) -> AdapterFiles:
    """Check an adapter folder against the base it is meant for, from headers alone; no tensor is loaded.

    `base`: its folder, or what was read from it before. `name` is how messages call the adapter, if not by its folder.
    Raises AdapterNotFound, BadAdapter (configuration, tensor names, shapes or dtypes), WrongBase (fingerprint).
    """
    base = base if isinstance(base, BaseShape) else BaseShape(base)
    checked = stamp(*parts(folder))
    check_there(folder, name)
    if (folder / ASIDE).is_dir() and not (folder / CARD).is_file():  # the card goes first and comes last
        raise AdapterChanged(f"{name or folder} is being replaced, or was when a training was killed; ask for it again")
    spec = parse_config(read_json_file(folder / CONFIG))
    card = read_card(folder)
    if card is not None and not _knows(base, card.base_fingerprint):
        raise WrongBase(
            f"{name or folder} was trained on {card.base_model} (fingerprint {card.base_fingerprint}); "
            f"this base is {base.folder.name} (fingerprint {base.fingerprint})"
        )
    adapted = spec.adapted(base.linears)
    if unmatched := set(spec.target_modules).difference(*map(names_of, adapted)):
        raise BadAdapter(f"target_modules names {min(unmatched)!r}{_why_not(min(unmatched), base)}")
    modules = tuple(sorted(adapted))
    names = {name for module in modules for name in names_of(module)}  # patterns for other modules mean nothing
    spec = dataclasses.replace(
        spec,
        rank_pattern={name: rank for name, rank in spec.rank_pattern.items() if name in names},
        alpha_pattern={name: alpha for name, alpha in spec.alpha_pattern.items() if name in names},
    )
    _verify_tensors(folder / WEIGHTS, spec, {module: adapted[module] for module in modules}, base.head)
    return AdapterFiles(folder, spec, card, modules, checked)


def _knows(base: BaseShape, fingerprint: str) -> bool:
    return fingerprint == base.fingerprint or fingerprint in base.earlier_fingerprints


def _why_not(target: str, base: BaseShape) -> str:
    """Why no linear layer of the base goes by the name `target`."""
    last = target.rpartition(".")[2]
    if last == "embed_tokens":
        return ": LoRA on the embeddings is not served. Train it on the linear layers, the head among them"
    if last == HEAD and base.linears:
        return f": the head of {base.folder.name} is tied to its embeddings and can't be adapted alone"
    return f", which {base.folder.name} does not have"


def _verify_tensors(
    weights: Path, spec: LoraSpec, modules: dict[str, tuple[int, int]], head: TensorEntry | None
) -> None:
    expected: dict[str, tuple[int, ...]] = {}
    for module, (rows, columns) in modules.items():
        rank = spec.rank(module)
        expected[f"{PREFIX}{module}.lora_A.weight"] = (rank, columns)
        expected[f"{PREFIX}{module}.lora_B.weight"] = (rows, rank)
        if spec.use_dora:
            expected[f"{PREFIX}{module}.lora_magnitude_vector"] = (rows,)
    found = _read_header(weights, MAX_HEADER_BYTES[0] + MAX_HEADER_BYTES[1] * len(expected))
    if HEAD in modules and COPY in found and head is not None:
        expected[COPY] = head.shape
    for name in sorted(expected.keys() - found.keys())[:1]:
        lacking = len(expected.keys() - found.keys())
        raise BadAdapter(f"{WEIGHTS} lacks {lacking} of {len(expected)} tensors, {name} for one")
    for name in sorted(found.keys() - expected.keys())[:1]:
        whole = ": it brings embeddings or a head of its own, and only LoRA is served" if _is_whole(name) else ""
        raise BadAdapter(f"{WEIGHTS} has a tensor {name[:120]!r} that its configuration does not name{whole}")
    for name, wanted in expected.items():
        shape, dtype = found[name]
        if shape != wanted:
            raise BadAdapter(f"{WEIGHTS}: {name} has shape {str(shape)[:80]}, the base needs {wanted}")
        if dtype not in ("F32", "F16", "BF16"):
            raise BadAdapter(f"{WEIGHTS}: {name} is {dtype}; F32, F16 or BF16 is expected")
    if COPY in expected and head is not None:
        check_head_copy(next(entry for entry in read_header(weights) if entry.name == COPY), head)


def _is_whole(name: str) -> bool:
    return name.endswith(("embed_tokens.weight", f"{HEAD}.weight"))


def _read_header(weights: Path, limit: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name → (shape, dtype), by the library that loads the tensors; the header's size and keys are checked before."""
    with weights.open("rb") as handle:
        size = int.from_bytes(handle.read(8), "little")
        if size > limit:
            raise BadAdapter(f"{WEIGHTS} claims a header of {size} bytes; at most {limit} are read")
        parse_json(handle.read(size), f"the header of {WEIGHTS}")
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
    tensors.pop(COPY, None)  # it was found to be the base's own
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
