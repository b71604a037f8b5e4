"""The serving engine against transformers' own ways to generate, on the same base, adapters and prompts, in one run.

    python benchmarks/serve.py                       the tables of docs/benchmarks.md
    python benchmarks/serve.py --rounds 1 --tokens 32   a quick look
    python benchmarks/serve.py --rivals                 against vLLM and llama.cpp (make rivals installs them)

All contenders hold the model in one process and take turns, round by round; the median of the rounds counts. Ratios
are what to look at: a machine's speed changes from hour to hour, and all contenders of a run see the same hour.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from alpaca.base.find import resolve_base  # noqa: E402
from alpaca.base.load import load_model, load_tokenizer  # noqa: E402
from alpaca.serving.composition import BASE_ALONE  # noqa: E402
from alpaca.serving.engine import Engine  # noqa: E402
from alpaca.serving.inputs import request_from_inputs  # noqa: E402
from alpaca.serving.limits import EngineLimits  # noqa: E402
from alpaca.serving.loading import LoadedBase, open_engine  # noqa: E402
from alpaca.serving.request import GenerationRequest  # noqa: E402
from alpaca.serving.stream import Stream  # noqa: E402
from alpaca.serving.together import answers  # noqa: E402

PROMPTS = [
    "Tell me something about alpacas.",
    "Write a short letter to a friend who moves to another town.",
    "Explain how a bicycle stays upright, for a child of eight years.",
    "What should one look for when buying a used car?",
]
PAGE = 256  # tokens in a block of transformers' cache, as it comes
LARGER: dict[str, Any] = {
    "hidden_size": 1536, "intermediate_size": 4096, "num_hidden_layers": 16, "num_attention_heads": 24,
    "num_key_value_heads": 8, "vocab_size": 49152, "max_position_embeddings": 4096,
}  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """What the contenders share."""

    base: Path
    model: Any
    """transformers' model with the first adapter on it, as PEFT loads it."""
    plain: Any
    """transformers' model alone."""
    engine: Engine
    adapters: list[str]
    tokenizer: Any
    tokens: int

    def ids(self, number: int) -> Any:
        """One prompt as token ids [1, n]."""
        said = [{"role": "user", "content": PROMPTS[number % len(PROMPTS)]}]
        return self.tokenizer.apply_chat_template(
            said, add_generation_prompt=True, return_tensors="pt", return_dict=False
        ).to(self.plain.device)


def measure(bench: Bench, rounds: int, larger: bool) -> dict[str, float]:
    """Tokens a second of every contender: medians over the rounds."""
    mixed = [BASE_ALONE, *bench.adapters]
    contenders: dict[str, Callable[[], float]] = {
        "generate(), no adapter": lambda: generate(bench, bench.plain),
        "generate(), PEFT adapter": lambda: generate(bench, bench.model),
        "transformers' continuous batching, 8, no adapter": lambda: continuous(bench, 8),
        "transformers' continuous batching, 16, no adapter": lambda: continuous(bench, 16),
        "engine, 1 request, no adapter": lambda: engine(bench, 1, [BASE_ALONE]),
        "engine, 1 request, adapter": lambda: engine(bench, 1, bench.adapters[:1]),
        "engine, 8 requests, no adapter": lambda: engine(bench, 8, [BASE_ALONE]),
        "engine, 8 requests, three adapters mixed": lambda: engine(bench, 8, bench.adapters),
        "engine, 8 requests, three adapters and the base": lambda: engine(bench, 8, mixed),
        "engine, 16 requests, no adapter": lambda: engine(bench, 16, [BASE_ALONE]),
        "engine, 16 requests, three adapters mixed": lambda: engine(bench, 16, bench.adapters),
    }
    if larger:
        contenders = {name: run for name, run in contenders.items() if "16" not in name or "engine" in name}
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            speed = run()
            if number:  # the first round warms up
                found[name].append(speed)
        print(f"  round {number} of {rounds}" + ("" if number else " (warm-up)"), file=sys.stderr, flush=True)
    return {name: statistics.median(speeds) for name, speeds in found.items()}


