"""What a translation must keep as it is: code, links, placeholders, tags and numbers.

Blocks of code are taken out before a text is translated and put back after. The other parts stay in the text, so that
sentences stay whole, and the translation is searched for them.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass

BLOCK = re.compile(r"^[ \t]*(```|~~~).*?(?:^[ \t]*\1[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
PART = re.compile(
    r"`[^`\n]+`"  # code in a line
    r"|(?:https?|ftp)://[^\s<>\"'`()（）\[\]{}，。、；：！？]*[^\s<>\"'`()（）\[\]{}，。、；：！？.,;:!?]"
    r"|\bwww\.[^\s<>\"'`()（），。]*[^\s<>\"'`()（），。.,;:!?]"
    r"|\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+"
    r"|\{\{[^{}\n]{1,60}\}\}|\$?\{[^{}\n]{1,60}\}|%\([\w.]+\)[sdf]|(?<!\d)%[sd]\b"
    r"|\[(?:[A-Z][A-Z_ ]{1,30}|[\w ]{0,20}\b(?i:name)\b[\w ]{0,10})\]"
    r"|</?[A-Za-z][\w-]*(?:\s[^<>\n]{0,200})?/?>"
    r"|\$\$[^$]+\$\$|\\\([^\n]+?\\\)"
)
NUMBER = re.compile(r"\d+(?:[.,\u00a0\u202f ]\d{3})+(?!\d)|\d+[.,]\d+|\d+")
MASK = "⟦{number}⟧"
MASKED = re.compile(r"[⟦\[【]\s*(\d+)\s*[⟧\]】]")
LETTER = re.compile(r"[^\W\d_]")


@dataclass(frozen=True, slots=True)
class Masked:
    """A text whose blocks of code are replaced by ⟦1⟧, ⟦2⟧ and so on."""

    text: str
    blocks: tuple[str, ...]

    def restored(self, translation: str) -> str | None:
        """The translation with its blocks; None where one of them is lost or stands there twice."""
        found = [int(match[1]) for match in MASKED.finditer(translation) if "⟦" in match[0]]
        if sorted(found) != list(range(1, len(self.blocks) + 1)):
            return None
        return MASKED.sub(lambda match: self.blocks[int(match[1]) - 1] if "⟦" in match[0] else match[0], translation)

    @property
    def has_words(self) -> bool:
        """Whether anything is left to translate."""
        return bool(LETTER.search(PART.sub("", MASKED.sub("", self.text))))


def masked(text: str) -> Masked:
    """Take the blocks of code out."""
    blocks: list[str] = []

    def take(match: re.Match[str]) -> str:
        blocks.append(match[0])
        return MASK.format(number=len(blocks))

    return Masked(BLOCK.sub(take, text) if "⟦" not in text else text, tuple(blocks))


def lost_parts(text: str, translation: str) -> list[str]:
    """What a text without its blocks of code holds and its translation does not, each once."""
    wanted, found = Counter(PART.findall(text)), Counter(PART.findall(translation))
    # In scripts without spaces a part may run on into the word beside it: then it is looked for as it stands.
    lost = [part for part, count in wanted.items() if found[part] < count and translation.count(part) < count]
    there = numbers_of(translation)
    return lost + [number for number in numbers_of(PART.sub(" ", MASKED.sub(" ", text))) if number not in there]


def numbers_of(text: str) -> dict[str, None]:
    """The numbers in a text, as far as all ways to write them agree: digits of any script, without leading zeros and
    separators of thousands, with a point for decimals."""
    plain = "".join(str(unicodedata.digit(c)) if c.isdecimal() and not c.isascii() else c for c in text)
    return dict.fromkeys(_plain_number(found) for found in NUMBER.findall(plain))


def _plain_number(text: str) -> str:
    if re.fullmatch(r"\d+(?:[.,\u00a0\u202f ]\d{3})+", text):
        text = re.sub(r"\D", "", text)
    whole, _, decimals = text.replace(",", ".").partition(".")
    return (whole.lstrip("0") or "0") + (f".{decimals}" if decimals else "")


CODE_LINE = re.compile(
    r"[;{}]\s*$|^\s*(?:def|class|function|func|fn)\s+\w+\s*[({:]|^\s*(?:from \S+ )?import [\w.{*]|^\s*#include"
    r"|^\s*[)\]}]|^\s*(?:if|elif|for|while|try|else|except|with)\b.*:\s*$|^\s*return\b|^\s*(?:public|private|const|let|var)\s"
    r"|^\s*(?:SELECT|INSERT INTO|UPDATE|CREATE|DELETE FROM|FROM|WHERE)\s|^\s*</?[a-z][\w-]*[ >/]"
    r"|^\s*[\w.\[\]]+\s*[-+*/]?=[^=]|\w\([^)]*\)\s*$"
)


def is_code(text: str) -> bool:
    """Whether a text is a program without a fence around it: every line but a few looks like one."""
    lines = [line for line in text.splitlines() if line.strip()]
    return bool(lines) and sum(bool(CODE_LINE.search(line)) for line in lines) >= 0.7 * len(lines)
