"""A second validation file: its rows are never trained on, and their loss is reported apart from the held-out rows'."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpaca.data.columns import parse_columns
from alpaca.data.plain_text import in_sections
from alpaca.data.reader import read_examples
from alpaca.errors import DataError, NoRowsLeft
from alpaca.prompts.encode import Encoded, encode_examples
from alpaca.prompts.template import Template
from alpaca.training.config import FinetuneConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ValidationFile:
    """The rows of --val_data_path as tokens. `left_out`: rows of which nothing fits; `trained`: how many rows are
    training rows as well."""

    source: str
    examples: list[Encoded]
    left_out: int
    trained: int

    @property
    def name(self) -> str:
        return Path(self.source).name

    @property
    def rows(self) -> int:
        """How many rows are measured; one may have become several examples."""
        return len({example.row for example in self.examples})

    def line(self) -> str:
        """For people."""
        left_out = f"; {self.left_out} more do not fit in cutoff_len or the template" if self.left_out else ""
        trained = f"; {self.trained} of them are training rows too, so its loss flatters" if self.trained else ""
        return f"{self.rows} rows of {self.name}, measured apart{left_out}{trained}"


@dataclass(frozen=True)
class FileLoss:
    """The loss per label on the file, before and after the training."""

    source: str
    rows: int
    before: float
    after: float

    def line(self) -> str:
        return f"{self.before:.4f} before, {self.after:.4f} after, on {self.rows} rows of {self.source}"


def read_validation_file(
    config: FinetuneConfig,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    *,
    cutoff: int,
    training_rows: Container[str],
) -> ValidationFile | None:
    """Read config.val_data_path, None where it is empty. `training_rows`: the keys of the rows that are trained on.

    Raises the reader's errors, naming the option, and NoRowsLeft where no row fits.
    """
    if not config.val_data_path:
        return None
    columns = parse_columns(config.columns)
    try:
        rows = read_examples(config.val_data_path, columns=columns, skip_bad_rows=config.skip_bad_rows).examples
    except DataError as error:
        raise type(error)(f"val_data_path: {error.message}") from None
    rows = in_sections(rows)
    encoded: Any = encode_examples(tokenizer, template, rows, cutoff_len=cutoff)
    if not encoded.examples:
        raise NoRowsLeft(
            f"val_data_path: none of the {len(rows)} rows of {config.val_data_path} fits in cutoff_len {cutoff}"
        )
    trained = sum(row.key() in training_rows for row in rows)
    left_out = len(rows) - len({example.row for example in encoded.examples})
    return ValidationFile(config.val_data_path, encoded.examples, left_out, trained)
