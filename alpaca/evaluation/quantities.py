"""Numbers in a text with their units, and dates: what they say, whatever the language's way to write them.

A spelling that means different numbers in different languages (1.234) has all its meanings at once: two quantities
agree if any meanings of them do. A range agrees with whatever lies in it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import replace

import regex

from alpaca.evaluation.dates import dates, years
from alpaca.evaluation.quantity import DATE, Quantity, Span
from alpaca.evaluation.units import BEFORE, UNITS, measured
from alpaca.evaluation.vocabulary import COMMON

YEARS = range(1000, 2101)  # a bare number among these is taken for a year
# Words of each number that is often written out, in English, German, French and Spanish, but
# for those that are another word in English. One is mostly an article.
WORDS = {
    2: "two zwei deux dos", 3: "three drei trois tres", 4: "four vier quatre cuatro", 5: "five fünf cinq cinco",
    6: "six sechs seis", 7: "seven sieben sept siete", 8: "eight acht huit ocho", 9: "nine neun neuf nueve",
    10: "ten zehn dix diez", 11: "eleven elf onze", 12: "twelve zwölf douze doce dozen dutzend", 13: "thirteen",
    14: "fourteen vierzehn", 15: "fifteen fünfzehn quinze quince", 16: "sixteen", 17: "seventeen", 18: "eighteen",
    19: "nineteen", 20: "twenty zwanzig vingt veinte", 30: "thirty dreißig trente treinta", 40: "forty vierzig",
    50: "fifty fünfzig", 60: "sixty sechzig", 70: "seventy siebzig", 80: "eighty achtzig", 90: "ninety neunzig",
}  # fmt: skip
WORD = {word: number for number, words in WORDS.items() for word in words.split()}
TIMES = {
    100.0: "hundred hundert cien ciento", 1e3: "thousand tausend mille mil k 千", 1e4: "万 萬",
    1e6: "million millions millionen mio millón millones", 1e8: "亿 億",
    1e9: "billion billions milliarde milliarden mrd milliard milliards",
}  # fmt: skip
MULTIPLE = {word: factor for factor, words in TIMES.items() for word in words.split()}
HAN = {**{digit: value for value, digit in enumerate("零一二三四五六七八九")}, "〇": 0, "两": 2}
HAN_TIMES = {"十": 10, "百": 100, "千": 1000, "万": 10_000, "亿": 100_000_000}

LIST_MARK = regex.compile(r"(?m)^[ \t]*(?:\(?\d{1,2}[.)](?=\s)|\d{1,2}、|[-*•])[ \t]*")
LIST_BEGINS = regex.compile(r"\n[ \t]*\(?[1１](?:[.)]\s|、)")  # and was cut off before its second item
PERCENT = regex.compile(r"百分之([\d.〇零一二两三四五六七八九十百]+)")
_GROUPED = r"\d{1,3}(?:[ \u00a0\u202f'’]\d{3})+(?:[.,]\d+)?(?!\d)"
_WORDS = "|".join(sorted(WORD, key=len, reverse=True))
_ONE = "one ein eine einen einem einer un une uno una".replace(" ", "|")
_MEASURES = "个年岁月天日周次种条人位只头倍元块名项份家点层成度公千克斤吨米厘毫小分秒"
_AFTER_ONE = "|".join(
    sorted((word for word in {*UNITS, *MULTIPLE} if len(word) > 2 and word[0].isalpha()), key=len, reverse=True)
)
NUMBER = regex.compile(
    r"(?<![\p{Latin}\p{Greek}\p{Cyrillic}\d_.,]|\p{L}-)(?:"
    rf"(?<digits>(?<sign>(?<![^\s(])[-−])?(?:{_GROUPED}|\d+(?:[.,]\d+)*)(?<half>½)?)"
    rf"|(?i:(?<word>(?:{_WORDS})(?:[-\s](?:{_WORDS}|one))?))(?![\p{{L}}\d])"
    rf"|(?i:(?<one>{_ONE})(?=[-\s](?:{_AFTER_ONE})\b))"
    rf"|(?<han>[〇零一二两三四五六七八九十百千万亿]+)(?=[{_MEASURES}%％]))"
)
UNIT = regex.compile(
    r"(?i)[-\s\u202f]?(" + "|".join(map(regex.escape, sorted(UNITS, key=len, reverse=True))) + r")(?![\p{Latin}\d])"
)
VERBS = ("will", "would", "may", "must", "should", "could", "might", "has", "had", "were")
NO_NOUN = "|".join(sorted(COMMON | {"bis", "oder", "ou", "und", "et", *VERBS}))
NOUN = regex.compile(rf"(?i)[-\s\u202f]?(?:个?((?![至到或和与])\p{{Han}})|(?!(?:{NO_NOUN})\b)([\p{{L}}\p{{M}}]{{2,}}))")
RANGE = regex.compile(r"(?i)\s*(?:-|–|—|~|～|to|bis|à|a|至|到|or|oder|ou|o|或)\s*")
BETWEEN = regex.compile(r"(?i)\b(?:between|zwischen|entre)(?:\s\p{L}+)?\s*$")
AND = regex.compile(r"(?i)\s*(?:and|und|et|y)\s*")


def quantities(text: str) -> list[Quantity]:
    """The numbers and dates of a text, in order. Numbers that count the lines of a list are none."""
    text = _plain(text)
    found: list[tuple[int, Quantity]] = []
    for start, end, date in dates(text):
        found.append((start, date))
        text = text[:start] + " " * (end - start) + text[end:]
    found += [(start, quantity) for start, _, quantity in _ranges(text, list(_numbers(text)))]
    return [quantity for _, quantity in sorted(found, key=lambda pair: pair[0])]


def _plain(text: str) -> str:
    """Digits of every script as 0 to 9, wide forms as narrow ones, no numbers of list items; each character has one in
    its place."""
    if len(LIST_MARK.findall(text)) > 1 or LIST_BEGINS.search(text):
        text = LIST_MARK.sub(lambda mark: " " * len(mark[0]), text)
    text = PERCENT.sub(lambda found: f"{found[1]}%  ", text)
    return "".join(_digit(letter) for letter in text)


def _digit(letter: str) -> str:
    if letter.isdecimal():
        return str(unicodedata.decimal(letter))
    return {"．": ".", "％": "%", "٫": ".", "٬": ",", "：": ":"}.get(letter, letter)


# --- numbers ------------------------------------------------------------------------------------------------------
def _numbers(text: str) -> Iterator[tuple[int, int, Quantity]]:
    """(where it begins, where its unit ends, the number with its unit)."""
    for match in NUMBER.finditer(text):
        values = _values(match)
        if not values:
            continue
        end = match.end()
        if half := regex.match(r"(?i)\s(?:and a half|einhalb|et demie?|y medi[ao])\b", text[end:]):
            end, values = end + half.end(), [value + 0.5 for value in values]
        while multiple := regex.match(
            r"[\s\u202f]?(\p{Han}|[\p{L}--\p{Han}]+)(?:(?<=(?i:mio|mrd))\.)?(?V1)", text[end:]
        ):
            factor = MULTIPLE.get(multiple[1].casefold())
            if factor is None:
                break
            end, values = end + multiple.end(), [value * factor for value in values]
        if match["digits"] and (decade := regex.match(r"s\b", text[end:])) and values[0] in YEARS:  # the 1830s
            yield match.start(), end + 1, years(match[0] + decade[0], values[0], values[0] + 9)
            continue
        if match["digits"] and (ordinal := regex.match(r"(?:st|nd|rd|th|er|e|º|ª)\b", text[end:])):
            end += ordinal.end()
        elif match["digits"] and regex.match(r"[\p{Latin}]", text[end:]) and not UNIT.match(text[end:]):
            continue  # a name, like 3D
        yield _with_unit(text, match.start(), end, values)


def _values(match: regex.Match[str]) -> list[float]:
    if match["han"]:
        return [value] if (value := _han(match["han"])) else []
    if match["one"]:
        return [1.0]
    if match["word"]:
        return [float(sum(WORD.get(word, 1) for word in regex.split(r"[-\s]", match["word"].casefold())))]
    digits = regex.sub(r"[ \u00a0\u202f'’½−-]", "", match["digits"])
    sign = -1 if match["sign"] else 1
    return [sign * (value + (0.5 if match["half"] else 0)) for value in _meanings(digits)]


def _meanings(digits: str) -> list[float]:
    """The numbers that digits with points and commas may mean; none for what is a version or an address."""
    marks = regex.sub(r"\d", "", digits)
    if not marks:
        return [float(digits)]
    whole, last = digits.replace(",", "").replace(".", ""), marks[-1]
    head, _, tail = digits.rpartition(last)
    decimal = float(head.replace(",", "").replace(".", "") + "." + tail)
    if len(marks) == 1:
        return [decimal, float(whole)] if len(tail) == 3 and 1 <= len(head) <= 3 and head != "0" else [decimal]
    if len(set(marks)) == 2:
        return [decimal] if marks.count(last) == 1 else []
    groups = digits.split(last)[1:]
    return [float(whole)] if len(groups[-1]) == 3 and all(len(group) in (2, 3) for group in groups) else []


def _han(numeral: str) -> float:
    """A number in Chinese: 三百四十, 二〇二四, 一万二千."""
    if not any(letter in HAN_TIMES for letter in numeral):
        return float("".join(str(HAN[letter]) for letter in numeral))
    total = section = 0.0
    digit = 0.0
    for letter in numeral:
        if letter in HAN:
            digit = HAN[letter]
        elif (times := HAN_TIMES[letter]) < 10_000:
            section, digit = section + (digit or 1) * times, 0.0
        else:
            total, section, digit = (total + section + digit) * times, 0.0, 0.0
    return total + section + digit


def _with_unit(text: str, start: int, end: int, values: list[float]) -> tuple[int, int, Quantity]:
    before = next((mark for mark in BEFORE if text[:start].endswith(mark)), "")
    shown = text[start - len(before) : end]
    if before:
        return start - len(before), end, _measured(shown, values, before.casefold())
    if unit := UNIT.match(text[end:]):
        shown = text[start : end + unit.end()]
        return start, end + unit.end(), _measured(shown, values, unit[1].casefold())
    if text[start:end].isdecimal() and end - start == 4 and values[0] in YEARS:
        return start, end, years(shown, values[0], values[0])
    spans = _single(values)
    if noun := NOUN.match(text[end:]):
        name = (noun[1] or noun[2]).casefold()
        return start, end + noun.end(), Quantity(text[start : end + noun.end()], spans, _singular(name), name)
    return start, end, Quantity(shown, spans)


def _measured(shown: str, values: list[float], unit: str) -> Quantity:
    pairs = [measured(value, unit) for value in values]
    return Quantity(shown, _single(value for _, value in pairs), pairs[0][0], unit, _single(values))


def _single(values: Iterable[float]) -> tuple[Span, ...]:
    return tuple((value, value) for value in values)


def _singular(noun: str) -> str:
    return noun[:-1] if len(noun) > 3 and noun.endswith("s") else noun


# --- ranges -------------------------------------------------------------------------------------------------------
def _ranges(text: str, found: list[tuple[int, int, Quantity]]) -> list[tuple[int, int, Quantity]]:
    """Numbers that are the ends of a range as one; the first of two takes the unit of the second."""
    joined: list[tuple[int, int, Quantity]] = []
    for start, end, quantity in found:
        if joined:
            first, until, earlier = joined[-1]
            between = text[until:start]
            together = AND.fullmatch(between) and BETWEEN.search(text[:first])
            number = earlier.measures == DATE or earlier.spans[0][0] == earlier.spans[0][1]  # and no range
            single = len(earlier.spans) == len(quantity.spans) == 1 and number
            if (RANGE.fullmatch(between) or together) and single and (start_of := _in_unit_of(earlier, quantity)):
                low, plain = start_of
                if low[0] <= quantity.spans[0][1]:
                    span, bare = (low[0], quantity.spans[0][1]), (plain[0], quantity._bare[0][1])
                    shown = text[first:end].strip()
                    joined[-1] = (first, end, replace(quantity, shown=shown, spans=(span,), plain=(bare,)))
                    continue
            if AND.fullmatch(between) and not earlier.measures and single and (one := _in_unit_of(earlier, quantity)):
                joined[-1] = (first, until, replace(quantity, shown=earlier.shown, spans=one[:1], plain=one[1:]))
        joined.append((start, end, quantity))
    return joined


def _in_unit_of(earlier: Quantity, later: Quantity) -> tuple[Span, Span] | None:
    """The value of `earlier` in the first unit of what `later` measures, and as it stands; None where its own unit is
    of another kind."""
    low, bare = earlier.spans[0], earlier._bare[0]
    if earlier.measures:
        return (low, bare) if earlier.measures == later.measures else None
    if later.measures == DATE:
        return None
    value = measured(low[0], later.unit)[1] if later.unit in UNITS else low[0]
    return (value, value), bare
