"""What is wrong with a checkpoint is said before anything is written, by file and field."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from meta_model import LLAMA_1, random_weights, write_checkpoint

from alpaca.convert.base_folder import convert
from alpaca.convert.find import find_origin
from alpaca.errors import ChecksumMismatch, ConversionError

Change = Callable[[Path], object]


def edit_params(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        params = json.loads((folder / "params.json").read_text()) | changes
        kept = {name: value for name, value in params.items() if value != "REMOVED"}
        (folder / "params.json").write_text(json.dumps(kept))

    return change


def edit_weights(edit: Callable[[dict[str, Any]], object]) -> Change:
    def change(folder: Path) -> None:
        tensors = torch.load(folder / "consolidated.00.pth")
        edit(tensors)
        torch.save(tensors, folder / "consolidated.00.pth")

    return change


def rewrite(name: str, data: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(data)


def resharded(n_shards: int, *then: Change) -> Change:
    def change(folder: Path) -> None:
        write_checkpoint(folder, LLAMA_1, random_weights(LLAMA_1, 500), n_shards=n_shards)
        for step in then:
            step(folder)

    return change


W2, WQ = "layers.1.feed_forward.w2.weight", "layers.0.attention.wq.weight"


class Case(NamedTuple):
    change: Change
    message: str


CASES = {
    "no params": Case(lambda folder: (folder / "params.json").unlink(), "no folder|neither|params.json is missing"),
    "params no JSON": Case(rewrite("params.json", b"{dim: 64}"), "params.json is no JSON"),
    "params a list": Case(rewrite("params.json", b"[1]"), "expected an object"),
    "params lack dim": Case(edit_params(dim="REMOVED", norm_eps="REMOVED"), "dim is missing; norm_eps is missing"),
    "dim is text": Case(edit_params(dim="64"), "dim is '64'"),
    "layers negative": Case(edit_params(n_layers=-1), "n_layers is -1"),
    "heads do not divide": Case(edit_params(n_heads=7), "dim 64 can't be divided into 7 heads"),
    "kv heads do not divide": Case(edit_params(n_kv_heads=3), "n_heads 8 is no multiple of n_kv_heads 3"),
    "quantized release": Case(edit_params(quantization_args={"group_size": 32}), "quantization_args is not known"),
    "vocabulary too small": Case(edit_params(vocab_size=400), "vocab_size 400, but .*tokenizer.model has 500"),
    "vocabulary too large": Case(
        edit_params(vocab_size=512), r"tok_embeddings.weight has shape \[500, 64\], expected \[512"
    ),
    "more layers": Case(edit_params(n_layers=3), "consolidated.00.pth lacks layers.2"),
    "fewer layers": Case(edit_params(n_layers=1), "has layers.1.attention_norm.weight, which no LLaMA"),
    "other width": Case(edit_params(multiple_of=256), r"w1.weight has shape \[192, 64\], expected \[256, 64\]"),
    "no weights": Case(lambda folder: (folder / "consolidated.00.pth").unlink(), "has no consolidated.NN.pth"),
    "truncated": Case(
        lambda folder: os.truncate(folder / "consolidated.00.pth", 90_000), "consolidated.00.pth can't be opened"
    ),
    "empty": Case(rewrite("consolidated.00.pth", b""), "consolidated.00.pth (is no PyTorch|can't be opened)"),
    "text": Case(rewrite("consolidated.00.pth", b"version https://git-lfs"), "consolidated.00.pth"),
    "a bare tensor": Case(
        lambda folder: torch.save(torch.ones(3), folder / "consolidated.00.pth"), "no table of named"
    ),
    "old format": Case(
        lambda folder: torch.save(
            {"a": torch.ones(3)}, folder / "consolidated.00.pth", _use_new_zipfile_serialization=False
        ),
        "rewrite it once",
    ),
    "wrong shape": Case(edit_weights(lambda t: t.update({W2: torch.ones(64, 64)})), rf"{W2} has shape \[64, 64\]"),
    "integers": Case(edit_weights(lambda t: t.update({W2: t[W2].int()})), "is torch.int32; only float16"),
    "tensor missing": Case(edit_weights(lambda t: t.pop(W2)), f"lacks {W2}"),
    "tensor unknown": Case(edit_weights(lambda t: t.update({"lora.a": torch.ones(2)})), "has lora.a"),
    "one of two shards": Case(
        resharded(2, lambda folder: (folder / "consolidated.01.pth").unlink()), "cut into 2 files, but there are 1"
    ),
    "a gap": Case(resharded(4, lambda folder: (folder / "consolidated.02.pth").unlink()), "lacks consolidated.02.pth"),
    "one shard too many": Case(
        lambda folder: shutil.copy(folder / "consolidated.00.pth", folder / "consolidated.01.pth"),
        "cut into 1 files, but there are 2",
    ),
    "shards of different dtype": Case(
        resharded(2, edit_weights(lambda t: t.update({W2: t[W2].half()}))), "but torch.float16 in the first shard"
    ),
    "no tokenizer": Case(lambda folder: (folder.parent / "tokenizer.model").unlink(), "tokenizer.model is missing"),
    "tokenizer no model": Case(
        lambda folder: (folder.parent / "tokenizer.model").write_bytes(b"\0 not a model"), "neither a sentencepiece nor"
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_broken_checkpoints_are_refused_before_anything_is_written(
    llama_input: Path, tmp_path: Path, case: Case
) -> None:
    case.change(llama_input / "7B")
    with pytest.raises(ConversionError, match=case.message):
        convert(find_origin(llama_input, "7B"), tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


class Evil:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_never_run(llama_input: Path, tmp_path: Path, zipped: bool) -> None:
    trap, path = tmp_path / "trap", llama_input / "7B" / "consolidated.00.pth"
    if zipped:
        torch.save({"norm.weight": Evil(f"touch {trap}")}, path)
    else:
        path.write_bytes(pickle.dumps({"norm.weight": Evil(f"touch {trap}")}))
    with pytest.raises(ConversionError, match=r"holds more than tensors|can't be opened"):
        find_origin(llama_input, "7B")
    assert not trap.exists()


def write_checklist(folder: Path, *names: str) -> None:
    lines = [f"{hashlib.md5((folder / name).read_bytes()).hexdigest()}  {name}" for name in names]
    (folder / "checklist.chk").write_text("\n".join(lines) + "\n")


def test_a_right_checklist_passes(llama_input: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checklist(llama_input / "7B", "consolidated.00.pth", "params.json")
    convert(find_origin(llama_input, "7B"), tmp_path / "weights")
    assert "no checklist" not in capsys.readouterr().out


def test_a_missing_checklist_is_said_and_no_hindrance(
    llama_input: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(find_origin(llama_input, "7B"), tmp_path / "weights")
    assert "no checklist.chk beside 7B's weights" in capsys.readouterr().out


def test_one_changed_byte_is_found_by_the_checklist(llama_input: Path, tmp_path: Path) -> None:
    folder = llama_input / "7B"
    write_checklist(folder, "consolidated.00.pth", "params.json")
    data = bytearray((folder / "consolidated.00.pth").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "consolidated.00.pth").write_bytes(data)
    with pytest.raises(ChecksumMismatch, match=r"consolidated.00.pth \(MD5 .*the checklist says"):
        convert(find_origin(llama_input, "7B"), tmp_path / "weights")
    assert not list(tmp_path.glob("weights/*"))


def test_the_tokenizers_own_checklist_counts(llama_input: Path, tmp_path: Path) -> None:
    (llama_input / "tokenizer_checklist.chk").write_text(f"{'0' * 32}  tokenizer.model\n")
    with pytest.raises(ChecksumMismatch, match=r"tokenizer.model"):
        convert(find_origin(llama_input, "7B"), tmp_path / "weights")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("garbage", "checklist.chk, line 1"),
        (f"{'0' * 32}  ../secret.pth", "line 1"),
        (f"{'0' * 32}  consolidated.01.pth", "not there"),
    ],
)
def test_odd_checklists_are_refused(llama_input: Path, tmp_path: Path, line: str, message: str) -> None:
    (llama_input / "7B" / "checklist.chk").write_text(line + "\n")
    with pytest.raises(ConversionError, match=message):
        convert(find_origin(llama_input, "7B"), tmp_path / "weights")


def test_too_little_room_is_said_with_both_figures(
    llama_input: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(ConversionError, match="has 1 MB free, 68 MB are needed"):
        convert(find_origin(llama_input, "7B"), tmp_path / "weights")


def test_what_there_is_is_listed_when_nothing_or_several_fit(llama_input: Path, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"no folder 13B \(there is 7B\)"):
        find_origin(llama_input, "13B")
    (llama_input / "x.gguf").write_bytes(b"")
    with pytest.raises(ConversionError, match=r"has 7B, x.gguf: say which"):
        find_origin(llama_input, None)
    with pytest.raises(ConversionError, match=r"python -m alpaca.convert.fetch"):
        find_origin(tmp_path / "nowhere", None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConversionError, match=r"neither a .gguf file nor"):
        find_origin(tmp_path / "empty", None)
    with pytest.raises(ConversionError, match="carries its own settings"):
        find_origin(llama_input / "x.gguf", None, instruct=True)


def test_the_checkpoint_is_found_without_being_named(llama_input: Path) -> None:
    for where, size in (
        (llama_input, None),
        (llama_input / "7B", None),
        (llama_input / "7B", "7B"),
        (llama_input, "7b"),
    ):
        assert find_origin(where, size).name == "llama-7b"


def test_the_command_ends_with_one_line_and_status_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "alpaca.convert", "--input_dir", str(tmp_path), "--model_size", "7B"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.strip().startswith("error: E3101 ConversionError:") and "Traceback" not in result.stderr
