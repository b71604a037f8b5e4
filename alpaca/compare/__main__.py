"""Ask the base and adapters the same questions, and show the answers side by side.

    python -m alpaca.compare --adapters base lora-alpaca --prompt "Tell me something about alpacas."
    python -m alpaca.compare --adapters base lora-a lora-b --prompts questions.txt --html answers.html
    python -m alpaca.compare --adapters base lora-a:0.5 "lora-a:0.7+lora-b:0.5" --prompts questions.txt
    python -m alpaca.compare --server http://localhost:5000 --adapters none lora-a --prompts questions.txt

The base is loaded once and answers all at the same time; with --server a running server does. Answers are greedy
unless --temperature says otherwise, so that runs can be compared.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alpaca.base.precision import SERVED
from alpaca.compare.comparison import Comparison
from alpaca.compare.questions import read_prompts
from alpaca.data.output_file import output_path
from alpaca.errors import EmptyPrompt, exit_on_error
from alpaca.files import written_aside
from alpaca.paths import PROJECT, as_written
from alpaca.progress import say_aside
from alpaca.serving.composition import BASE_ALONE, Composition, Part, parse_composition
from alpaca.serving.inputs import request_from_inputs

BASE = "base"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m alpaca.compare", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--adapters", nargs="+", default=[BASE], metavar="ADAPTER",
                        help="folders, archives or https URLs; 'base' is the base alone; a:0.7+b:0.5 makes one answer "
                             "of two adapters, each at its own strength")  # fmt: skip
    parser.add_argument("--prompt", action="append", default=[], help="what to ask; may be repeated")
    parser.add_argument("--prompts", type=as_written, metavar="FILE",
                        help="a file with one prompt per line, or a .jsonl with instruction and input")  # fmt: skip
    parser.add_argument("--server", metavar="URL", help="ask a running server instead of loading the base here")
    parser.add_argument("--html", metavar="FILE", help="write a page as well")
    parser.add_argument("--json", metavar="FILE", help="write the answers as JSON as well")
    parser.add_argument("--base_model", help="a folder, a name in weights/ or a hub id (default: $BASE_MODEL)")
    parser.add_argument("--precision", default="auto", choices=["auto", *SERVED])
    parser.add_argument("--max_tokens", type=int, default=256, help="default: %(default)s")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--repetition_penalty", type=float, default=1.0,
                        help="above 1, less is repeated; small greedy models need it (default: 1)")  # fmt: skip
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="where the temperature is above 0: the same seed gives the same answers (default: 0)",
    )
    return parser.parse_args(arguments)


@exit_on_error
def main() -> None:
    options = parse()
    prompts = [(prompt, "") for prompt in options.prompt] + (read_prompts(options.prompts) if options.prompts else [])
    if not prompts:
        raise EmptyPrompt('nothing to ask: give --prompt "…" or --prompts FILE')
    source = str(options.prompts or "")
    page = output_path("--html", options.html, ".html", source) if options.html else None
    listing = output_path("--json", options.json, ".json", source) if options.json else None
    settings = {
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
        "repetition_penalty": options.repetition_penalty,
        "seed": options.seed,
    }
    asked = [
        {"prompt": prompt, "input": more, "adapter": BASE_ALONE if name == BASE else name, **settings}
        for prompt, more in prompts
        for name in options.adapters
    ]
    texts = _ask_there(asked, options.server) if options.server else _ask_here(asked, options)
    width = len(options.adapters)
    rows = [texts[start : start + width] for start in range(0, len(texts), width)]
    comparison = Comparison(options.adapters, prompts, rows)
    comparison.show()
    for path, content in ((page, comparison.as_html), (listing, comparison.as_json)):
        if path is not None:
            with written_aside(path) as aside:
                aside.write_text(content(), encoding="utf-8")
            say_aside(f"written: {path}")


def _ask_there(asked: Sequence[dict[str, Any]], server: str) -> list[str]:
    from alpaca.compare.over_http import ask_server

    return ask_server(server, asked)


def _ask_here(asked: Sequence[dict[str, Any]], options: argparse.Namespace) -> list[str]:
    from alpaca.serving.limits import EngineLimits, default_roots
    from alpaca.serving.loading import load_base, open_engine
    from alpaca.serving.together import answers

    limits = EngineLimits(roots=default_roots(PROJECT))
    named = {name: _named_here(name, limits.roots) for name in dict.fromkeys(inputs["adapter"] for inputs in asked)}
    requests = [
        replace(request_from_inputs(**{**inputs, "adapter": None}), adapter=named[inputs["adapter"]])
        for inputs in asked
    ]
    base = load_base(options.base_model, options.precision, say=say_aside)
    engine = open_engine(base, limits=limits, say=say_aside)
    try:
        return [answer.text for answer in answers(engine, requests)]
    finally:
        engine.close()


def _named_here(name: str, roots: Sequence[Path]) -> Composition:
    """What is meant by whoever types the command, and may name any folder, also one whose path holds a + or a colon."""
    from alpaca.serving.adapters import check_given, is_url

    if name != BASE_ALONE and os.path.exists(as_written(name)):
        parts: tuple[Part, ...] = (Part(name),)
    else:
        parts = parse_composition(name).parts
    for part in parts:
        check_given(part.source, roots)
    return Composition(tuple(p if is_url(str(p.source)) else replace(p, source=as_written(p.source)) for p in parts))


if __name__ == "__main__":
    main()
