"""Settings from the command line, the environment and a YAML file, in this order of precedence."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alpaca.errors import BadSetting
from alpaca.paths import as_written
from alpaca.training.config import FinetuneConfig, listed, number

ROW_FILES = (".json", ".jsonl", ".csv", ".parquet", ".txt")
# The tutorial's readers set these; BASE_MODEL is read where a base is looked for.
ENVIRONMENT = {"MICRO_BATCH_SIZE": "micro_batch_size", "DATA_PATH": "data_path"}


def parser() -> argparse.ArgumentParser:
    """One option per field of FinetuneConfig, with its help and default."""
    made = argparse.ArgumentParser(
        description="Fine-tune a base with LoRA. Without arguments: data/alpacas.jsonl on the only base in weights/.",
        usage="%(prog)s [--option VALUE …]",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=118),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    made.add_argument("--config", metavar="FILE", help="YAML file with any of the settings below; options override it")
    defaults = FinetuneConfig()
    for field in dataclasses.fields(FinetuneConfig):
        default = getattr(defaults, field.name)
        written = ",".join(default) if isinstance(default, list) else "" if default is None else default
        may_be_bare = "bool" in str(field.type) or field.name == "resume_from_checkpoint"
        bare = {"nargs": "?", "const": "true"} if may_be_bare else {}
        if isinstance(default, list):
            bare = {"nargs": "+"}
        notes = [f"default: {written}"] if written != "" else []
        if within := field.metadata.get("within"):
            notes.append(f"{number(within[0])} to {number(within[1])}")
        if choices := field.metadata.get("choices"):
            notes.append(listed(choices))
        help = field.metadata["help"] + (f" ({'; '.join(notes)})" if notes else "")
        made.add_argument(f"--{field.name}", metavar="VALUE", help=help.replace("%", "%%"), **bare)  # type: ignore[arg-type]
    return made


def unknown_option(text: str) -> BadSetting:
    """The error for what is no option, with the nearest one."""
    if not text.startswith("-") and (Path(text).suffix in ROW_FILES or as_written(text).is_file()):
        return BadSetting(f"'{text}' is no option; did you mean --data_path {text}?")
    near = difflib.get_close_matches(text, [f"--{field.name}" for field in dataclasses.fields(FinetuneConfig)], n=1)
    hint = f"did you mean {near[0]}?" if near else "--help lists the options"
    return BadSetting(
        f"there is no option {text}; {hint}" if text.startswith("-") else f"'{text}' is no option; {hint}"
    )


def read_settings(arguments: Sequence[str] | None = None) -> FinetuneConfig:
    """Make the configuration. Raises BadSetting naming where a bad value came from."""
    known, unknown = parser().parse_known_args(arguments)
    if unknown:
        raise unknown_option(unknown[0])
    given = vars(known)
    values: dict[str, Any] = {}
    if path := given.pop("config", None):
        values |= {name: (value, path) for name, value in FinetuneConfig.from_yaml(as_written(path)).items()}
    for variable, name in ENVIRONMENT.items():
        if os.environ.get(variable):
            values[name] = (os.environ[variable], f"the variable {variable}")
    for name, value in given.items():
        values[name] = (",".join(value) if isinstance(value, list) else value, f"--{name}")
    return FinetuneConfig.from_sourced(values)
