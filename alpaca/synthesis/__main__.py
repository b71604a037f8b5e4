"""`python -m alpaca.synthesis`: rows made by a model, where there are none in your language or field.

examples:
  python -m alpaca.synthesis instruct --seed_tasks data/seed_tasks.jsonl --rows 1000 --output mine.jsonl \\
      --url http://localhost:8000 --model some-model --language de
  python -m alpaca.synthesis translate --to zh --data_path rows.jsonl --sample 5 --url http://localhost:8000
  python -m alpaca.synthesis translate --to zh --data_path rows.jsonl --output rows_zh.jsonl --url http://localhost:8000

The model is on any server with OpenAI's routes (--url; the key is taken from OPENAI_API_KEY), or in this process
(--base_model). A run that was ended, in whatever way, goes on where it was when the same command is given again.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from alpaca.base.precision import SERVED
from alpaca.errors import end_as_interrupted, exit_on_error
from alpaca.paths import DATA

SEED_TASKS = DATA / "seed_tasks.jsonl"
INSTRUCT, TRANSLATE = "instruct", "translate"
HELP = {
    INSTRUCT: "think up new tasks with their answers, from a few that are shown (self-instruct)",
    TRANSLATE: "translate rows field by field, and keep what must not be translated",
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(
        prog="python -m alpaca.synthesis", description=(__doc__ or "").partition("\n")[0],
        epilog=(__doc__ or "").partition("\n\n")[2], formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    words = out.add_subparsers(dest="what", required=True, metavar="WHAT")
    for what, add in ((INSTRUCT, _add_instruct), (TRANSLATE, _add_translate)):
        one = words.add_parser(what, help=HELP[what], description=HELP[what], allow_abbrev=False)
        add(one)
        _add_model(one)
        _add_limits(one)
    return out


def _add_instruct(out: argparse.ArgumentParser) -> None:
    out.add_argument("--output", required=True, metavar="FILE.jsonl", help="where the rows go")
    out.add_argument("--rows", type=int, required=True, help="how many rows to make")
    out.add_argument("--seed_tasks", nargs="+", default=[str(SEED_TASKS)], metavar="FILE",
                     help="to begin from: as self-instruct has them, or rows (default: those of data/)")  # fmt: skip
    out.add_argument("--language", help="the language of the new rows, such as de or Chinese (default: the examples')")
    out.add_argument("--shown", type=int, default=3, help="seed tasks in a prompt, drawn at random (default: 3)")
    out.add_argument("--tasks", type=int,
                     help="new ones that an answer is to hold (default: 10, or 1 of a small --base_model)")  # fmt: skip
    out.add_argument("--max_tokens", type=int, default=3072, help="of an answer (default: 3072)")
    out.add_argument("--temperature", type=float, default=1.0, help="lower is less varied (default: 1)")
    out.add_argument("--top_p", type=float, help="draw from the likeliest tokens of this share (default: all)")
    out.add_argument("--seed", type=int, default=0, help="another seed asks other questions (default: 0)")


def _add_translate(out: argparse.ArgumentParser) -> None:
    out.add_argument("--to", required=True, metavar="LANGUAGE", help="a code such as zh or de, or an English name")
    out.add_argument("--data_path", required=True, metavar="FILE", help="the rows, in any form that finetune.py reads")
    out.add_argument("--output", metavar="FILE.jsonl", help="where the translated rows go")
    out.add_argument(
        "--sample", type=int, metavar="N", help="only show N rows with their translation, to look at first"
    )
    out.add_argument("--glossary", metavar="FILE", help="how terms are translated: a .csv or .tsv file, a pair a line")
    out.add_argument("--language_tasks", default="adapt", choices=["adapt", "leave", "drop"],
                     help="tasks about a language, such as grammar: adapt translates the instruction and leaves the "
                          "text it works on (default)")  # fmt: skip
    out.add_argument("--tries", type=int, default=3, help="of a text that lost something (default: 3)")
    out.add_argument("--max_tokens", type=int, default=4096, help="of a text's translation, at most (default: 4096)")
    out.add_argument("--temperature", type=float, default=0.0, help="of the first try (default: 0)")


def _add_model(out: argparse.ArgumentParser) -> None:
    group = out.add_argument_group("the model")
    group.add_argument("--url", help="a server with OpenAI's routes, such as http://localhost:8000")
    group.add_argument("--model", help="its name there (default: the only one that is there)")
    group.add_argument("--base_model",
                       help="in place of a server: a folder, a name in weights/ or a hub id, loaded here "
                            "(default: $BASE_MODEL, or the only base)")  # fmt: skip
    group.add_argument("--precision", default="auto", choices=["auto", *SERVED], help="of a base in this process")
    group.add_argument("--concurrency", type=int, default=8, help="questions asked at the same time (default: 8)")
    group.add_argument("--timeout", type=float, default=300.0, help="seconds that an answer may take (default: 300)")


def _add_limits(out: argparse.ArgumentParser) -> None:
    group = out.add_argument_group("limits, of all runs of this output together")
    group.add_argument("--max_tokens_total", type=int, help="tokens of all questions and answers")
    group.add_argument("--max_cost", type=float, help="money, in the currency of the prices")
    group.add_argument("--price_in", type=float, default=0.0, help="of a million tokens of questions")
    group.add_argument("--price_out", type=float, default=0.0, help="of a million tokens of answers")


@exit_on_error
def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, then make rows."""
    options = parser().parse_args(arguments)
    end_as_interrupted()
    # Where another program has one of the cores, OpenMP's threads that spin while they wait for each other wait all the
    # time. torch reads this when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if options.what == INSTRUCT:
        from alpaca.synthesis.instructing import instruct

        instruct(options)
    else:
        from alpaca.synthesis.translating import translate

        translate(options)


if __name__ == "__main__":
    main()
