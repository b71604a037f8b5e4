"""What a base's files say without being loaded: its configuration, its tensors from their headers, its fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpaca.errors import BadBase

VOLATILE_CONFIG = {"transformers_version", "torch_dtype", "dtype", "_name_or_path", "use_cache", "architectures"}


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a base, sorted by name."""
    return sorted(folder.glob("*.safetensors"))


def read_config(folder: Path) -> dict[str, Any]:
    """The base's config.json. Raises BadBase where it is missing or no JSON object."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadBase(f"{folder} has no config.json: it is not a Hugging Face model folder") from None
    except (ValueError, RecursionError) as error:
        raise BadBase(f"{path} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise BadBase(f"{path} holds a {type(config).__name__}, not an object")
    return config


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: file, byte range in it, dtype and shape, as the safetensors header says."""

    name: str
    file: Path
    start: int
    end: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def is_layer_matrix(self) -> bool:
        """Whether it is a matrix of one of the layers: what is adapted and quantised, unlike embeddings and head."""
        return ".layers." in self.name and len(self.shape) == 2


def tensor_entries(folder: Path) -> Iterator[TensorEntry]:
    """Yield every tensor of a base from the safetensors headers alone. Raises BadBase for a damaged header."""
    for path in weight_files(folder):
        yield from read_header(path)


def read_header(path: Path) -> Iterator[TensorEntry]:
    """Yield the tensors of one safetensors file from its header alone. Raises BadBase for a damaged one."""
    try:
        with path.open("rb") as handle:
            size = int.from_bytes(handle.read(8), "little")
            if size > 100_000_000:
                raise ValueError(f"a header of {size} bytes")
            header = json.loads(handle.read(size))
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = (8 + size + offset for offset in entry["data_offsets"])
                if end > path.stat().st_size:
                    raise ValueError(f"the file is cut short: tensor {name} ends at byte {end}")
                yield TensorEntry(name, path, start, end, entry["dtype"], tuple(entry["shape"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadBase(f"{path} is not a whole safetensors file: {error}") from None


def count_weights(folder: Path) -> int:
    """How many numbers the base's weights are."""
    return sum(entry.numel for entry in tensor_entries(folder))


def count_layer_weights(folder: Path) -> int:
    """How many of them are in the layers' matrices: those that every token is multiplied with."""
    return sum(entry.numel for entry in tensor_entries(folder) if entry.is_layer_matrix)


def fingerprint(folder: Path) -> str:
    """Sixteen hex digits that stand for this base: configuration, tokenizer, tensor headers and sampled weight bytes.

    The same for the same weights however they are sharded; different for other weights of the same shape. It reads
    96 bytes of each tensor, so it costs milliseconds.
    """
    digest = hashlib.sha256()
    config = {k: v for k, v in read_config(folder).items() if k not in VOLATILE_CONFIG}
    digest.update(json.dumps(config, sort_keys=True).encode())
    digest.update(_tokenizer_digest(folder))
    tied = bool(config.get("tie_word_embeddings", False))
    for entry in sorted(tensor_entries(folder), key=lambda e: e.name):
        if tied and entry.name == "lm_head.weight":  # some writers store the tied head, some don't
            continue
        digest.update(f"{entry.name} {entry.dtype} {entry.shape}".encode())
        digest.update(_sample(entry))
    return digest.hexdigest()[:16]


def _sample(entry: TensorEntry) -> bytes:
    with entry.file.open("rb") as handle:
        parts = []
        for offset in (entry.start, (entry.start + entry.end) // 2, max(entry.start, entry.end - 32)):
            handle.seek(offset)
            parts.append(handle.read(min(32, entry.end - offset)))
    return b"".join(parts)


def _tokenizer_digest(folder: Path) -> bytes:
    path = folder / "tokenizer.json"
    if not path.is_file():
        return hashlib.sha256((folder / "tokenizer.model").read_bytes()).digest()
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    vocab = tokenizer.get("model", {}).get("vocab", {})
    pairs = sorted(vocab.items()) if isinstance(vocab, dict) else vocab
    added = sorted((token["id"], token["content"]) for token in tokenizer.get("added_tokens", []))
    return hashlib.sha256(json.dumps([pairs, added], ensure_ascii=False).encode("utf-8", "surrogatepass")).digest()
