"""Everything that is worth knowing about a CUDA device, in one command of at most ten minutes.

    python benchmarks/gpu.py                       all of it, into benchmarks/results/gpu.md and gpu.json
    python benchmarks/gpu.py --minutes 4           what fits into four
    python benchmarks/gpu.py --quick               tiny bases, on a CPU too: does the script itself work?

It runs tests/gpu, trains and serves bases of the shapes of a 1B and a 7B model with random weights, and serves the
default base where that is converted. Each section is a process of its own, so its memory is its own, and one that fails
or takes too long costs only its own rows; the table says which.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SHAPES: dict[str, dict[str, Any]] = {
    "1B": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True,
    },
    "7B": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 32000, "tie_word_embeddings": False,
    },
    "tiny": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 512, "tie_word_embeddings": False,
    },
}  # fmt: skip
REAL = "smollm2-135m-instruct"
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")
LORA = {"lora_r": 16, "lora_alpha": 32, "lora_target_modules": ["all-linear"]}
CONTEXT = 2048
COLUMNS = 256
TESTS = 150.0  # seconds for tests/gpu
LEAST = 10.0  # seconds; with less left, nothing more is begun
SLACK = 1.1  # of the free memory; what is expected to take more is not tried
HEAD = "| what | tokens/s | without graphs | peak GB | expected GB | note |\n| --- | --- | --- | --- | --- | --- |"


@dataclass(frozen=True)
class Row:
    """A line of the table. None is not measured."""

    what: str
    speed: float | None = None
    plain_speed: float | None = None
    peak: float | None = None
    """Bytes, the most at one time."""
    expected: float | None = None
    """Bytes, by the arithmetic that plans a run or a server."""
    note: str = ""

    def line(self) -> str:
        figures = ((self.speed, 1, 0), (self.plain_speed, 1, 0), (self.peak, 1e9, 1), (self.expected, 1e9, 1))
        shown = ["" if n is None else f"{n / unit:,.{digits}f}" for n, unit, digits in figures]
        return f"| {' | '.join([self.what, *shown, self.note])} |"


@dataclass(frozen=True)
class Section:
    """What one process does: `kind` is make, train or serve."""

    kind: str
    base: str
    precision: str = "bf16"
    seconds: int = 60
    """It is ended after that."""
    checkpointing: bool = False

    @property
    def what(self) -> str:
        names = {"make": "random weights", "train": "training", "serve": "serving"}
        again = ", activations computed again" if self.checkpointing else ""
        return f"{names[self.kind]}, {self.base}, {self.precision}{again}"


SECTIONS = [
    Section("make", "1B"), Section("serve", "1B", seconds=70), Section("train", "1B"),
    Section("make", "7B", seconds=90), Section("serve", "7B", seconds=90), Section("train", "7B", seconds=80),
    Section("serve", "7B", "int8", seconds=80), Section("serve", "7B", "nf4", seconds=80),
    Section("train", "7B", "nf4", seconds=90, checkpointing=True), Section("serve", REAL, seconds=60),
]  # fmt: skip
QUICK = [
    Section("make", "tiny", seconds=120), Section("train", "tiny", seconds=120),
    Section("serve", "tiny", "nf4", seconds=120),
]  # fmt: skip


@dataclass(frozen=True)
class Size:
    """How much is done in each section."""

    rows: int
    words: int
    steps: int
    tokens: int
    together: tuple[int, ...]
    rounds: int


FULL, SMALL = Size(160, 120, 5, 64, (8, 64), 3), Size(24, 6, 2, 4, (2, 4), 1)


# --- what a section's process does --------------------------------------------------------------------------------
def make(section: Section, work: Path, size: Size) -> list[Row]:
    """A LLaMA of the shape with random weights, and a tokenizer that knows bytes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from alpaca.device import pick_device

    folder = work / section.base
    config: Any = LlamaConfig(**SHAPES[section.base], max_position_embeddings=CONTEXT, bos_token_id=1, eos_token_id=0)
    torch.manual_seed(0)
    with torch.device(pick_device()):
        torch.set_default_dtype(torch.bfloat16)
        LlamaForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return []


