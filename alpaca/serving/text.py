"""Token ids become text as they come: never half a character, never a special token, never a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a decoder shows for bytes that are not (yet) a character
MAX_HELD = 16  # tokens; a character has at most 4 bytes, so after so many the bytes are simply no text


class TextStream:
    """Text of one answer. What push() and finish() return, joined, is the decoded answer up to the first stop string.

    A stop string ends the answer where it is completed first; of two completed by the same character the longer counts.
    """

    def __init__(self, tokenizer: Any, stop_strings: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._special = special_ids(tokenizer)
        self._stop = StopStrings(stop_strings)
        self._ids: list[int] = []
        self._context = 0  # ids[context:read] are already text; decoded again so that joins come out right
        self._read = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string was met; nothing more will come."""
        return self._stop.met

    def push(self, token_id: int) -> str:
        """Take the next token and return the text that is now certain, often empty."""
        if self.stopped or token_id in self._special:
            return ""
        self._ids.append(token_id)
        text = self._new_text()
        if text.endswith(UNFINISHED) and len(self._ids) - self._read < MAX_HELD:
            return ""
        return self._stop.push(self._advance(text))

    def finish(self) -> str:
        """The answer ends here: return what was held back."""
        if self.stopped:
            return ""
        text = self._stop.push(self._advance(self._new_text()))
        return text if self.stopped else text + self._stop.finish()

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


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of the tokens that tokenizer.decode(…, skip_special_tokens=True) leaves out."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | set(tokenizer.all_special_ids))
