"""What versions until November 2026 called a base: adapters, checkpoints and jobs made by them stay valid.

They hashed the whole of config.json as it was written and every *.safetensors file that lay in the folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alpaca.base.headers import TensorEntry, fingerprint, read_config, read_header, sample, weight_files

VOLATILE_CONFIG = {"transformers_version", "torch_dtype", "dtype", "_name_or_path", "use_cache", "architectures"}


def is_known_as(folder: Path, name: str) -> bool:
    """Whether `name` is the fingerprint of the base in `folder`, of today or of an earlier version."""
    return name == fingerprint(folder) or name in earlier_fingerprints(folder)


def earlier_fingerprints(folder: Path) -> tuple[str, ...]:
    """The fingerprints by which earlier versions may have known the base, without today's.

    Both spellings of its configuration are tried, the folder's own and that of the transformers in use, which wrote
    the configuration of most bases; and the weights that are loaded as well as all that lie there.
    """
    tokenizer = _tokenizer_digest(folder)
    tied = bool(read_config(folder).get("tie_word_embeddings", False))
    everything = sorted(folder.glob("*.safetensors"))
    listings = [
        [entry for path in files for entry in read_header(path)] for files in (weight_files(folder), everything)
    ]
    found = {_digest(config, tokenizer, tensors, tied) for config in _spellings(folder) for tensors in listings}
    return tuple(sorted(found))


def _digest(config: dict[str, Any], tokenizer: bytes, tensors: Iterable[TensorEntry], tied: bool) -> str:
    digest = hashlib.sha256()
    kept = {k: v for k, v in config.items() if k not in VOLATILE_CONFIG}
    digest.update(json.dumps(kept, sort_keys=True).encode())
    digest.update(tokenizer)
    for entry in sorted(tensors, key=lambda e: e.name):
        if tied and entry.name == "lm_head.weight":
            continue
        digest.update(f"{entry.name} {entry.dtype} {entry.shape}".encode())
        digest.update(sample(entry))
    return digest.hexdigest()[:16]


def _spellings(folder: Path) -> list[dict[str, Any]]:
    written = read_config(folder)
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(folder))
        known = type(config)().to_dict().keys()  # without a mirror's notes
        respelled = json.loads(config.to_json_string(use_diff=True))
        respelled["rope_parameters"]["rope_theta"] = float(respelled["rope_parameters"]["rope_theta"])
    except Exception:  # whatever the library refuses, no earlier version trained on it
        return [written]
    return [written, {name: value for name, value in respelled.items() if name in known}]


def _tokenizer_digest(folder: Path) -> bytes:
    path = folder / "tokenizer.json"
    if not path.is_file():
        return hashlib.sha256((folder / "tokenizer.model").read_bytes()).digest()
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    vocab = tokenizer.get("model", {}).get("vocab", {})
    pairs = sorted(vocab.items()) if isinstance(vocab, dict) else vocab
    added = sorted((token["id"], token["content"]) for token in tokenizer.get("added_tokens", []))
    return hashlib.sha256(json.dumps([pairs, added], ensure_ascii=False).encode("utf-8", "surrogatepass")).digest()
