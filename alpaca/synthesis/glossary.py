"""A glossary: how certain terms are to be translated, or that they are not."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass

from alpaca.data.files import read_text
from alpaca.errors import DataNotFound, UnreadableFile
from alpaca.paths import as_written
from alpaca.words import plural

LETTERS = r"[^\W\d_]"


@dataclass(frozen=True, slots=True)
class Glossary:
    """(term, its translation) pairs in the order of the file."""

    pairs: tuple[tuple[str, str], ...] = ()

    def within(self, text: str) -> tuple[tuple[str, str], ...]:
        """The pairs whose term is in a text, as a word of its own, whatever its case."""
        return tuple(pair for pair in self.pairs if _pattern(pair[0]).search(text))

    def missing(self, text: str, translation: str) -> list[str]:
        """The translations of terms in `text` that are not in its translation; endings may differ."""
        there = translation.casefold()
        return [wanted for _, wanted in self.within(text) if wanted.casefold() not in there]


def read_glossary(source: str) -> Glossary:
    """Read a .csv or .tsv file of two columns: a term and its translation (the same again: it is kept).

    Blank lines and those that begin with # are left out. Raises DataNotFound, or UnreadableFile with the line.
    """
    path = as_written(source)
    if not path.is_file():
        raise DataNotFound(f"--glossary {source}: there is no such file")
    text = read_text(path)
    delimiter = "\t" if "\t" in text else ";" if ";" in text and "," not in text else ","
    pairs = []
    for number, line in enumerate(csv.reader(io.StringIO(text), delimiter=delimiter), 1):
        cells = [cell.strip() for cell in line]
        if not any(cells) or cells[0].startswith("#"):
            continue
        if len(cells) != 2 or not all(cells):
            raise UnreadableFile(
                f"{source}, line {number}: has {plural(len(cells), 'column')}; a term and its translation are two"
            )
        pairs.append((cells[0], cells[1]))
    return Glossary(tuple(pairs))


def _pattern(term: str) -> re.Pattern[str]:
    start = rf"(?<!{LETTERS})" if term[0].isascii() else ""
    end = rf"(?:s|es)?(?!{LETTERS})" if term[-1].isascii() else ""
    return re.compile(f"{start}{re.escape(term)}{end}", re.IGNORECASE)
