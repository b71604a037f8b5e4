"""What an answer claims that a program can check against another text: numbers with units, dates, names, yes or no.

No model judges anything. So only what is written as a number or a name is seen: not whether the sentence around it is
true, nor a wrong statement that has neither (docs/report.md says more).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import regex

from alpaca.data.languages import language_of
from alpaca.evaluation.dates import MONTH
from alpaca.evaluation.quantities import quantities
from alpaca.evaluation.quantity import Quantity
from alpaca.evaluation.vocabulary import COMMON

YES = regex.compile(r"(?i)\s*(?:(?:yes|yeah|ja|oui|sí|si|sim|sì|да)\b|(?:是|是的|对|可以|能|会)(?=[,，。.!！])|はい)")
NO = regex.compile(
    r"(?i)\s*(?:(?:no|nope|nein|non|não|nee|нет)\b(?!\.\s*\d)|(?:不|不是|不对|不可以|不能|不会|没有)(?=[,，。.!！])|いいえ)"
)
CAPITALISED = r"\p{Lu}[\p{L}\p{M}\d'’]*(?:-\p{L}[\p{L}\p{M}]*)*"
NAME = regex.compile(
    rf"(?<![\p{{L}}\p{{M}}\d])(?:{CAPITALISED}(?:[ \u00a0](?:(?:of|de|del|van|von|der) )?{CAPITALISED})*"
    r"|[\p{Latin}\d]*\p{Latin}\d[\p{Latin}\d]*)|《([^《》]{1,40})》"
)
TITLES_NOUNS = {"German"}  # capitalises all its nouns: no name is told from them
ODD = regex.compile(r"\d|\p{Ll}\p{Lu}|^\p{Lu}{2,}$")  # in a word that is a name wherever it stands
BEGINNING = regex.compile(r"(?:^|[.!?:;…。！？：；\n\"“”«»„(（•*-])\s*(?:\d{1,2}[.)]\s+)?$")
MOST_TEXT = 4_000  # characters of a text that are looked at
LEAST = 2  # letters of a name


@dataclass(frozen=True)
class Comparison:
    """An answer against a reference, each claim as it stands in its text.

    Of the reference's claims: `kept` and `missing`. Of the answer's own, which the reference does not have and the
    question neither: `contradicted`, where the reference gives another number in this unit, another date or the other
    of yes and no, and `invented`. `evaded`: the reference begins with yes or no, and the answer with neither.
    """

    kept: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    invented: tuple[str, ...] = ()
    contradicted: tuple[str, ...] = ()
    evaded: bool = False

    @property
    def doubt(self) -> float:
        """How much there is to doubt, for an order: a contradiction counts twice, and so does a yes or no that is not
        said; what is missing counts half."""
        return 2 * (len(self.contradicted) + self.evaded) + len(self.invented) + len(self.missing) / 2


@dataclass(frozen=True)
class Name:
    """A name as it stands, and its words in small letters."""

    shown: str
    words: frozenset[str]

    def agrees(self, other: Name) -> bool:
        """Whether they share a word: a person's last name stands for the person."""
        return bool(self.words & other.words)


T = TypeVar("T", Name, Quantity)


@dataclass(frozen=True)
class Claims:
    """What one text claims. `says`: yes or no, where it begins with either."""

    numbers: tuple[Quantity, ...]
    names: tuple[Name, ...]
    says: str = ""


class Lexicon:
    """Words that are written small somewhere in `texts`, or are known so (`words`): at the beginning of a sentence they
    are no names."""

    def __init__(self, texts: Iterable[str], words: Iterable[str] = ()) -> None:
        self.words = {word for text in texts for word in regex.findall(r"\b\p{Ll}[\p{L}\p{M}]*", text)} | set(words)

    def __contains__(self, word: str) -> bool:
        small = regex.split("['’-]", word.casefold())[0]
        return small in COMMON or small in self.words or small.removesuffix("s") in self.words

    def claims(self, text: str) -> Claims:
        """All that the first 4,000 characters of `text` claim, each claim once."""
        text = text[:MOST_TEXT]
        says = "yes" if YES.match(text) else "no" if NO.match(text) else ""
        return Claims(tuple(_once(quantities(text))), tuple(_once(self._names(text))), says)

    def _names(self, text: str) -> Iterable[Name]:
        nouns = language_of(text) in TITLES_NOUNS
        for match in NAME.finditer(text):
            shown = match[1] or match[0]
            words = shown.replace("\u00a0", " ").split(" ")
            if match[1] is None and not ODD.search(words[0]):
                if nouns and not ODD.search(shown):
                    continue
                if words[0] in self and BEGINNING.search(text[: match.start()]):
                    words = words[1:]
            kept = [word for word in map(_bare, words) if _may_name(word)]
            if kept:
                yield Name(" ".join(words), frozenset(word.casefold() for word in kept))


def compare(answer: Claims, reference: Claims, question: Claims) -> Comparison:
    """An answer against the reference. What already stands in the question is nobody's claim."""
    numbers = [number for number in answer.numbers if not _among(number, question.numbers)]
    names = [name for name in answer.names if not _among(name, question.names)]
    kept = [claim.shown for claim in reference.numbers if _among(claim, answer.numbers)]
    kept += [claim.shown for claim in reference.names if _among(claim, answer.names)]
    missing = [claim.shown for claim in reference.numbers if not _among(claim, (*answer.numbers, *question.numbers))]
    missing += [claim.shown for claim in reference.names if not _among(claim, (*answer.names, *question.names))]
    invented = [name.shown for name in names if not _among(name, reference.names)]
    contradicted: list[str] = []
    for number in (number for number in numbers if not _among(number, reference.numbers)):
        other = number.measures and any(number.measures == known.measures for known in reference.numbers)
        (contradicted if other else invented).append(number.shown)
    if reference.says and answer.says:
        (kept if answer.says == reference.says else contradicted).append(answer.says)
    evaded = bool(reference.says) and not answer.says
    if evaded:
        missing.append(reference.says)
    return Comparison(tuple(kept), tuple(missing), tuple(invented), tuple(contradicted), evaded)


def _among(claim: T, others: Iterable[T]) -> bool:
    return any(claim.agrees(other) for other in others)


def _once(claims: Iterable[T]) -> list[T]:
    """Without those that agree with an earlier one."""
    found: list[T] = []
    for claim in claims:
        if not _among(claim, found):
            found.append(claim)
    return found


def _may_name(word: str) -> bool:
    small = len(word) < LEAST or word.casefold() in COMMON or word.casefold() in MONTH
    return not small and not YES.fullmatch(word) and not NO.fullmatch(word)


def _bare(word: str) -> str:
    """Without what stands for its case: Peru's, l'Inca."""
    return regex.sub(r"['’]s?$", "", regex.sub(r"^\p{L}['’]", "", word))
