"""Token ids become text as they come: never half a character, never a special token, never a stop string."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a decoder shows for bytes that are not (yet) a character
HALF = 0xD800  # the first of 2,048 surrogates: halves of characters, which decoded text can't hold
MARK = re.compile("[\ud800-\udfff]")
MAX_HELD = 16  # tokens; a character has at most 4 bytes, so what is held for longer is simply no text


class TextStream:
    """Text of one answer. What push() and finish() return, joined, is the decoded answer up to the first stop string.

    A stop string ends the answer where it is completed first; of two completed by the same character the longer counts.
    Special tokens are no text, but a stop string that spells one is met by the token too.
    """

    def __init__(self, tokenizer: Any, stop_strings: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._special = special_ids(tokenizer)
        self._marks = _marks(tokenizer, self._special, stop_strings)
        self._stop = StopStrings([*stop_strings, *_with_marks(stop_strings, self._marks)])
        self._ids: list[int] = []
        self._context = 0  # ids[context:read] are already text; decoded again so that joins come out right
        self._read = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string was met; nothing more will come."""
        return self._stop.met

    def push(self, token_id: int) -> str:
        """Take the next token and return the text that is now certain, often empty."""
        if self.stopped:
            return ""
        if token_id in self._special:
            mark = self._marks.get(token_id)
            return _visible(self._stop.push(mark[1])) if mark else ""
        self._ids.append(token_id)
        text = self._new_text()
        if text.endswith(UNFINISHED) and len(self._ids) - self._read < MAX_HELD:
            return ""
        return _visible(self._stop.push(self._advance(text)))

    def finish(self) -> str:
        """The answer ends here: return what was held back."""
        if self.stopped:
            return ""
        text = self._stop.push(self._advance(self._new_text()))
        return _visible(text if self.stopped else text + self._stop.finish())

    def _new_text(self) -> str:
        """The text of the tokens not yet read, in the light of those just before."""
        before = self._decode(self._ids[self._context : self._read])
        both = self._decode(self._ids[self._context :])
        if both.startswith(before):
            return both[len(before) :]
        # A byte-fallback decoder takes a whole run back when a later byte of it is invalid; what was sent stays.
        return self._decode(self._ids[self._read :])

    def _advance(self, text: str) -> str:
        if text:
            self._context, self._read = self._read, len(self._ids)
        return text

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


class StopStrings:
    """Text passes through up to the first stop string; the longest possible beginning of one is held back."""

    def __init__(self, stop_strings: Sequence[str]) -> None:
        self._stops = tuple(s for s in stop_strings if s)
        self._held = ""
        self.met = False

    def push(self, text: str) -> str:
        """Return what is certain not to belong to a stop string."""
        if self.met:
            return ""
        text = self._held + text
        found = self._first(text)
        if found is not None:
            self.met, self._held = True, ""
            return text[:found]
        keep = self._possible_beginning(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """Return what was held back: no stop string came of it."""
        held, self._held = self._held, ""
        return held

    def _first(self, text: str) -> int | None:
        """Where the stop string begins that is completed first, the longest of these; None without any."""
        ends = [(start + len(s), start) for s in self._stops if (start := text.find(s)) >= 0]
        return min(ends)[1] if ends else None

    def _possible_beginning(self, text: str) -> int:
        """Length of the longest end of `text` with which a stop string begins."""
        longest = max((len(s) for s in self._stops), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(s.startswith(text[-size:]) for s in self._stops):
                return size
        return 0


def stop_ids(tokenizer: Any, stop_strings: Sequence[str]) -> list[int]:
    """The special tokens that are stop strings by themselves: they end an answer as EOS does."""
    if not stop_strings:
        return []
    return [token for token, spelled in _spellings(tokenizer, special_ids(tokenizer)) if spelled in stop_strings]


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of the tokens that tokenizer.decode(…, skip_special_tokens=True) leaves out."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | set(tokenizer.all_special_ids))


def _marks(tokenizer: Any, special: frozenset[int], stop_strings: Sequence[str]) -> dict[int, tuple[str, str]]:
    """Spelling and mark of each special token that a stop string spells: half a character, which no text holds."""
    everything = "\0".join(stop_strings)
    if not everything:
        return {}
    spelled = [(token, text) for token, text in _spellings(tokenizer, special) if text in everything]
    return {token: (text, chr(HALF + number)) for number, (token, text) in enumerate(spelled)}


def _with_marks(stop_strings: Sequence[str], marks: dict[int, tuple[str, str]]) -> list[str]:
    """The stop strings that spell special tokens, with marks in their place, the longest spelling first."""
    found = []
    for text in stop_strings:
        marked = text
        for spelled, mark in sorted(marks.values(), key=lambda pair: -len(pair[0])):
            marked = marked.replace(spelled, mark)
        found += [marked] if marked != text else []
    return found


def _visible(text: str) -> str:
    return MARK.sub("", text)


def _spellings(tokenizer: Any, ids: Iterable[int]) -> list[tuple[int, str]]:
    return [(token, tokenizer.convert_ids_to_tokens(token)) for token in sorted(ids)]
