"""`python -m alpaca.data FILE`: look at rows before they cost hours of training."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alpaca.errors import BadSetting, BaseError, NoRowsLeft, exit_on_error
from alpaca.paths import this_python
from alpaca.progress import say_aside
from alpaca.words import plural

if TYPE_CHECKING:
    from alpaca.data.check import Check
    from alpaca.data.fix import Mended
    from alpaca.data.misfits import Look
    from alpaca.data.scan import Scan
    from alpaca.data.yardstick import Yardstick

MANY = 5000  # rows from which the look takes seconds
MOST_ASKED = 500  # rows that a base is asked about if nothing else is said
EPILOG = """\
examples:
  python -m alpaca.data mine.jsonl                         is it fit to train, and what is odd in it?
  python -m alpaca.data mine.jsonl --base_model weights/smollm2-135m-instruct      do the answers fit their questions?
  python -m alpaca.data mine.jsonl --plot lengths.png      lengths as a picture too
  python -m alpaca.data mine.jsonl --fix better.jsonl      write what can be mended
  python -m alpaca.data mine.jsonl --preview 3             what is trained and what is masked, token by token

exit status: 0 fit to train (with --fix: what was written is), 1 not fit, 2 a mistake in the command or its files
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(
        prog="python -m alpaca.data", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Look at rows before they cost hours of training: faults, copies, odd rows, languages, lengths.",
        allow_abbrev=False,
    )  # fmt: skip
    out.add_argument(
        "file", metavar="FILE", help=".json, .jsonl, .csv, .parquet or .txt, or the id of a data set of the hub"
    )
    out.add_argument("--base_model", default="", metavar="BASE",
                     help="as for finetune.py; without any base, lengths are characters; one that is named here is "
                          "also asked which answers do not fit their questions")  # fmt: skip
    out.add_argument("--fit_rows", type=int, default=MOST_ASKED, metavar="N",
                     help="with --base_model: ask it about at most N rows (default: %(default)s; 0: none)")  # fmt: skip
    out.add_argument("--prompt_template_name", default="auto", metavar="NAME", help="as for finetune.py")
    out.add_argument(
        "--cutoff_len", type=int, default=1024, metavar="TOKENS", help="as for finetune.py (default: 1024)"
    )
    out.add_argument(
        "--columns", default="", metavar="THEIRS=OURS,…", help="as for finetune.py: columns of other names"
    )
    out.add_argument("--json", default="", metavar="OUT.json", help="write everything that was found, with all rows")
    out.add_argument("--plot", default="", metavar="OUT.png", help="draw the lengths")
    out.add_argument("--fix", default="", metavar="OUT.jsonl", help="write the rows mended; OUT.jsonl must be new")
    out.add_argument("--preview", type=int, metavar="N",
                     help="show only the first N rows as tokens; HTML where the output is no terminal")  # fmt: skip
    out.add_argument(
        "--html", default="", metavar="OUT.html", help="write the preview there (of 3 rows, if --preview does not say)"
    )
    return out


@exit_on_error
def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and look. Ends with status 1 where the rows are not fit to train on."""
    options = parser().parse_args(arguments)
    if options.preview is not None or options.html:
        _preview(options)
        return
    if options.fit_rows < 0:
        raise BadSetting(f"--fit_rows is {options.fit_rows}: give a number of rows, or 0 for none")
    targets = _targets(options)
    from alpaca.data.check import check_rows
    from alpaca.data.columns import parse_columns
    from alpaca.data.fix import mend
    from alpaca.data.scan import scan_rows

    scan = scan_rows(options.file, parse_columns(options.columns))
    if options.fix and scan.is_text:
        raise BadSetting(f"--fix writes rows, and {options.file} is plain text: correct it in an editor")
    yardstick, why_none = _yardstick(options)
    if scan.rows_read > MANY and sys.stderr.isatty():
        say_aside(f"looking at {scan.rows_read} rows …")
    check = check_rows(scan, yardstick, why_none, _look(options, scan, yardstick))
    mended = mend(scan) if options.fix else None
    _print(check, yardstick, mended)
    if "--plot" in targets and check.trainable:
        from alpaca.data.histogram import draw

        draw(check.lengths, options.file, targets["--plot"])
        print(f"\nwrote {targets['--plot']}")
    report = check.as_json()
    fit = not check.unfit()
    if mended is not None:
        fit = _fix(scan, mended, yardstick, targets["--fix"])
        report["fix"] = {"file": str(targets["--fix"]), "rows": len(mended.examples), "done": mended.done}
    if "--json" in targets:
        from alpaca.files import written_aside

        text = json.dumps(report, ensure_ascii=False, indent=1) + "\n"
        with written_aside(targets["--json"]) as aside:
            aside.write_text(text, encoding="utf-8", errors="backslashreplace")  # half a character
        print(f"\nwrote {targets['--json']}")
    sys.exit(0 if fit else 1)


def _targets(options: argparse.Namespace) -> dict[str, Path]:
    """Where to write, by option, refused before any work where it can't be."""
    from alpaca.data.output_file import output_path

    given = {"--json": (options.json, ".json"), "--plot": (options.plot, ".png"), "--fix": (options.fix, ".jsonl")}
    return {
        option: output_path(option, name, ending, options.file, new=option == "--fix")
        for option, (name, ending) in given.items()
        if name
    }


