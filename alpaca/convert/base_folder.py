"""Write a base: weights, configs, tokenizer and the record of where it came from, complete or not at all."""

from __future__ import annotations

import json
from pathlib import Path

from alpaca.convert.origin import Origin
from alpaca.convert.safetensors_writer import shard_names, split_plan, write_index, write_shard
from alpaca.convert.source import Source, already_converted
from alpaca.errors import ConversionError
from alpaca.files import folder_written_aside, free_space
from alpaca.progress import progress, say
from alpaca.words import size_text

# Tokenizer and configs beside the weights; a Llama 3 tokenizer takes 17 MB, twice with the spare copy.
_BESIDE_WEIGHTS = 64 << 20


def convert(origin: Origin, output_dir: Path, *, max_shard_bytes: int = 2_000_000_000) -> Path:
    """Convert into `output_dir`/`origin.name` and return that folder; nothing is done if it is there and complete.

    What is quick to find wrong is found first; the weights, which take time, come last. Raises ConversionError or
    ChecksumMismatch, and then nothing is left behind.
    """
    target = output_dir / origin.name
    if already_converted(target, origin.files, origin.options):
        say(f"{target} is there already, complete and from the same source: nothing to do")
        return target
    for note in origin.notes:
        say(note)
    _need_space(origin, output_dir)
    with folder_written_aside(target, ConversionError) as folder:
        _write_config(origin, folder)
        origin.generation_config().save_pretrained(folder)
        _write_tokenizer(origin, folder)
        files = origin.verify()
        _write_weights(origin, folder, max_shard_bytes)
        made = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        Source(origin.kind, files, origin.options, made).save(folder)
        for name in origin.spare_copies():  # before the base gets its name: a base that is there is finished
            with folder_written_aside(output_dir / name, ConversionError) as copy:
                _save_tokenizer(origin, copy)
    say(f"base: {target}")
    return target


def _need_space(origin: Origin, output_dir: Path) -> None:
    place = output_dir
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise ConversionError(f"--output_dir {output_dir}: {place} is a file, not a folder")
    need = sum(plan.n_bytes for plan in origin.plans) + _BESIDE_WEIGHTS
    free = free_space(place)
    if free < need:
        raise ConversionError(
            f"{output_dir} has {size_text(free)} free, {size_text(need)} are needed; "
            "free some or give another --output_dir"
        )


def _write_config(origin: Origin, folder: Path) -> None:
    """config.json with the rotary settings in the spelling of transformers 4 too, which overlooks `rope_parameters` and
    would compute with its default theta."""
    origin.config().save_pretrained(folder)
    scaling = dict(json.loads((folder / "config.json").read_text(encoding="utf-8"))["rope_parameters"])
    theta, plain = scaling.pop("rope_theta"), scaling["rope_type"] == "default"
    _edit(folder / "config.json", rope_theta=theta, rope_scaling=None if plain else scaling)


def _save_tokenizer(origin: Origin, folder: Path) -> None:
    """The tokenizer under the class name that transformers 4 knows; version 5 takes it as its own."""
    origin.tokenizer().save_pretrained(folder)
    _edit(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")


def _edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_weights(origin: Origin, folder: Path, max_shard_bytes: int) -> None:
    shards = split_plan(origin.plans, max_shard_bytes)
    names = shard_names(len(shards))
    total = sum(plan.n_bytes for plan in origin.plans)
    with progress(f"writing {origin.name}", total) as update:
        for name, shard in zip(names, shards, strict=True):
            write_shard(folder / name, shard, origin.tensors(shard), update)
    if len(names) > 1:
        write_index(folder, names, shards)


def _write_tokenizer(origin: Origin, folder: Path) -> None:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    _save_tokenizer(origin, folder)
    reloaded = AutoTokenizer.from_pretrained(folder)
    if not isinstance(reloaded, PreTrainedTokenizerFast):
        raise ConversionError(f"the tokenizer was reloaded as {type(reloaded).__name__}, not as a fast one")
    origin.check_tokenizer(reloaded)
    say("tokenizer: saved, reloaded and checked")
