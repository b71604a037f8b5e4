"""Segments to token ids: one answer of a tokenizer's for training and serving, and no control token from outside."""

from __future__ import annotations

import weakref
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from alpaca.errors import BadBase, BadMessages
from alpaca.prompts.control import any_of, control_tokens
from alpaca.prompts.template import Segment
from alpaca.prompts.turn import text_problem

Span = tuple[int, int]
Before = tuple[str, list[int]]
"""What a text goes on from, and its ids."""
WHOLE = ('"type":"ByteLevel"', '"byte_fallback":true')  # signs of a tokenizer that loses no character of a text
MOST_CUTS = 8  # rounds; one is enough where no control token hides behind another


@dataclass(slots=True)
class Part:
    """A segment's tokens; a trained part ends with the turn end."""

    ids: list[int]
    trained: bool


class Codec:
    """What a tokenizer is asked for here, with its answers to how it treats BOS, EOS and the start of a text.

    It works on a copy of the tokenizer's Rust part: settings such as padding are changed by callers of the tokenizer
    itself, in other threads too.
    """

    _known: ClassVar[weakref.WeakKeyDictionary[Any, Codec]] = weakref.WeakKeyDictionary()

    @classmethod
    def of(cls, tokenizer: Any) -> Codec:
        codec = cls._known.get(tokenizer)
        if codec is None or codec.made_for != cls._state(tokenizer):
            codec = cls._known[tokenizer] = cls(tokenizer)
        return codec

    @staticmethod
    def _state(tokenizer: Any) -> tuple[Any, ...]:
        return len(tokenizer), tokenizer.bos_token, tokenizer.eos_token, tokenizer.chat_template

    def __init__(self, tokenizer: Any) -> None:
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise BadBase(
                f"the base's tokenizer ({type(tokenizer).__name__}) has no tokenizer.json form; convert it first"
            )
        if tokenizer.eos_token_id is None:
            raise BadBase("the base's tokenizer has no EOS token, so an answer could never end; set eos_token in it")
        self.made_for = self._state(tokenizer)
        self.eos: int = tokenizer.eos_token_id
        self.control = control_tokens(tokenizer)
        self._pattern = any_of(self.control)
        written = tokenizer.backend_tokenizer.to_str()
        self._backend = type(tokenizer.backend_tokenizer).from_str(written)
        self._backend.no_padding()
        self._backend.no_truncation()
        unknown = getattr(self._backend.model, "unk_token", None)  # which may well stand for a user's character
        self._ids = frozenset(number for spelling, number in self.control.items() if spelling != unknown)
        bos = tokenizer.bos_token_id
        self._bos: int | None = bos if self._backend.encode("a").ids[:1] == [bos] else None
        # One int object per id: a list of ids then costs 8 bytes a token instead of up to 36.
        self._ints = list(range(max(len(tokenizer), *tokenizer.added_tokens_decoder) + 1))
        # A SentencePiece tokenizer begins every text with a space of its own, older ones after every control token too,
        # and some control tokens swallow the blanks after them. So a segment that goes on from another is encoded after
        # a line break, or after the control token before it, whose ids are then taken off.
        lead, alone, after = self._raw(["\n", "a", "\na"])
        spaced = after[: len(lead)] == lead and after[len(lead) :] != alone
        self._text: Before = ("\n", lead) if spaced else ("", [])
        self._depends = spaced or any(token.rstrip for token in tokenizer.added_tokens_decoder.values())
        self._spelled = {number: spelling for spelling, number in self.control.items()}
        # Whether another spelling can become a control token: the tokenizer then looks for some in what it normalised.
        added = self._backend.get_added_tokens_decoder()
        self._disguised = self._backend.normalizer is not None and any(
            token.normalized for number, token in added.items() if number in self._ids
        )
        whole = any(sign in written for sign in WHOLE) and '"Removed"' not in written
        self._longest = max(map(len, tokenizer.get_vocab())) if whole else None

    def encode(self, conversations: Sequence[Sequence[Segment]], end: int | None = None) -> list[list[Part]]:
        """The parts of each conversation, with BOS; what is trained ends with the token `end`, None for EOS."""
        last = self.eos if end is None else end
        flat = [segment for segments in conversations for segment in segments]
        before = [place for segments in conversations for place in self._before(segments, last)]
        try:
            encoded = self._texts([segment.text for segment in flat], before)
        except TypeError:  # half a surrogate pair: a string in Python, but no text that could be encoded
            for problem in filter(None, (text_problem(segment.text) for segment in flat)):
                raise BadMessages(f"the text {problem}") from None
            raise
        for number, segment in enumerate(flat):
            if self._foreign_control(segment, encoded[number]):
                encoded[number] = self._apart(segment, before[number])
        ids = iter(encoded)
        return [
            [self._part(next(ids), segment, number, last) for number, segment in enumerate(segments)]
            for segments in conversations
        ]

    def at_least(self, text: str) -> int:
        """A number of tokens that `text` has in whatever prompt it stands, found without encoding it; often 0."""
        if self._longest is None:
            return 0
        normalizer = self._backend.normalizer
        size = len(text if normalizer is None else normalizer.normalize_str(text))
        return -(-size // self._longest)

    def _part(self, ids: list[int], segment: Segment, number: int, end: int) -> Part:
        if number == 0 and self._bos is not None and ids[:1] != [self._bos]:
            ids = [self._bos, *ids]
        if segment.trained and ids[-1:] != [end]:
            ids = [*ids, end]
        return Part(ids, segment.trained)

    def _raw(self, texts: list[str]) -> list[list[int]]:
        ints = self._ints.__getitem__
        return [
            list(map(ints, found.ids)) for found in self._backend.encode_batch_fast(texts, add_special_tokens=False)
        ]

    def _before(self, segments: Sequence[Segment], end: int) -> list[Before]:
        """What stands before each segment: what the model wrote ends with the token `end`."""
        written: Before = (self._spelled[end], [end]) if end in self._spelled else self._text
        return [("", []), *(written if segment.trained else self._text for segment in segments[:-1])]

    def _texts(self, texts: list[str], before: Sequence[Before]) -> list[list[int]]:
        """The ids of each text where it stands: `before` is encoded with it, and its ids are taken off again."""
        if not self._depends:
            return self._raw(texts)
        encoded = self._raw([f"{spelled}{text}" for text, (spelled, _) in zip(texts, before, strict=True)])
        for number, (found, (spelled, ids)) in enumerate(zip(encoded, before, strict=True)):
            if found[: len(ids)] == ids:
                encoded[number] = found[len(ids) :]
            elif spelled:
                encoded[number] = self._raw([texts[number]])[0]
        return encoded

    # --- control tokens from outside ---
    def _foreign_control(self, segment: Segment, ids: list[int]) -> bool:
        """Whether a control token of the segment may have come from outside."""
        if not self._disguised and not segment.literal:
            return False
        found = [token.span() for token in self._pattern.finditer(segment.text)]
        if any(_overlap(span, segment.literal) for span in found):
            return True
        return self._disguised and sum(token in self._ids for token in ids) > len(found)

    def _apart(self, segment: Segment, before: Before) -> list[int]:
        """Encode with the template's own control tokens as tokens and those in literal text broken up.

        A control token that is cut after its first character can't be recognised, whatever the kind of tokenizer.
        """
        text = segment.text
        pieces: list[str] = []
        tokens: list[list[int]] = []  # what stands after each piece
        places = [before]
        done = 0
        while found := self._pattern.search(text, done):
            own = not _overlap(found.span(), segment.literal)
            cut = found.start() if own else found.start() + 1
            pieces.append(text[done:cut])
            tokens.append([self.control[found[0]]] if own else [])
            places.append((found[0], tokens[-1]) if own else self._text)
            done = found.end() if own else cut
        pieces.append(text[done:])
        encoded = self._texts(pieces, places)
        for number, (piece, ids) in enumerate(zip(pieces, encoded, strict=True)):
            if self._disguised and not self._ids.isdisjoint(ids):
                encoded[number] = self._broken_up(piece, places[number])
        return [token for piece in zip(encoded, [*tokens, []], strict=True) for ids in piece for token in ids]

    def _broken_up(self, text: str, before: Before) -> list[int]:
        """Encode a text in which another spelling became a control token: cut inside it until none is left."""
        pieces = [text]
        for _ in range(MOST_CUTS):
            found = self._backend.encode_batch(pieces, add_special_tokens=False)
            cut = [self._cut(piece, encoding) for piece, encoding in zip(pieces, found, strict=True)]
            if all(len(parts) == 1 for parts in cut):
                break
            pieces = [part for parts in cut for part in parts]
        encoded = self._texts(pieces, [before, *(self._text for _ in pieces[1:])])
        # What is still left has no other form, such as a token of one character.
        return [token for ids in encoded for token in ids if token not in self._ids]

    def _cut(self, text: str, encoding: Any) -> list[str]:
        """`text` cut after the first character of every control token in it."""
        parts: list[str] = []
        done = 0
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token not in self._ids:
                continue
            spelled = text[start:end]
            blank = len(spelled) - len(spelled.lstrip())
            if len(spelled.strip()) <= 1:  # one character that stands for the whole spelling
                form = self._backend.normalizer.normalize_str(spelled)
                if len(form.strip()) <= 1:
                    continue
                text, blank = f"{text[:start]}{form}{text[end:]}", len(form) - len(form.lstrip())
                return [*parts, text[done : start + blank + 1], text[start + blank + 1 :]]
            parts.append(text[done : start + blank + 1])
            done = start + blank + 1
        return [*parts, text[done:]]


def _overlap(span: Span, spans: Sequence[Span]) -> bool:
    """Whether `span` touches one of `spans`, which are in order and apart: there may be as many as control tokens."""
    before = bisect_left(spans, (span[1],))  # so many of them begin before its end
    return before > 0 and span[0] < spans[before - 1][1]
