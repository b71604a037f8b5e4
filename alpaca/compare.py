"""Ask the base and adapters the same, and show the answers side by side.

    python -m alpaca.compare --adapters base lora-alpaca --prompt "Tell me something about alpacas."

The base is loaded once. Answers are greedy unless --temperature says otherwise, so that runs can be compared.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from alpaca.base import PRECISIONS
from alpaca.errors import DataNotFound, EmptyPrompt, UnsupportedFile, exit_on_error
from alpaca.serving.engine import BASE_ALONE, Engine
from alpaca.serving.inputs import request_from_inputs
from alpaca.serving.limits import EngineLimits
from alpaca.serving.loading import load_base, open_engine
from alpaca.serving.request import GenerationRequest

BASE = "base"


def answers(engine: Engine, requests: Sequence[GenerationRequest]) -> list[str]:
    """The whole text of every answer; as many are made at once as the engine has slots."""
    streams = [engine.submit(request) for request in requests]
    return ["".join(chunk.text for chunk in stream).strip() for stream in streams]


def read_prompts(path: Path) -> list[tuple[str, str]]:
    """(prompt, input) of each line that is not blank: plain text, or JSON with instruction and input in a .jsonl."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataNotFound(f"there is no file {path}") from None
    except UnicodeDecodeError as error:
        raise UnsupportedFile(f"{path} is not UTF-8 (byte {error.start})") from None
    if path.suffix != ".jsonl":
        return [(line, "") for line in lines if line.strip()]
    prompts = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
                prompts.append((str(row["instruction"]), str(row.get("input") or "")))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise UnsupportedFile(f"{path}, line {number}: no JSON object with an instruction") from None
    return prompts


def show(prompt: str, names: Sequence[str], answers: Sequence[str]) -> None:
    """One table a prompt on a terminal, plain text elsewhere."""
    if not sys.stdout.isatty():
        print(f"\n=== {prompt}")
        for name, text in zip(names, answers, strict=True):
            print(f"\n--- {name}\n{text}")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(prompt, style="bold"), title_justify="left", show_lines=True, expand=True)
    for name in names:
        table.add_column(Text(name), ratio=1, overflow="fold")
    table.add_row(*(Text(text) for text in answers))
    console = Console()
    console.print()
    console.print(table)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m alpaca.compare", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--adapters", nargs="+", default=[BASE], metavar="ADAPTER",
                        help="folders, archives or https URLs; 'base' is the base alone")  # fmt: skip
    parser.add_argument("--prompt", action="append", default=[], help="what to ask; may be repeated")
    parser.add_argument("--prompts", type=Path, metavar="FILE",
                        help="a file with one prompt a line, or a .jsonl with instruction and input")  # fmt: skip
    parser.add_argument("--base_model", help="a folder, a name in weights/ or a hub id (default: $BASE_MODEL)")
    parser.add_argument("--precision", default="auto", choices=["auto", *PRECISIONS])
    parser.add_argument("--max_tokens", type=int, default=256, help="default: %(default)s")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--repetition_penalty", type=float, default=1.0,
                        help="above 1, less is repeated; small greedy models need it (default: 1)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the draws where the temperature is above 0")
    return parser.parse_args(arguments)


@exit_on_error
def main() -> None:
    options = parse()
    prompts = [(prompt, "") for prompt in options.prompt] + (read_prompts(options.prompts) if options.prompts else [])
    if not prompts:
        raise EmptyPrompt('nothing to ask: give --prompt "…" or --prompts FILE')
    adapters = [BASE_ALONE if name == BASE else _absolute(name) for name in options.adapters]
    requests = [
        request_from_inputs(
            prompt=prompt,
            input=more,
            adapter=adapter,
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            repetition_penalty=options.repetition_penalty,
            seed=options.seed,
        )
        for prompt, more in prompts
        for adapter in adapters
    ]
    base = load_base(options.base_model, options.precision, say=_say)
    # Whoever types the command may name any folder; the engine wants to be told which.
    roots = tuple(Path(name).parent for name in adapters if Path(name).is_absolute())
    engine = open_engine(base, limits=EngineLimits(roots=roots), say=_say)
    try:
        texts = answers(engine, requests)
    finally:
        engine.close()
    for number, (prompt, more) in enumerate(prompts):
        row = texts[number * len(adapters) : (number + 1) * len(adapters)]
        show(f"{prompt}\n{more}" if more else prompt, options.adapters, row)


def _absolute(name: str) -> str:
    return name if "://" in name else str(Path(name).expanduser().resolve())


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
