"""Every reader of foreign bytes ends with a value or an error that has a code, whatever became of the file.

Each file is damaged again and again: bytes changed, cut off, doubled; in texts, values swapped for odd ones. The
damage follows from the reader's name and the number of the attempt, which a failure tells: it can be repeated.
"""

from __future__ import annotations

import json
import random
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from alpaca.adapter.archive import unpack
from alpaca.adapter.folder import load_tensors, verify_files
from alpaca.base.archive import unpack_base
from alpaca.base.check import check_base
from alpaca.base.headers import embedding_rows, fingerprint
from alpaca.base.load import load_tokenizer
from alpaca.base.precision import weight_bytes
from alpaca.convert.checklist import read_checklist
from alpaca.convert.find import find_origin
from alpaca.convert.source import read_source
from alpaca.data.reader import read_examples
from alpaca.errors import AlpacaError
from alpaca.prompts.find import load_template, template_from_card
from alpaca.training.checkpoints import find_checkpoint, read_run
from tests.conftest import ROOT
from tests.convert.conftest import sentencepiece_file, tiktoken_file  # noqa: F401 - fixtures
from tests.convert.meta_model import LLAMA_1, random_weights, write_checkpoint
from tests.convert.test_gguf import Q, Writer, add_byte_level_tokenizer, tiny_model

pytestmark = pytest.mark.long
MADE_BEFORE = ROOT / "tests" / "made_before"
ROWS = [{"instruction": f"Name field {n}", "input": "", "output": f"It is number {n}, Größe 羊驼."} for n in range(8)]
ODD = [
    "null", "true", "-1", "0", "1e400", "1e-400", "NaN", "9223372036854775808", "[]", "{}", '""', '"\\ud800"',
    '"\\u0000"', "[[[[]]]]", '{"a": {}}', "[1]", "1.5", '"../../x"', "-0.0", "00", "'", "{", "]", "," * 9,
]  # fmt: skip

FOUND = {"base: model.safetensors": (1413,), "original: sentencepiece": (1269,)}
"""Attempts of a longer search that found something."""


@dataclass(frozen=True)
class Reader:
    """`make` writes good files into a folder and returns the one to damage; `read` is asked afterwards."""

    make: Callable[[Path, dict[str, Path]], Path]
    read: Callable[[Path], object]
    attempts: int = 150


def damaged(data: bytes, chance: random.Random) -> bytes:
    """`data` with one kind of damage."""
    kind = chance.randrange(6)
    at = chance.randrange(max(1, len(data)))
    if kind == 0:
        return data[:at]
    if kind == 1:
        end = at + chance.choice([1, 8, 64])
        return data[:end] + data[at:] if chance.random() < 0.5 else data[:at] + data[end:]
    if kind == 2:
        return _odd_value(data, chance)
    changed = bytearray(data)
    reach = len(data) if kind < 5 else min(len(data), 400)  # headers are at the beginning
    for _ in range(chance.choice([1, 1, 2, 8])):
        if reach:
            changed[chance.randrange(reach)] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])
    return bytes(changed)


def _odd_value(data: bytes, chance: random.Random) -> bytes:
    """Something odd in the place of what follows a colon, a comma or a line break."""
    places = [at for at, byte in enumerate(data[:4000]) if byte in b":,\n ["]
    if not places:
        return data
    start = chance.choice(places) + 1
    end = next((at for at in range(start + 1, len(data)) if data[at] in b",}]\n"), len(data))
    return data[:start] + chance.choice(ODD).encode() + data[end:]


# --- bases --------------------------------------------------------------------------------------------------------
def base_file(name: str) -> Callable[[Path, dict[str, Path]], Path]:
    def make(folder: Path, given: dict[str, Path]) -> Path:
        shutil.copytree(MADE_BEFORE / "base", folder / "base")
        return folder / "base" / name

    return make


def sharded(folder: Path, given: dict[str, Path]) -> Path:
    target = base_file("model.safetensors.index.json")(folder, given)
    (folder / "base" / "model.safetensors").rename(folder / "base" / "model-1.safetensors")
    target.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": {"a": "model-1.safetensors"}}))
    return target


