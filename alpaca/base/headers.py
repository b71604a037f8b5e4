"""What a base's files say without being loaded: its configuration, its tensors from their headers, its fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpaca.base.forward_config import forward_config
from alpaca.errors import BadBase

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
COMPUTED = "rotary_emb.inv_freq"  # old checkpoints carry it along
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers would load: model.safetensors, else the shards of the index, by name.

    Any other file is passed over, such as a second copy of the weights (consolidated.safetensors). Raises BadBase for
    a damaged index and for a shard that is missing.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        return []
    shards = shards_of(folder)
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise BadBase(f"{folder} lacks {len(missing)} of {len(shards)} shards: {', '.join(missing[:3])}")
    return [folder / shard for shard in shards]


def shards_of(folder: Path) -> list[str]:
    """The names of the files that the index of `folder` names, sorted. Raises BadBase where it can't be read."""
    path = folder / INDEX
    try:
        shards = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        if not shards or not all(Path(shard).name == shard and shard.endswith(".safetensors") for shard in shards):
            raise ValueError(f"it names {str(shards)[:80]}, not safetensors files beside it")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadBase(f"{path} is no index of shards: {error!r}") from None
    return shards


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
                if not _is_size(entry["data_offsets"]) or not _is_size(entry["shape"]) or start > end:
                    raise ValueError(f"tensor {name[:80]} has impossible sizes")
                if end > path.stat().st_size:
                    raise ValueError(f"the file is cut short: tensor {name} ends at byte {end}")
                yield TensorEntry(name, path, start, end, entry["dtype"], tuple(entry["shape"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise BadBase(f"{path} is not a whole safetensors file: {error}") from None


def _is_size(numbers: list[Any]) -> bool:
    return all(isinstance(number, int) and number >= 0 for number in numbers)


def count_weights(folder: Path) -> int:
    """How many numbers the base's weights are."""
    return sum(entry.numel for entry in tensor_entries(folder))


def count_layer_weights(folder: Path) -> int:
    """How many of them are in the layers' matrices: those that every token is multiplied with."""
    return sum(entry.numel for entry in tensor_entries(folder) if entry.is_layer_matrix)


def embedding_rows(folder: Path, otherwise: int) -> int:
    """How many tokens the model has embeddings for, by its configuration and its weights; `otherwise` if neither says.

    Raises BadBase.
    """
    said = read_config(folder).get("vocab_size")
    rows = [said] if isinstance(said, int) else []
    rows += [entry.shape[0] for entry in tensor_entries(folder) if entry.name.endswith(EMBEDDING) and entry.shape]
    return min(rows, default=otherwise)


def fingerprint(folder: Path) -> str:
    """Sixteen hex digits that stand for this base: what its forward pass reads of the configuration, the tokens, tensor
    headers and sampled weight bytes.

    The same for the same weights however they are sharded and whatever wrote the configuration; different for other
    weights of the same shape. It reads 96 bytes of each tensor, so it costs milliseconds. Raises BadBase.
    """
    config = forward_config(read_config(folder))
    entries = {entry.name: entry for entry in tensor_entries(folder)}
    embedding = next((entry for name, entry in entries.items() if name.endswith(EMBEDDING)), None)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    digest.update(_tokens_digest(folder, embedding.shape[0] if embedding and embedding.shape else None))
    tied = bool(config.get("tie_word_embeddings"))
    for name in sorted(entries):
        if name.endswith(COMPUTED) or (tied and name == HEAD and _is_copy(entries[name], embedding)):
            continue  # some writers store these, some don't
        digest.update(f"{name} {entries[name].dtype} {entries[name].shape}".encode())
        digest.update(sample(entries[name]))
    return digest.hexdigest()[:16]


def _is_copy(head: TensorEntry, embedding: TensorEntry | None) -> bool:
    """Whether a tied head holds what the embeddings do; transformers takes another one for a head of its own."""
    if embedding is None or (head.dtype, head.shape) != (embedding.dtype, embedding.shape):
        return False
    return sample(head) == sample(embedding)


def sample(entry: TensorEntry) -> bytes:
    """96 bytes of a tensor: from its beginning, its middle and its end."""
    with entry.file.open("rb") as handle:
        parts = []
        for offset in (entry.start, (entry.start + entry.end) // 2, max(entry.start, entry.end - 32)):
            handle.seek(offset)
            parts.append(handle.read(min(32, entry.end - offset)))
    return b"".join(parts)


def _tokens_digest(folder: Path, rows: int | None) -> bytes:
    """Over (id, token) of all that have a row in the embedding, wherever tokenizer.json lists them."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return hashlib.sha256((folder / "tokenizer.model").read_bytes()).digest()
    try:
        tokenizer = json.loads(path.read_text(encoding="utf-8"))
        vocab = tokenizer["model"]["vocab"]
        pairs = (
            ((i, token) for token, i in vocab.items()) if isinstance(vocab, dict) else enumerate(p[0] for p in vocab)
        )
        tokens = {*pairs, *((token["id"], token["content"]) for token in tokenizer.get("added_tokens") or [])}
        listed = sorted(pair for pair in tokens if rows is None or pair[0] < rows)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise BadBase(f"{path} is no tokenizer: {type(error).__name__}: {error}") from None
    return hashlib.sha256(json.dumps(listed, ensure_ascii=False).encode("utf-8", "surrogatepass")).digest()