def byte_tokenizer() -> Any:
    """A token for every byte: it needs no file, and any vocabulary holds it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<end>", "<begin>", "<pad>", *letters])}
    bpe: Any = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<end>", bos_token="<begin>", pad_token="<pad>"
    )  # fmt: skip


def train(section: Section, work: Path, size: Size) -> list[Row]:
    """Steps of the packed trainer on rows of different lengths. The first one warms up and isn't counted."""
    from alpaca.device import free_memory, peak_memory
    from alpaca.training.config import FinetuneConfig
    from alpaca.training.fit import build_model, make_trainer
    from alpaca.training.plan import estimate, make_plan

    data = work / "rows.jsonl"
    rows = [
        {"instruction": f"Question {n}.", "output": "hay " * (n * 37 % size.words + size.words // 2)}
        for n in range(size.rows)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings: dict[str, Any] = {
        **LORA, "base_model": str(base_folder(section, work)), "data_path": str(data), "output_dir": str(work / "out"),
        "quantization": section.precision, "cutoff_len": 1024, "val_set_size": 0, "replay_ratio": 0, "report_budget": 0,
        "batch_size": size.rows // size.steps, "num_epochs": 1, "gradient_checkpointing": section.checkpointing,
    }  # fmt: skip
    plan = make_plan(FinetuneConfig(**settings), say)
    expected, free = estimate(plan).memory, free_memory(plan.device)
    if expected > free * SLACK:
        return [Row(section.what, expected=expected, note=f"skipped: {free / 1e9:.1f} GB are free")]
    trainer = make_trainer(plan, build_model(plan))
    trainer.args.save_strategy = "no"
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "tokens_per_second" in entry][1:]
    tokens = sum(entry["tokens"] for entry in steps)
    seconds = sum(entry["tokens"] / entry["tokens_per_second"] for entry in steps)
    note = f"steps: {len(steps)}, micro-batches of up to {plan.budget[0]:,} tokens"
    return [Row(section.what, tokens / seconds, peak=peak_memory(plan.device), expected=expected, note=note)]


def serve(section: Section, work: Path, size: Size) -> list[Row]:
    """Alone and in company, without adapters and with three mixed, with graphs and without."""
    from alpaca.base.load import load_model, load_tokenizer
    from alpaca.base.precision import weight_bytes
    from alpaca.device import free_memory, peak_memory, pick_device
    from alpaca.serving.limits import EngineLimits, bytes_per_column
    from alpaca.serving.loading import LoadedBase, open_engine

    folder, device = base_folder(section, work), pick_device()
    weights, free = weight_bytes(folder, section.precision), free_memory(device)
    if weights > free * 0.8:
        return [Row(section.what, expected=weights, note=f"skipped: {free / 1e9:.1f} GB are free")]
    roots = work / f"adapters-{section.base}"
    names = [make_adapter(folder, roots / f"random-{n}", n) for n in range(3)]
    cases = {"alone": (1, ["none"]), "alone, an adapter": (1, names[:1])}
    for count in size.together:
        cases |= {f"{count}": (count, ["none"]), f"{count}, three adapters mixed": (count, names)}
    base = LoadedBase(folder, load_model(folder, section.precision, device), load_tokenizer(folder))
    found: dict[bool, dict[str, float]] = {}
    expected, heard, note, peak = weights, list[str](), "", 0
    for graphs in (True, False):
        limits = EngineLimits(concurrency=64, context=CONTEXT, columns=COLUMNS, roots=(roots,), graphs=graphs)
        engine = open_engine(base, limits=limits, say=heard.append if graphs else say)
        if graphs:  # what the pool and the columns take; the rest of the peak is the steps' own
            memory = [*engine._cache.keys, *engine._cache.values]
            expected += sum(part.nbytes for part in memory)
            expected += COLUMNS * bytes_per_column(base.model.config, memory[0].dtype, device)
            del memory
        found[graphs] = {name: speed(engine, *case, size) for name, case in cases.items()}
        if graphs:
            peak, stats = peak_memory(device), engine.stats()
            without = [line for line in heard if line.startswith("graphs: none")]
            note = without[0] if without else f"graphs: {stats.replayed} of {stats.steps} steps"
        engine.close()
        del engine
        gc.collect()
    shown = [Row(section.what, peak=peak, expected=expected, note=note)]
    return [*shown, *(Row(f"… {name}", found[True][name], found[False][name]) for name in cases)]


def speed(engine: Any, count: int, adapters: Sequence[str], size: Size) -> float:
    """Tokens a second of `count` answers submitted at once, the adapters taking turns: the median of the rounds, after
    one that warms up."""
    from alpaca.serving.inputs import request_from_inputs
    from alpaca.serving.together import answers

    found = []
    for number in range(size.rounds + 1):
        requests = [
            request_from_inputs(
                prompt=f"{number} {n} Tell me something about alpacas.", adapter=adapters[n % len(adapters)],
                temperature=0.0, max_tokens=size.tokens, min_tokens=size.tokens, prompt_template="{prompt}",
            )
            for n in range(count)
        ]  # fmt: skip
        started = time.perf_counter()
        said = sum(answer.usage.output_tokens for answer in answers(engine, requests) if answer.usage)
        found.append(said / (time.perf_counter() - started))
    return statistics.median(found[1:])


def make_adapter(base: Path, folder: Path, seed: int) -> str:
    """LoRA of rank 16 on every linear layer of the base but the head, with a B that is not zero."""
    import torch
    from safetensors.torch import save_file

    from alpaca.adapter.folder import PREFIX, WEIGHTS, BaseShape
    from alpaca.adapter.lora_config import CONFIG

    if (folder / CONFIG).is_file():
        return str(folder.name)
    folder.mkdir(parents=True)
    random = torch.Generator().manual_seed(seed)
    shapes = {name: shape for name, shape in BaseShape(base).linears.items() if name != "lm_head"}
    tensors = {}
    for name, (out, width) in shapes.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = torch.randn(16, width, generator=random) / width**0.5
        tensors[f"{PREFIX}{name}.lora_B.weight"] = torch.randn(out, 16, generator=random) * 0.01
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    targets = sorted({name.rpartition(".")[2] for name in shapes})
    config = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "target_modules": targets, "bias": "none"}
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    return folder.name


def base_folder(section: Section, work: Path) -> Path:
    return ROOT / "weights" / REAL if section.base == REAL else work / section.base


KINDS: dict[str, Callable[[Section, Path, Size], list[Row]]] = {"make": make, "train": train, "serve": serve}


# --- the whole run ------------------------------------------------------------------------------------------------
def run_section(section: Section, work: Path, left: float, quick: bool) -> list[Row]:
    """The section's rows from a process of its own, or one that says why there are none."""
    if section.kind != "make" and not (base_folder(section, work) / "config.json").is_file():
        return [Row(section.what, note="skipped: the base is not there")]
    limit = min(section.seconds, left)
    if limit < LEAST:
        return [Row(section.what, note="skipped: no time left")]
    command = [sys.executable, __file__, "--section", json.dumps(asdict(section)), "--work", str(work)]
    try:
        done = subprocess.run(
            [*command, *(["--quick"] if quick else [])], stdout=subprocess.PIPE, text=True, cwd=ROOT, timeout=limit
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return [Row(section.what, note=f"ended: it took more than {limit:.0f} s")]
    if done.returncode:
        return [Row(section.what, note=f"failed with exit status {done.returncode}; the reason stands in the output")]
    return [Row(**row) for row in json.loads(done.stdout.splitlines()[-1])]


def run_tests(left: float) -> Row:
    """The tests in tests/gpu: the last line that pytest prints."""
    what, limit = "tests/gpu", min(TESTS, left)
    if limit < LEAST:
        return Row(what, note="skipped: no time left")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=limit)
    except subprocess.TimeoutExpired:
        return Row(what, note=f"ended: it took more than {limit:.0f} s")
    if done.returncode:
        say(f"{done.stdout}\n{done.stderr}")
    printed = done.stdout.strip() or done.stderr.strip() or "nothing was printed"
    return Row(what, note=printed.splitlines()[-1].strip(" ="))


def about() -> dict[str, str]:
    """The device and the versions that the figures belong to."""
    import torch

    found = {"date": datetime.now(UTC).strftime("%Y-%m-%d"), "python": platform.python_version()}
    found |= {name: importlib.metadata.version(name) for name in PACKAGES}
    if not torch.cuda.is_available():
        return {"device": "a CPU", **found}
    card = torch.cuda.get_device_properties(0)
    return {"device": f"{card.name}, {card.total_memory / 1e9:.0f} GB", "CUDA": str(torch.version.cuda), **found}


def write(folder: Path, facts: dict[str, str], rows: list[Row], seconds: float) -> None:
    """gpu.md with the table, and gpu.json with the same in bytes."""
    from alpaca.files import written_aside

    folder.mkdir(parents=True, exist_ok=True)
    line = ", ".join(f"{name} {value}" for name, value in facts.items() if name != "device")
    table = "\n".join([f"{facts['device']}; {line}. {seconds:.0f} s.", "", HEAD, *(row.line() for row in rows)])
    everything = {"about": facts, "seconds": round(seconds), "rows": [asdict(row) for row in rows]}
    for name, text in (("gpu.md", table), ("gpu.json", json.dumps(everything, indent=2))):
        with written_aside(folder / name) as aside:
            aside.write_text(text + "\n", encoding="utf-8")
    print(table)


def say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output_dir", type=Path, default=ROOT / "benchmarks" / "results", help="default: %(default)s")
    parser.add_argument("--minutes", type=float, default=9.5, help="end within (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="tiny bases, on a CPU too; the figures mean nothing")
    parser.add_argument("--section", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.section is not None:
        section = Section(**json.loads(options.section))
        rows = KINDS[section.kind](section, options.work, SMALL if options.quick else FULL)
        print(json.dumps([asdict(row) for row in rows]))
        return
    import torch

    if not (options.quick or torch.cuda.is_available()):
        sys.exit("error: no CUDA device is here, or this torch is built without CUDA; --quick tries the script itself")
    started = time.monotonic()
    rows = []

    def left() -> float:
        return float(options.minutes * 60 - (time.monotonic() - started))

    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as temporary:
        if torch.cuda.is_available():
            say("tests/gpu")
            rows.append(run_tests(left()))
        for section in QUICK if options.quick else SECTIONS:
            say(f"{section.what} ({left():.0f} s left)")
            rows += run_section(section, Path(temporary), left(), options.quick)
    write(options.output_dir, about(), rows, time.monotonic() - started)


if __name__ == "__main__":
    main()