def look_at_base(folder: Path) -> None:
    base = folder / "base"
    check_base(base)
    fingerprint(base)
    embedding_rows(base, 1)
    weight_bytes(base, "nf4")


def base_archive(folder: Path, given: dict[str, Path]) -> Path:
    with tarfile.open(folder / "base.tar", "w") as tar:
        for path in sorted((MADE_BEFORE / "base").iterdir()):
            tar.add(path, path.name)
    return folder / "base.tar"


def open_base_archive(folder: Path) -> None:
    shutil.rmtree(folder / "out", ignore_errors=True)
    (folder / "out").mkdir()
    unpack_base(folder / "base.tar", folder / "out", "base")


# --- adapters and checkpoints -------------------------------------------------------------------------------------
def adapter_file(name: str) -> Callable[[Path, dict[str, Path]], Path]:
    def make(folder: Path, given: dict[str, Path]) -> Path:
        shutil.copytree(MADE_BEFORE / "adapter", folder / "adapter")
        return folder / "adapter" / name

    return make


def look_at_adapter(folder: Path) -> None:
    files = verify_files(folder / "adapter", MADE_BEFORE / "base")
    load_tensors(files)
    if files.card is not None:
        template_from_card(files.card.template, load_tokenizer(MADE_BEFORE / "base"))


def look_at_checkpoint(folder: Path) -> None:
    checkpoint = folder / "adapter" / "checkpoint-2"
    read_run(checkpoint)
    find_checkpoint(str(checkpoint), folder, {"base": fingerprint(MADE_BEFORE / "base")}, MADE_BEFORE / "base")


def adapter_archive(kind: str) -> Callable[[Path, dict[str, Path]], Path]:
    def make(folder: Path, given: dict[str, Path]) -> Path:
        files = [path for path in sorted((MADE_BEFORE / "adapter").iterdir()) if path.is_file()]
        if kind == "zip":
            with zipfile.ZipFile(folder / "archive", "w", zipfile.ZIP_DEFLATED) as zipped:
                for path in files:
                    zipped.write(path, path.name)
        else:
            with tarfile.open(folder / "archive", f"w:{kind}", format=tarfile.PAX_FORMAT) as tar:  # type: ignore[call-overload]
                for path in files:
                    tar.add(path, f"{'d' * 120}/{path.name}")
        return folder / "archive"

    return make


def open_adapter_archive(folder: Path) -> None:
    shutil.rmtree(folder / "out", ignore_errors=True)
    (folder / "out").mkdir()
    unpack(folder / "archive", folder / "out")


# --- originals ----------------------------------------------------------------------------------------------------
def gguf_file(folder: Path, given: dict[str, Path]) -> Path:
    model = tiny_model(411, tied=True)
    writer = Writer(folder / "m.gguf", model)
    add_byte_level_tokenizer(writer, given["tiktoken"])
    writer.add_uint32("tokenizer.ggml.eot_token_id", 2)
    writer.add_model(model, Q.Q4_0)
    writer.finish()
    return folder / "m.gguf"


def meta_file(name: str, tokenizer: str, vocabulary: int) -> Callable[[Path, dict[str, Path]], Path]:
    def make(folder: Path, given: dict[str, Path]) -> Path:
        write_checkpoint(folder / "in" / "7B", LLAMA_1, random_weights(LLAMA_1, vocabulary))
        shutil.copy(given[tokenizer], folder / "in" / "tokenizer.model")
        return folder / "in" / name

    return make


def look_at_original(folder: Path) -> None:
    """As the converter does before it reads the weights, and the weights' first tensor."""
    origin = find_origin(folder / "m.gguf" if (folder / "m.gguf").exists() else folder / "in", None)
    origin.config()
    origin.generation_config()
    origin.check_tokenizer(origin.tokenizer())
    next(origin.tensors(origin.plans[:1]))


def small(name: str, content: str) -> Callable[[Path, dict[str, Path]], Path]:
    def make(folder: Path, given: dict[str, Path]) -> Path:
        (folder / name).write_text(content, encoding="utf-8")
        return folder / name

    return make


# --- rows and templates -------------------------------------------------------------------------------------------
def parquet(folder: Path, given: dict[str, Path]) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "rows.parquet")
    return folder / "rows.parquet"