def _yardstick(options: argparse.Namespace) -> tuple[Yardstick | None, str]:
    """The base's tokenizer, or None with the reason; a base that was asked for must be there."""
    from alpaca.data.yardstick import open_yardstick

    try:
        return open_yardstick(options.base_model, options.prompt_template_name, options.cutoff_len), ""
    except BaseError as error:
        if options.base_model or os.environ.get("BASE_MODEL"):
            raise
        return None, f"no tokens: {error.message.partition('. ')[0]}; name a base with --base_model"


def _look(options: argparse.Namespace, scan: Scan, yardstick: Yardstick | None) -> Look | None:
    """What a base that was named says of the rows; it costs minutes, so that one that is only there is not asked."""
    examples = scan.trainable()
    if not (options.base_model and options.fit_rows and yardstick and examples):
        return None
    from alpaca.data.misfits import look

    return look(examples, yardstick, options.fit_rows, say_aside)


def _print(check: Check, yardstick: Yardstick | None, mended: Mended | None) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    colour = "red" if check.unfit() else "yellow" if check.warnings else "green"
    if mended is not None and (loss := mended.loss(check.scan)):
        console.print(f"{check.scan.source}: {loss}", style="bold red")
    console.print(f"{check.scan.source}: {check.verdict()}", style=f"bold {colour}")
    if mended is None:
        console.print(check.advice())
    for title, lines in check.sections():
        console.print(f"\n{title}", style="bold")
        for line in lines:
            console.print(f"  {line}")
    if yardstick and yardstick.note:
        console.print(f"  {yardstick.note}")


def _fix(scan: Scan, mended: Mended, yardstick: Yardstick | None, target: Path) -> bool:
    """Write the mended rows, say what was done and how many of them will train; whether any will."""
    from alpaca.data.fix import write_rows

    print("\nMended")
    for line in mended.lines():
        print(f"  {line}")
    if not mended.examples:
        print(f"  no row is left, so {target} was not written")
        return False
    write_rows(mended.examples, target)
    print(f"  wrote {target}: {len(mended.examples)} of {scan.rows_read} rows; {scan.source} is as it was")
    report = yardstick.encode(mended.examples).report if yardstick else None
    will = report.kept if report else len(mended.examples)
    if not will:
        print("  nothing fits")
        return False
    beyond = len(mended.examples) - will
    lost = f"; the other {beyond} do not fit in cutoff_len {report.cutoff_len}" if report and beyond else ""
    print(f"  {plural(will, 'row')} will train{lost}: {this_python()} finetune.py --data_path {target}")
    return True


def _preview(options: argparse.Namespace) -> None:
    """Show rows as tokens instead of checking them."""
    from alpaca.data.columns import parse_columns
    from alpaca.data.output_file import output_path
    from alpaca.files import written_aside

    if others := [name for name in ("json", "plot", "fix") if getattr(options, name)]:
        raise BadSetting(f"--preview only shows rows; leave out --{others[0]}, or run the check by itself")
    count = 3 if options.preview is None else options.preview
    if count < 1:
        raise BadSetting(f"--preview is {count}: at least 1 row")
    target = output_path("--html", options.html, ".html", options.file) if options.html else None
    from alpaca.data.preview import encode_first, page, show
    from alpaca.data.scan import scan_rows
    from alpaca.data.yardstick import open_yardstick

    examples = scan_rows(options.file, parse_columns(options.columns)).trainable()
    if not examples:
        raise NoRowsLeft(f"{options.file}: no row has anything to train on; run without --preview to see why")
    yardstick = open_yardstick(options.base_model, options.prompt_template_name, options.cutoff_len)
    rows, notes = encode_first(yardstick, examples, count)
    if target is None and sys.stdout.isatty():
        show(yardstick, rows, notes)
    elif target is None:
        print(page(yardstick, rows, notes, options.file), end="")
    else:
        with written_aside(target) as aside:
            aside.write_text(page(yardstick, rows, notes, options.file), encoding="utf-8")
        print(f"wrote {target}: {len(rows)} rows")


if __name__ == "__main__":
    main()
