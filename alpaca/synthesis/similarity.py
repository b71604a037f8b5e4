"""How alike two instructions are: ROUGE-L (Lin, 2004), the F-measure of their longest common subsequence of words.

With a subsequence of length l of m and n words it is 2l / (m + n), which is rapidfuzz's normalised indel similarity
when every word is one letter of an alphabet of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Scripts that put no space between words count by the letter.
WORD = re.compile(r"[぀-ヿ㐀-鿿豈-﫿฀-๿຀-໿က-႟ក-៿]|[^\W_぀-ヿ㐀-鿿豈-﫿฀-๿຀-໿က-႟ក-៿]+")
SURROGATES = (0xD800, 0x800)  # where they begin, and how many
ALPHABET = 0x10F000


class Pool:
    """Instructions that are there already."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._letters: dict[str, str] = {}
        self._coded: list[str] = []
        self._texts: list[str] = []
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        self._texts.append(text)
        self._coded.append(self._code(text))

    def nearest(self, text: str, least: float) -> tuple[str, float] | None:
        """The most alike of those whose ROUGE-L with `text` is above `least` (0 to 1), and what it is."""
        from rapidfuzz.distance import Indel
        from rapidfuzz.process import extractOne

        found = extractOne(
            self._code(text), self._coded, scorer=Indel.normalized_similarity, score_cutoff=least, processor=None
        )
        if found is None or found[1] <= least:
            return None
        return self._texts[found[2]], found[1]

    def _code(self, text: str) -> str:
        return "".join(self._letters.setdefault(word, _letter(len(self._letters))) for word in words(text))


def words(text: str) -> list[str]:
    """Its words in small letters, without punctuation."""
    return WORD.findall(text.casefold())


def _letter(number: int) -> str:
    code = 1 + number % ALPHABET
    first, count = SURROGATES
    return chr(code if code < first else code + count)
