"""Weights files that do not fit, or lie about what they hold."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.serving.hostile.case import Case

WEIGHTS = "adapter_model.safetensors"
F8 = torch.float8_e4m3fn
Tensors = dict[str, torch.Tensor]


def some(tensors: dict[str, Any], part: str = "lora_A") -> str:
    return next(name for name in sorted(tensors) if part in name)


def edit_weights(folder: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(str(folder / WEIGHTS))
    change(tensors)
    save_file(tensors, str(folder / WEIGHTS))


def tensors(change: Callable[[Tensors], object]) -> Callable[[Path], None]:
    return lambda folder: edit_weights(folder, change)


def replaced(tensor: torch.Tensor) -> Callable[[Path], None]:
    return tensors(lambda found: found.update({some(found): tensor}))


def filled(value: float) -> Callable[[Path], None]:
    return tensors(lambda found: found[some(found)].view(-1)[7].fill_(value))


def whole(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / WEIGHTS).write_bytes(change((folder / WEIGHTS).read_bytes())) and None


def with_header(text: bytes, data: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text + data


def spoil_header(change: Callable[[dict[str, Any]], object], folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    change(header)
    (folder / WEIGHTS).write_bytes(with_header(json.dumps(header).encode(), content[8 + size :]))


def entry(part: str = "lora_A", **changes: Any) -> Callable[[Path], None]:
    return partial(spoil_header, lambda header: header[some(header, part)].update(changes))


def header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    return partial(spoil_header, change)


def same_name_twice(content: bytes) -> bytes:
    size = int.from_bytes(content[:8], "little")
    text = content[8 : 8 + size].decode().rstrip()
    parsed = json.loads(text)
    name = some(parsed)
    again = json.dumps({name: parsed[name] | {"shape": parsed[name]["shape"][::-1]}})[1:-1]
    return with_header(f"{{{again},{text[1:]}".encode(), content[8 + size :])


def holes(folder: Path) -> None:
    """2 GB that take no room on disk, claimed as header."""
    with (folder / WEIGHTS).open("wb") as out:
        out.write((2 << 30).to_bytes(8, "little"))
        out.truncate(2 << 30)


def only_pickled(folder: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(folder / "harmed"),))

    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Harm()))


def as_folder(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()


def as_pipe(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


CLAIMS = "claims a header of"
BROKEN = "is not a whole safetensors file"
TENSORS = [
    Case("a tensor missing", tensors(lambda t: t.pop(some(t))), "lacks 1 of 8 tensors"),
    Case("no tensors", tensors(lambda t: t.clear()), "lacks 8 of 8 tensors"),
    Case("a tensor too many", tensors(lambda t: t.update(extra=torch.zeros(1))), "has a tensor 'extra'"),
    Case("embeddings", tensors(lambda t: t.update({"base_model.model.embed_tokens.weight": torch.zeros(2, 2)})),
         "has a tensor"),
    Case("a long name", tensors(lambda t: t.update({"x\n" * 5000: torch.zeros(1)})), "has a tensor"),
    Case("another rank", replaced(torch.zeros(5, 64)), "has shape (5, 64), the base needs (4, 64)"),
    Case("another width", replaced(torch.zeros(4, 65)), "the base needs (4, 64)"),
    Case("transposed", replaced(torch.zeros(64, 4)), "the base needs (4, 64)"),
    Case("flat", replaced(torch.zeros(256)), "the base needs (4, 64)"),
    Case("of size zero", replaced(torch.zeros(0, 64)), "has shape (0, 64)"),
    Case("of 3,000 dimensions", replaced(torch.zeros([1] * 3000)), "has shape (1, 1"),
    Case("whole numbers", replaced(torch.zeros(4, 64, dtype=torch.int64)), "is I64"),
    Case("doubles", replaced(torch.zeros(4, 64, dtype=torch.float64)), "is F64"),
    Case("eighths", replaced(torch.zeros(4, 64).to(F8)), "is F8_E4M3"),
    Case("truth values", replaced(torch.zeros(4, 64, dtype=torch.bool)), "is BOOL"),
    Case("NaN", filled(float("nan")), "lora_A.weight holds values that are not finite"),
    Case("inf", filled(float("inf")), "lora_A.weight holds values that are not finite"),
    Case("-inf", filled(float("-inf")), "lora_A.weight holds values that are not finite"),
    Case("inf in half precision", tensors(lambda t: t.update({some(t): torch.full((4, 64), 1e6).half()})),
         "not finite"),
    Case("empty", whole(lambda content: b""), ""),
    Case("cut in the header", whole(lambda content: content[:40]), "is not valid JSON"),
    Case("cut in the data", whole(lambda content: content[:-1]), BROKEN),
    Case("a byte too many", whole(lambda content: content + b"\0"), BROKEN),
    Case("a header of 2**64 bytes", whole(lambda content: b"\xff" * 8 + content[8:]), CLAIMS),
    Case("a header of 2 GB of nothing", holes, CLAIMS),
    Case("a header of 90 MB", whole(lambda content: with_header(b"{" + b" " * 90_000_000 + b"}", b"")), CLAIMS),
    Case("a header longer than the file", whole(lambda content: (10**6).to_bytes(8, "little") + content[8:]),
         "is not valid JSON"),
    Case("a header of empty lists", whole(lambda content: with_header(b"[" + b"[]," * 300_000 + b"[]]", b"")),
         "over 100,000 lists and objects"),
    Case("a header nested deeply", whole(lambda content: with_header(b'{"a":' * 100_000, b"")), "is not valid JSON"),
    Case("a name twice, the second transposed", whole(same_name_twice), "is there twice"),
    Case("a list", whole(lambda content: with_header(b"[]", b"")), "holds a list"),
    Case("offsets of another size", entry(data_offsets=[0, 4]), BROKEN),
    Case("offsets backwards", entry(data_offsets=[64, 0]), BROKEN),
    Case("negative offsets", entry(data_offsets=[-64, 960]), BROKEN),
    Case("offsets of exabytes", entry(data_offsets=[1 << 62, (1 << 62) + 1024]), BROKEN),
    Case("offsets that overlap",
         header(lambda h: h[some(h)].update(data_offsets=h[some(h, "lora_B")]["data_offsets"])), BROKEN),
    Case("offsets that are text", entry(data_offsets=["a", "b"]), BROKEN),
    Case("a shape of exabytes", entry(shape=[1 << 40, 1 << 40]), BROKEN),
    Case("a shape of petabytes with no data",
         header(lambda h: h.update(x={"dtype": "F32", "shape": [1 << 50], "data_offsets": [0, 0]})), BROKEN),
    Case("a negative shape", entry(shape=[-4, -64]), BROKEN),
    Case("a shape that is text", entry(shape="ab"), BROKEN),
    Case("a dtype that is none", entry(dtype="PICKLE"), BROKEN),
    Case("no dtype", header(lambda h: h[some(h)].pop("dtype")), BROKEN),
    Case("an entry that is a number", header(lambda h: h.update({some(h): 5})), BROKEN),
    Case("metadata that is a number", header(lambda h: h.update(__metadata__=5)), BROKEN),
    Case("only pickled", only_pickled, "is pickled and could run code", "E4001"),
    Case("a folder in place of the file", as_folder, "has no adapter_model.safetensors", "E4001"),
    Case("a pipe in place of the file", as_pipe, "has no adapter_model.safetensors", "E4001"),
]  # fmt: skip