def generate(bench: Bench, model: Any) -> float:
    """One request at a time, as the seed served."""
    import torch

    ids = bench.ids(0)
    started = time.perf_counter()
    model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0,
        min_new_tokens=bench.tokens, max_new_tokens=bench.tokens,
    )  # fmt: skip
    return bench.tokens / (time.perf_counter() - started)


def continuous(bench: Bench, count: int) -> float:
    """transformers' own engine; it has no adapter per request.

    Its cache is made for these requests: by default it takes nine tenths of the free memory, and filling that with
    zeros would be most of what is measured.
    """
    from transformers import ContinuousBatchingConfig, GenerationConfig

    prompts = [bench.ids(number)[0].tolist() for number in range(count)]
    settings = GenerationConfig(max_new_tokens=bench.tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
    pages = sum(-(-(len(prompt) + bench.tokens) // PAGE) for prompt in prompts)
    cache = ContinuousBatchingConfig(page_size=PAGE, num_blocks=pages + count, max_batch_tokens=PAGE * count)
    started = time.perf_counter()
    outputs = bench.plain.generate_batch(prompts, settings, cache, progress_bar=False)
    seconds = time.perf_counter() - started
    return sum(len(output.generated_tokens) for output in outputs.values()) / seconds


def engine(bench: Bench, count: int, adapters: Sequence[str]) -> float:
    """`count` requests submitted at once, the adapters taking turns."""
    started = time.perf_counter()
    requests = [request(bench, PROMPTS[n % len(PROMPTS)], adapters[n % len(adapters)]) for n in range(count)]
    said = sum(answer.usage.output_tokens for answer in answers(bench.engine, requests) if answer.usage)
    return said / (time.perf_counter() - started)


def request(bench: Bench, prompt: str, adapter: str, tokens: int | None = None) -> GenerationRequest:
    tokens = tokens or bench.tokens
    return request_from_inputs(
        prompt=prompt, adapter=adapter, temperature=0.0, max_tokens=tokens, min_tokens=tokens, prompt_template="chat"
    )


def ask(bench: Bench, prompt: str, adapter: str, tokens: int) -> Stream:
    return bench.engine.submit(request(bench, prompt, adapter, tokens))


def first_tokens(bench: Bench, rounds: int) -> tuple[float, float]:
    """Seconds to the first token of a 64-token prompt: idle, and while a 2,000-token prompt is prefilled."""
    idle, loaded = [], []
    for number in range(rounds + 1):
        idle.append(_first(bench, number))
        long = ask(bench, words(bench, 2000, 1000 + number), BASE_ALONE, tokens=1)
        time.sleep(0.05 + 0.07 * (number % 5))  # so that it comes at different moments of a step
        loaded.append(_first(bench, 500 + number))
        list(long)
    return statistics.median(idle[1:]), statistics.median(loaded[1:])


def _first(bench: Bench, number: int) -> float:
    for chunk in ask(bench, words(bench, 64, number), BASE_ALONE, tokens=4):
        if chunk.usage is not None and chunk.usage.first_token is not None:
            return chunk.usage.first_token
    raise RuntimeError("no token came")


def words(bench: Bench, tokens: int, number: int) -> str:
    """A text whose prompt has about `tokens` tokens and begins unlike any other, so that nothing can be reused."""
    frame = len(bench.ids(0)[0]) - len(bench.tokenizer.encode(PROMPTS[0]))
    return f"{number} " + "hay " * max(1, tokens - frame - len(str(number)) - 1)


def ready_seconds(base: Path) -> float:
    """From the start of Cog's server to READY."""
    from alpaca.cogserver.server import Server

    started = time.perf_counter()
    with Server(project=ROOT, environment={"BASE_MODEL": str(base), "COG_WEIGHTS": ""}) as server:
        server.wait_ready()
        return time.perf_counter() - started


# --- what is measured on ------------------------------------------------------------------------------------------
def open_bench(base: Path, folder: Path, precision: str, tokens: int) -> Bench:
    """Load the base twice (transformers' own and the engine's) with three random adapters of rank 16."""
    from peft import PeftModel

    tokenizer = load_tokenizer(base)
    adapters = [make_adapter(base, folder / f"adapter-{n}", n) for n in range(3)]
    plain = load_model(base, precision)
    peft = PeftModel.from_pretrained(load_model(base, precision), adapters[0]).eval()
    loaded = LoadedBase(base, load_model(base, precision), tokenizer)
    opened = open_engine(loaded, limits=EngineLimits(concurrency=16, context=4096, roots=(folder,)), say=_say)
    return Bench(base, peft, plain, opened, adapters, tokenizer, tokens)


def make_adapter(base: Path, folder: Path, seed: int) -> str:
    """LoRA of rank 16 on every linear layer, with a B that is not zero."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    settings = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(load_model(base, "bf16"), settings)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.01)
    model.save_pretrained(str(folder))
    return str(folder)


def make_larger(folder: Path, tokenizer_of: Path, sizes: dict[str, Any] = LARGER) -> Path:
    """A random LLaMA of 0.6 G weights with the default base's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = load_tokenizer(tokenizer_of)
    model: Any = LlamaForCausalLM(LlamaConfig(**sizes, eos_token_id=tokenizer.eos_token_id))
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# --- output -------------------------------------------------------------------------------------------------------
def show(title: str, speeds: dict[str, float]) -> None:
    baseline = speeds["generate(), PEFT adapter"]
    print(f"\n{title}\n{'':52} tokens/s  ratio")
    for name, speed in speeds.items():
        print(f"{name:52} {speed:8.1f} {speed / baseline:6.2f}")
    alone, adapted = speeds["engine, 1 request, no adapter"], speeds["engine, 1 request, adapter"]
    print(f"an adapter costs a single request {100 * (alone / adapted - 1):.1f} %")
    for count in (8, 16):
        theirs = speeds.get(f"transformers' continuous batching, {count}, no adapter")
        ours = speeds[f"engine, {count} requests, three adapters mixed"]
        if theirs:
            print(f"{count} mixed against transformers' continuous batching: {ours / theirs:.2f}")


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--base_model", help="default: $BASE_MODEL, else the only base in weights/")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--tokens", type=int, help="of every answer (default: 64; 48 with --rivals)")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--skip", nargs="*", default=[], choices=["larger", "first", "ready"])
    parser.add_argument("--rivals", action="store_true", help="compare with vLLM and llama.cpp instead")
    parser.add_argument("--gguf", nargs="*", type=Path, default=[], metavar="FILE",
                        help="with --rivals: the base for llama.cpp (default: made by alpaca.export)")  # fmt: skip
    options = parser.parse_args()
    base = resolve_base(options.base_model, ROOT / "weights")
    if options.rivals:
        from benchmarks.rivals.serving import compare

        return compare(base, options.tokens or 48, options.rounds, options.gguf)
    tokens = options.tokens or 64
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        folder = Path(temporary)
        if "ready" not in options.skip:
            seconds = sorted(ready_seconds(base) for _ in range(3))[1]
            print(f"from the start of Cog's server to READY: {seconds:.1f} s")
        bench = open_bench(base, folder, options.precision, tokens)
        show(f"{base.name}, {options.precision}", measure(bench, options.rounds, larger=False))
        if "first" not in options.skip:
            idle, loaded = first_tokens(bench, max(options.rounds, 5))
            print(f"first token of a 64-token prompt: idle {idle * 1e3:.0f} ms, while a 2,000-token prompt is "
                  f"prefilled {loaded * 1e3:.0f} ms, ratio {loaded / idle:.2f}")  # fmt: skip
        bench.engine.close()
        del bench
        if "larger" not in options.skip:
            (folder / "l").mkdir()
            other = make_larger(folder / "l" / "random-llama-0.6b", base)
            bench = open_bench(other, folder / "l", options.precision, tokens // 2)
            show("random LLaMA, 0.6 G weights", measure(bench, max(1, options.rounds // 2), larger=True))
            bench.engine.close()


if __name__ == "__main__":
    main()
