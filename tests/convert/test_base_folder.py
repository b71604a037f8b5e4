"""A base is there complete or not at all: skipping, interruption, foreign folders, memory."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from meta_model import LLAMA_1, random_weights, write_checkpoint
from transformers import AutoModelForCausalLM

from alpaca.convert.base_folder import convert
from alpaca.convert.find import find_origin
from alpaca.convert.source import read_source
from alpaca.errors import ConversionError
from alpaca.files import claimed


def run(input_dir: Path, output_dir: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "alpaca.convert", "--input_dir", str(input_dir), "--model_size", "7B"]
    return subprocess.Popen(
        [*command, "--output_dir", str(output_dir), *more], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_the_record_says_where_the_base_came_from(llama_input: Path, tmp_path: Path) -> None:
    base = convert(find_origin(llama_input, "7B"), tmp_path / "weights")
    source = read_source(base)
    assert source is not None and source.kind == "meta"
    assert [file.name for file in source.files] == ["consolidated.00.pth", "params.json", "tokenizer.model"]
    assert all(len(file.sha256) == 64 for file in source.files)
    assert source.options == {"instruct": False, "family": "llama"}
    assert set(source.made) == {path.name for path in base.iterdir()} - {"source.json"}


def test_a_second_conversion_has_nothing_to_do(
    llama_input: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = convert(find_origin(llama_input, "7B"), tmp_path / "weights")
    before = (base / "model.safetensors").stat().st_mtime_ns
    os.utime(llama_input / "7B" / "params.json")  # touched, not changed
    convert(find_origin(llama_input, "7B"), tmp_path / "weights")
    assert "nothing to do" in capsys.readouterr().out
    assert (base / "model.safetensors").stat().st_mtime_ns == before


def test_an_incomplete_base_is_made_anew(llama_input: Path, tmp_path: Path) -> None:
    base = convert(find_origin(llama_input, "7B"), tmp_path / "weights")
    (base / "tokenizer.json").unlink()
    convert(find_origin(llama_input, "7B"), tmp_path / "weights")
    assert (base / "tokenizer.json").is_file()
    assert sorted(path.name for path in base.parent.iterdir()) == ["llama-7b", "tokenizer"]


def test_another_source_never_replaces_a_base(llama_input: Path, tmp_path: Path) -> None:
    base = convert(find_origin(llama_input, "7B"), tmp_path / "weights")
    kept = (base / "model.safetensors").read_bytes()
    write_checkpoint(llama_input / "7B", LLAMA_1, random_weights(LLAMA_1, 500, seed=5))
    with pytest.raises(ConversionError, match="converted from another source"):
        convert(find_origin(llama_input, "7B"), tmp_path / "weights")
    assert (base / "model.safetensors").read_bytes() == kept


def test_a_folder_that_is_not_ours_is_left_alone(llama_input: Path, tmp_path: Path) -> None:
    (tmp_path / "weights" / "llama-7b").mkdir(parents=True)
    with pytest.raises(ConversionError, match="was not made by this converter"):
        convert(find_origin(llama_input, "7B"), tmp_path / "weights")


def test_two_conversions_at_once_do_not_mix(llama_input: Path, tmp_path: Path) -> None:
    partial = tmp_path / "weights" / ".llama-7b.partial"
    with claimed(partial, ConversionError), pytest.raises(ConversionError, match="another process is writing"):
        convert(find_origin(llama_input, "7B"), tmp_path / "weights")
    convert(find_origin(llama_input, "7B"), tmp_path / "weights")


@pytest.mark.long
def test_killed_in_the_middle_then_run_again(tmp_path: Path, sentencepiece_file: Path) -> None:
    params = LLAMA_1 | {"dim": 512, "n_layers": 12, "multiple_of": 256}
    source, weights = tmp_path / "unconverted", tmp_path / "weights"
    write_checkpoint(source / "7B", params, random_weights(params, 500), n_shards=2)
    shutil.copy(sentencepiece_file, source / "tokenizer.model")
    process = run(source, weights, "--max_shard_size", "1MB")
    partial = weights / ".llama-7b.partial"
    while process.poll() is None and len(list(partial.glob("*.safetensors"))) < 5:
        time.sleep(0.001)
    assert process.poll() is None, process.stdout and process.stdout.read()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert partial.is_dir() and not (weights / "llama-7b").exists()
    again = run(source, weights)
    output, _ = again.communicate()
    assert again.returncode == 0, output
    assert sorted(path.name for path in weights.iterdir()) == ["llama-7b", "tokenizer"]
    model = AutoModelForCausalLM.from_pretrained(weights / "llama-7b")
    assert model.config.num_hidden_layers == 12


def peak_memory(folder: Path, tokenizer: Path, *, dim: int, layers: int) -> tuple[int, int]:
    """Convert such a checkpoint in a process of its own; returns its peak memory and the size of the weights."""
    params = LLAMA_1 | {"dim": dim, "n_layers": layers, "multiple_of": 256}
    one_layer = random_weights(params | {"n_layers": 1}, 500)
    weights = {name: tensor for name, tensor in one_layer.items() if not name.startswith("layers")}
    for name in one_layer.keys() - weights.keys():
        weights |= {name.replace("layers.0", f"layers.{layer}"): one_layer[name] for layer in range(layers)}
    write_checkpoint(folder / "7B", params, weights, n_shards=2, dtype=torch.float16)
    shutil.copy(tokenizer, folder / "tokenizer.model")
    # VmHWM is this process's own peak; getrusage would count the parent's memory at the time of the fork too.
    script = (
        "from alpaca.convert.__main__ import main; main();"
        "print('PEAK', open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    options = [
        "--input_dir",
        str(folder),
        "--model_size",
        "7B",
        "--output_dir",
        str(folder),
        "--max_shard_size",
        "16MB",
    ]
    result = subprocess.run([sys.executable, "-c", script, *options], capture_output=True, text=True, check=True)
    shards = (folder / "llama-7b").glob("*.safetensors")
    return int(result.stdout.split("PEAK")[1]) * 1024, sum(shard.stat().st_size for shard in shards)


@pytest.mark.long
def test_memory_stays_near_one_output_shard(tmp_path: Path, sentencepiece_file: Path) -> None:
    small, _ = peak_memory(tmp_path / "small", sentencepiece_file, dim=64, layers=1)
    large, size = peak_memory(tmp_path / "large", sentencepiece_file, dim=1024, layers=6)
    assert size > 150e6
    assert large - small < 48e6, (
        f"{large / 1e6:.0f} MB for {size / 1e6:.0f} MB of weights, {small / 1e6:.0f} MB for next to none"
    )