def read_rows(folder: Path) -> None:
    read_examples(str(next(folder.glob("rows.*"))), skip_bad_rows=True)


CSV = "instruction,input,output\n" + "".join(f'"{r["instruction"]}",,"{r["output"]}"\n' for r in ROWS)
SOURCE = json.dumps({"kind": "gguf", "files": [{"name": "a", "size": 1, "mtime_ns": 2, "sha256": "0"}], "options": {}})

READERS = {
    "base: config.json": Reader(base_file("config.json"), look_at_base),
    "base: model.safetensors": Reader(base_file("model.safetensors"), look_at_base),
    "base: index of shards": Reader(sharded, look_at_base),
    "base: tokenizer.json": Reader(base_file("tokenizer.json"), lambda f: load_tokenizer(f / "base"), 60),
    "base: tokens in the fingerprint": Reader(base_file("tokenizer.json"), look_at_base),
    "base: tokenizer_config.json": Reader(base_file("tokenizer_config.json"), lambda f: load_tokenizer(f / "base"), 60),
    "base: archive": Reader(base_archive, open_base_archive),
    "adapter: adapter_config.json": Reader(adapter_file("adapter_config.json"), look_at_adapter),
    "adapter: adapter_model.safetensors": Reader(adapter_file("adapter_model.safetensors"), look_at_adapter),
    "adapter: card": Reader(adapter_file("alpaca.json"), look_at_adapter, 60),
    "adapter: zip": Reader(adapter_archive("zip"), open_adapter_archive),
    "adapter: tar": Reader(adapter_archive(""), open_adapter_archive),
    "adapter: tar.gz": Reader(adapter_archive("gz"), open_adapter_archive),
    "adapter: tar.bz2": Reader(adapter_archive("bz2"), open_adapter_archive),
    "adapter: tar.xz": Reader(adapter_archive("xz"), open_adapter_archive),
    "checkpoint: run.json": Reader(adapter_file("checkpoint-2/run.json"), look_at_checkpoint),
    "original: GGUF": Reader(gguf_file, look_at_original),
    "original: sentencepiece": Reader(meta_file("tokenizer.model", "sentencepiece", 500), look_at_original),
    "original: tiktoken": Reader(meta_file("tokenizer.model", "tiktoken", 664), look_at_original),
    "original: params.json": Reader(meta_file("7B/params.json", "sentencepiece", 500), look_at_original),
    "original: weights": Reader(meta_file("7B/consolidated.00.pth", "sentencepiece", 500), look_at_original),
    "original: checklist": Reader(
        small("checklist.chk", "0123456789abcdef0123456789abcdef  a.pth\n" * 3),
        lambda f: read_checklist(f / "checklist.chk"),
    ),
    "original: source.json": Reader(small("source.json", SOURCE), read_source),
    "rows: JSON": Reader(small("rows.json", json.dumps(ROWS, ensure_ascii=False)), read_rows),
    "rows: JSON Lines": Reader(small("rows.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS)), read_rows),
    "rows: CSV": Reader(small("rows.csv", CSV), read_rows),
    "rows: Parquet": Reader(parquet, read_rows),
    "template": Reader(
        lambda f, given: Path(shutil.copy(ROOT / "templates" / "alpaca.json", f / "t.json")),
        lambda f: load_template(str(f / "t.json")),
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_gives_a_value_or_an_error_with_a_code(
    name: str,
    tmp_path: Path,
    sentencepiece_file: Path,  # noqa: F811
    tiktoken_file: Path,  # noqa: F811
) -> None:
    reader = READERS[name]
    target = reader.make(tmp_path, {"sentencepiece": sentencepiece_file, "tiktoken": tiktoken_file})
    good = target.read_bytes()
    reader.read(tmp_path)  # what is not damaged is read
    refused = 0
    for number in (*range(reader.attempts), *FOUND.get(name, ())):
        target.write_bytes(damaged(good, random.Random(f"{name}, attempt {number}")))
        try:
            reader.read(tmp_path)
        except AlpacaError:
            refused += 1
        except Exception as error:
            pytest.fail(f"{name}, attempt {number}: {type(error).__name__}: {error}")
    assert refused or name == "original: source.json"  # a record that can't be read is none
