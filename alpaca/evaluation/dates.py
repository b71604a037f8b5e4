"""Dates and times of day in a text, in the ways in which several languages write them."""

from __future__ import annotations

import calendar
import datetime
from collections.abc import Iterator

import regex

from alpaca.evaluation.quantity import CLOCK, DATE, DAY, Quantity, Span

MONTHS = (
    "january jan januar janvier enero", "february feb februar février febrero", "march mar märz mars marzo",
    "april apr avril abril", "may mai mayo", "june jun juni juin junio", "july jul juli juillet julio",
    "august aug août agosto", "september sep sept septembre septiembre", "october oct oktober octobre octubre",
    "november nov novembre noviembre", "december dec dezember décembre diciembre",
)  # fmt: skip
MONTH = {word: number for number, words in enumerate(MONTHS, 1) for word in words.split()}
_MONTH = "|".join(sorted(MONTH, key=len, reverse=True))
DATES = [
    regex.compile(r"(?<!\d)(?P<y>\d{4})年(?:(?P<m>\d{1,2})月(?:(?P<d>\d{1,2})[日号])?)?"),
    regex.compile(r"(?<!\d)(?P<m>\d{1,2})月(?P<d>\d{1,2})[日号]"),
    regex.compile(r"(?<![\d.])(?P<y>\d{4})-(?P<m>\d{2})-(?P<d>\d{2})(?!\d)"),
    regex.compile(r"(?<![\d.])(?P<d>\d{1,2})[./](?P<m>\d{1,2})[./](?P<y>\d{4})(?!\d)"),
    regex.compile(rf"(?i)\b(?P<d>\d{{1,2}})(?:st|nd|rd|th|\.)?\s(?:of\s|de\s)?(?P<w>{_MONTH})\b\.?,?(?:\s(?:de\s)?(?P<y>\d{{4}}))?"),
    regex.compile(rf"(?i)\b(?P<w>{_MONTH})\s(?P<d>\d{{1,2}})(?:st|nd|rd|th)?\b(?:,?\s(?P<y>\d{{4}}))?"),
    regex.compile(rf"(?i)\b(?P<w>{_MONTH})\s(?:de\s)?(?P<y>\d{{4}})\b"),
]  # fmt: skip
TIME = regex.compile(r"(?<![\d:])(?P<h>[01]?\d|2[0-3]):(?P<min>[0-5]\d)(?![\d:])")


def dates(text: str) -> Iterator[tuple[int, int, Quantity]]:
    """(where it begins and ends, a day, a month, a year or a time of day), none inside another."""
    taken: list[tuple[int, int]] = []
    for pattern in DATES:
        for match in pattern.finditer(text):
            date = _date(match)
            if date is not None and all(match.end() <= start or end <= match.start() for start, end in taken):
                taken.append(match.span())
                yield *match.span(), date
    for match in TIME.finditer(text):
        minutes = float(60 * int(match["h"]) + int(match["min"]))
        yield *match.span(), Quantity(match[0], ((minutes, minutes),), CLOCK)


def years(shown: str, first: float, last: float) -> Quantity:
    """All days from one year to another."""
    start, end = datetime.date(int(first), 1, 1), datetime.date(int(last), 12, 31)
    return Quantity(shown, ((float(start.toordinal()), float(end.toordinal())),), DATE)


def _date(match: regex.Match[str]) -> Quantity | None:
    """A day of a year, a day, a month or a year; where day and month may be the other way round, either."""
    parts = match.groupdict()
    year = int(parts["y"]) if parts.get("y") else None
    month = MONTH[parts["w"].casefold()] if parts.get("w") else int(parts["m"]) if parts.get("m") else None
    day = int(parts["d"]) if parts.get("d") else None
    orders = [(month, day)]
    if "/" in match[0] and month is not None and day is not None:
        orders.append((day, month))
    spans = tuple(span for m, d in orders if (span := _span(year, m, d)) is not None)
    return Quantity(match[0].strip(), spans, DATE if year else DAY) if spans else None


def _span(year: int | None, month: int | None, day: int | None) -> Span | None:
    if month is not None and not 1 <= month <= 12:
        return None
    try:
        if year is None:
            number = float(datetime.date(2000, month or 1, day or 1).toordinal())
            return number, number
        first = datetime.date(year, month or 1, day or 1)
        last = datetime.date(year, month or 12, day or calendar.monthrange(year, month or 12)[1])
    except ValueError:
        return None
    return float(first.toordinal()), float(last.toordinal())
