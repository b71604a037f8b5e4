"""Numbers, lists and strangers' texts in words for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import urlsplit

SHOWN_ROWS, SHOWN_TEXT = 8, 70
MAX_NAMES = 30  # fields listed in a message
CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}
# Marks that change the direction of writing, join or hide characters, and end lines in odd ways.
HIDDEN = [*range(0x80, 0xA0), *range(0x200B, 0x2010), *range(0x2028, 0x202F), *range(0x2060, 0x2070), 0xFEFF, 0xFFF9,
          0xFFFA, 0xFFFB, *range(0xE0000, 0xE0080)]  # fmt: skip
KEPT = {0x200C, 0x200D}  # joiners, which Persian, Hindi and emoji need
VISIBLE = CONTROLS | {code: f"\\u{code:04x}" for code in HIDDEN if code not in KEPT}


def size_text(n_bytes: float) -> str:
    """Bytes in decimal units, as disks and download pages count them: ``269 MB``."""
    size = float(n_bytes)
    for unit in ("B", "kB", "MB"):
        if size < 999.5:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def tagged(tag: str, text: str) -> str:
    """A line of a run's log: what it is about in a column of its own, then the text."""
    return f"{tag:<12}{text}"


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def percent(part: int, whole: int) -> str:
    """A share for people; never 100 % or 0 % unless it is all or nothing."""
    share = 100 * part / whole if whole else 0.0
    if 0 < part < whole:
        share = min(max(share, 0.1), 99.9)
    return f"{share:.1f} %"


def plural(count: int, one: str, several: str = "") -> str:
    """1 row, 2 rows."""
    return f"{count} {one if count == 1 else several or one + 's'}"


def duration(seconds: float) -> str:
    """Seconds spelled out: 2 h 5 min, 5 min 3 s, 3 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def joined(parts: Iterable[str]) -> str:
    """a, b and c."""
    *first, last = list(parts) or [""]
    return f"{', '.join(first)} and {last}" if first else last


def row_list(rows: Sequence[int]) -> str:
    """The first row numbers and how many there are beyond."""
    listed = ", ".join(map(str, rows[:SHOWN_ROWS]))
    return listed + (f" and {len(rows) - SHOWN_ROWS} more" if len(rows) > SHOWN_ROWS else "")


def numbered_rows(rows: Sequence[int]) -> str:
    """row 3; rows 1, 2 and 3."""
    return f"row{'s' if len(rows) > 1 else ''} {row_list(rows)}"


def counted(rows: Sequence[int]) -> str:
    """How many rows, and which."""
    return f"{plural(len(rows), 'row')} ({row_list(rows)})"


def visible(text: str) -> str:
    """A text as it stands, with control characters as pictures and hidden ones by their number."""
    return text.translate(VISIBLE)


def shown(text: str, most: int = SHOWN_TEXT) -> str:
    """A text on one line of at most `most` characters that can't steer a terminal or turn its direction around."""
    line = " ".join(text[: 4 * most].split())
    line = "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in line)
    return line if len(line) <= most else line[: most - 1] + "…"


def shown_url(url: str) -> str:
    """The URL without its query, which may be a signature that gives access, and not longer than a line."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "the URL"
    return one_line(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}")


def one_line(text: str) -> str:
    """A stranger's text, fit to stand in a message."""
    return "".join(c if c.isprintable() else "?" for c in (text if len(text) <= 120 else f"{text[:119]}…"))


def type_name(value: object) -> str:
    """The type of a JSON value in words, with its value where that is short."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return "a number" if abs(value) >= 1e9 else f"a number ({value})"
    if isinstance(value, str):
        return "a text"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, Sequence) else f"a {type(value).__name__}"


def names(fields: Iterable[object]) -> str:
    """Field names as one line for people: the first of them, where there are very many."""
    found = list(fields)
    first = [str(name)[:40] for name in found[:MAX_NAMES]]
    more = [f"{len(found) - MAX_NAMES:,} more"] if len(found) > MAX_NAMES else []
    readable = (name if name.isprintable() and name.strip() else repr(name) for name in first)
    return ", ".join([*readable, *more]) or "none"


def are(count: int) -> str:
    """The verb for so many: is or are."""
    return "is" if count == 1 else "are"
