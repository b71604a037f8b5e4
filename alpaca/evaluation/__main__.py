"""`python -m alpaca.evaluation --adapter FOLDER`: what a fine-tune learned, what it forgot, and what to do about it."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path

from alpaca.adapter.ancestry import find_together
from alpaca.adapter.card import read_card
from alpaca.adapter.folder import WEIGHTS, check_there
from alpaca.base.find import resolve_base
from alpaca.base.precision import PRECISIONS
from alpaca.data.general import SHIPPED
from alpaca.errors import BadSetting, exit_on_error
from alpaca.evaluation.sets import PROBES, find_domain, find_general, find_probes
from alpaca.evaluation.whole import is_whole
from alpaca.paths import as_written

EPILOG = """\
examples:
  python -m alpaca.evaluation --adapter lora-alpaca                      everything, on the rows its run held out
  python -m alpaca.evaluation --adapter lora-alpaca --budget 60          as much as fits into a minute
  python -m alpaca.evaluation --adapter theirs --data_path mine.jsonl    an adapter from elsewhere, on your rows
  python -m alpaca.evaluation --adapter alpaca-full                      a model all of whose weights were tuned

The report goes into that folder: report/index.html. docs/report.md says how to read it.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(
        prog="python -m alpaca.evaluation", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measure what an adapter or a tuned model learned and forgot; the report goes into its folder.",
        allow_abbrev=False,
    )  # fmt: skip
    out.add_argument("--adapter", type=as_written, default=Path("lora-alpaca"), metavar="FOLDER",
                     help="the folder of an adapter or of a tuned model (default: lora-alpaca)")  # fmt: skip
    out.add_argument("--base_model", default="", metavar="BASE", help="what it was tuned from, as for finetune.py")
    out.add_argument("--precision", default="auto", choices=["auto", *PRECISIONS], help="how the base is held")
    out.add_argument("--data_path", metavar="FILE",
                     help="the rows it was trained on, if they are not where the card's name leads; other rows all "
                          "count as held out")  # fmt: skip
    out.add_argument("--beside", type=as_written, nargs="+", default=[], metavar="FOLDER",
                     help="the adapters that it was trained beside (--new_adapter), if they lie elsewhere")  # fmt: skip
    out.add_argument("--general_path", type=as_written, default=SHIPPED, metavar="FILE",
                     help="general rows, a third of which measures forgetting")  # fmt: skip
    out.add_argument("--probes_path", type=as_written, default=PROBES, metavar="FILE", help="questions with a check")
    out.add_argument("--budget", type=float, metavar="SECONDS",
                     help="about how long it may take; fewer rows are measured then (default: no limit)")  # fmt: skip
    return out


@exit_on_error
def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and write the report."""
    options = parser().parse_args(arguments)
    if options.budget is not None and not (math.isfinite(options.budget) and options.budget > 0):
        raise BadSetting(f"--budget is {options.budget:g}: give seconds above 0, or leave it out for no limit")
    if not is_whole(options.adapter):
        check_there(options.adapter)
    base = resolve_base(options.base_model or None)
    # Read once before anything heavy is loaded, so that a mistake in a path or a row answers at once.
    card = read_card(options.adapter)
    find_together(options.adapter, WEIGHTS, card.on_top_of if card is not None else None, options.beside)
    find_domain(card, options.data_path)
    find_general(options.general_path, [])
    find_probes(options.probes_path)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from alpaca.evaluation.report import write_report

    write_report(
        options.adapter,
        base,
        precision=options.precision,
        budget_seconds=options.budget,
        data_path=options.data_path,
        general_path=options.general_path,
        probes_path=options.probes_path,
        beside=options.beside,
        say=lambda line: print(line, flush=True),
    )


if __name__ == "__main__":
    main()
