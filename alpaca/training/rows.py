"""The rows of a run: read, split into those trained on and those held out, and made into tokens."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from alpaca.base.headers import read_config
from alpaca.data.columns import parse_columns
from alpaca.data.plain_text import joined
from alpaca.data.reader import read_examples, refuse_bad_rows
from alpaca.data.report import Fault, ReadReport
from alpaca.data.split import Split, split
from alpaca.errors import NoRowsLeft
from alpaca.progress import Say
from alpaca.prompts.encode import EncodedSet, encode_examples
from alpaca.prompts.example import Example
from alpaca.prompts.template import Template
from alpaca.training.checkpoints import latest_run, split_rule
from alpaca.training.config import FinetuneConfig
from alpaca.training.validation_file import ValidationFile, read_validation_file
from alpaca.words import tagged


@dataclass(frozen=True)
class Rows:
    """What was read and how it was split; the rows as tokens; a second validation file, if there is one."""

    read: ReadReport
    sha256: str
    split: Split
    train: EncodedSet
    validation: EncodedSet
    validation_file: ValidationFile | None

    @property
    def cutoff(self) -> int:
        return self.train.report.cutoff_len


def read_rows(config: FinetuneConfig, base: Path, tokenizer: Any, template: Template, say: Say) -> Rows:
    """Read config.data_path and say what became of its rows. Raises the reader's errors, and NoRowsLeft."""
    columns = parse_columns(config.columns)
    dataset = read_examples(config.data_path, columns=columns, skip_bad_rows=config.skip_bad_rows)
    rule = split_rule(config.resume_from_checkpoint, latest_run(Path(config.output_dir)))
    parts = split(dataset.examples, config.val_set_size, config.seed, rule)
    cutoff, note = _cutoff(config.cutoff_len, base)
    train = encode(tokenizer, template, joined(parts.train), cutoff, config.train_on_inputs)
    validation = encode(tokenizer, template, parts.validation, cutoff, False)
    refused = [*train.report.refused, *validation.report.refused]
    dataset.report.add_faults(Fault(dataset.report.source, found.row, "", found.problem) for found in refused)
    refuse_bad_rows(dataset.report, config.skip_bad_rows)
    for line in dataset.report.lines():
        say(tagged("data", line))
    say(tagged("split", parts.note))
    for line in [note] * bool(note) + train.report.lines():
        say(tagged("lengths", line))
    trained = {example.key() for example in parts.train}
    validation_file = read_validation_file(config, tokenizer, template, cutoff=cutoff, training_rows=trained)
    if validation_file is not None:
        say(tagged("validation", validation_file.line()))
    if not train.examples:
        raise NoRowsLeft(
            f"none of the {len(parts.train)} training rows fits in cutoff_len {cutoff}: raise --cutoff_len"
        )
    return Rows(dataset.report, dataset.sha256, parts, train, validation, validation_file)


def encode(tokenizer: Any, template: Template, examples: list[Example], cutoff: int, on_inputs: bool) -> EncodedSet:
    """The examples as tokens, with a bar on a terminal where there are many."""
    visible = len(examples) > 5000 and sys.stderr.isatty()
    with tqdm(total=len(examples), desc="tokenising", unit="row", disable=not visible, leave=False) as bar:
        return encode_examples(
            tokenizer, template, examples, cutoff_len=cutoff, train_on_inputs=on_inputs,
            progress=lambda done, _: bar.update(done - bar.n) and None,
        )  # fmt: skip


def _cutoff(asked: int, base: Path) -> tuple[int, str]:
    most = read_config(base).get("max_position_embeddings")
    if isinstance(most, int) and asked > most:
        return most, f"cutoff_len {asked} is beyond the base's {most} positions, so {most}"
    return asked, ""
