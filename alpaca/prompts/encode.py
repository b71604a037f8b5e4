"""Examples as token ids: where responses begin and end, what is too long, what is counted and dropped.

Prompt and response are tokenised apart and joined, by one function for training and serving. So the ids of a prompt
are the same in both, whatever the response begins with.
"""

from __future__ import annotations

import weakref
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from alpaca.errors import BadBase, BadMessages, BadSetting
from alpaca.prompts.control import control_tokens_pattern
from alpaca.prompts.example import Example, text_problem
from alpaca.prompts.percentiles import PERCENTS, percentiles
from alpaca.prompts.template import Segment, Template
from alpaca.words import numbered_rows, percent

if TYPE_CHECKING:
    import numpy as np
    from rich.text import Text

Span = tuple[int, int]
Progress = Callable[[int, int], None]
BATCH = 2048  # examples given to the tokenizer at once: enough to keep its threads busy, little to hold in memory


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example as tokens. `trained`: spans [start, end) of `input_ids` that carry a label, in order."""

    input_ids: list[int]
    trained: list[Span]
    row: int = 0

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def n_trained(self) -> int:
        """Number of tokens that carry a label."""
        return sum(end - start for start, end in self.trained)


@dataclass(frozen=True, slots=True)
class LengthReport:
    """What became of the examples under a cutoff. `lengths`: tokens of each, before truncation, int32."""

    cutoff_len: int
    kept: int
    truncated: int
    dropped_too_long: list[int]
    dropped_no_label: list[int]
    lengths: np.ndarray

    def percentiles(self, percents: Sequence[int] = PERCENTS) -> dict[int, int]:
        """Percent → length in tokens that this share of the examples does not exceed; 0 without examples."""
        return percentiles(self.lengths, percents) or dict.fromkeys(percents, 0)

    def lines(self) -> list[str]:
        """The report for people."""
        within = int((self.lengths <= self.cutoff_len).sum())
        share = f" ({percent(within, len(self.lengths))})" if len(self.lengths) else ""
        lengths = ", ".join(f"{part} %: {length}" for part, length in self.percentiles().items())
        lines = [
            f"{self.kept} examples kept, {self.truncated} of them truncated to cutoff_len {self.cutoff_len}",
            f"tokens per example: {lengths}; {within}{share} fit in {self.cutoff_len}",
        ]
        for rows, why in ((self.dropped_too_long, " as too long"), (self.dropped_no_label, ", nothing to train on")):
            if rows:
                lines.append(f"{len(rows)} dropped{why}: {numbered_rows(rows)}")
        return lines


@dataclass(frozen=True, slots=True)
class EncodedSet:
    """The examples that are left, in the order given, and what became of the others."""

    examples: list[Encoded]
    report: LengthReport


def encode_segments(
    tokenizer: Any, conversations: Sequence[Sequence[Segment]], *, rows: Sequence[int] | None = None
) -> list[Encoded]:
    """Tokenise conversations. BOS comes first where the tokenizer itself would put it; EOS ends every response.

    Ordinary text is tokenised as the tokenizer does it; a control token's spelling inside a segment's `literal` spans
    stays text. `rows` are the row numbers to write down.
    """
    parts = _Codec.of(tokenizer).encode(conversations)
    return [_join(conversation, row) for conversation, row in zip(parts, rows or [0] * len(parts), strict=True)]


def encode_prompt(tokenizer: Any, template: Template, example: Example) -> list[int]:
    """The ids that serving sends: those of training up to where the last response begins."""
    waiting = replace(example, turns=(*example.turns[:-1], replace(example.turns[-1], output=None)))
    return encode_segments(tokenizer, [template.segments(waiting)])[0].input_ids


def encode_examples(
    tokenizer: Any,
    template: Template,
    examples: Sequence[Example],
    *,
    cutoff_len: int,
    train_on_inputs: bool = False,
    over_length: Literal["truncate", "drop"] = "truncate",
    progress: Progress | None = None,
) -> EncodedSet:
    """Tokenise examples for training; `progress(done, total)` is called after every batch.

    An example of more than `cutoff_len` tokens is dropped (`over_length="drop"`), or loses its later turns whole and,
    where its first turn alone is too long, the end of its response; EOS stays the last token and is trained. It is
    dropped if its prompt leaves no room for one token of a response and EOS.
    """
    import numpy as np

    if cutoff_len < 1 or over_length not in ("truncate", "drop"):
        raise BadSetting(f"cutoff_len {cutoff_len} (at least 1) or over_length '{over_length}' (truncate or drop)")
    codec = _Codec.of(tokenizer)
    kept: list[Encoded] = []
    lengths: list[int] = []
    too_long: list[int] = []
    no_label: list[int] = []
    truncated = 0
    for batch in _batches(examples):
        encoded = codec.encode([template.segments(example) for example in batch])
        for example, parts in zip(batch, encoded, strict=True):
            if not parts[-1].trained:  # a question without its answer
                parts.pop()
            length = sum(len(part.ids) for part in parts)
            lengths.append(length)
            if not parts:
                no_label.append(example.row)
                continue
            if length > cutoff_len:
                if over_length == "drop" or not _truncate(parts, cutoff_len):
                    too_long.append(example.row)
                    continue
                truncated += 1
            kept.append(_join(parts, example.row, train_on_inputs=train_on_inputs))
        if progress is not None:
            progress(len(lengths), len(examples))
    report = LengthReport(cutoff_len, len(kept), truncated, too_long, no_label, np.array(lengths, dtype=np.int32))
    return EncodedSet(kept, report)


def preview(tokenizer: Any, encoded: Encoded) -> Text:
    """The example's text with what is trained in bold green and what is masked dimmed, for a terminal."""
    from rich.text import Text

    text = Text()
    for piece, trained in _pieces(tokenizer, encoded):
        text.append(piece, style="bold green" if trained else "dim")
    return text


def plain_preview(tokenizer: Any, encoded: Encoded) -> str:
    """The same without colour, for a log: what is trained stands between ⟦ and ⟧."""
    return "".join(f"⟦{piece}⟧" if trained else piece for piece, trained in _pieces(tokenizer, encoded))


@dataclass(slots=True)
class _Part:
    """A segment's tokens; a trained part ends with EOS."""

    ids: list[int]
    trained: bool


class _Codec:
    """What a tokenizer is asked for here, with its answers to how it treats BOS, EOS and the start of a text.

    It works on a copy of the tokenizer's Rust part: settings such as padding are changed by callers of the tokenizer
    itself, in other threads too.
    """

    _known: ClassVar[weakref.WeakKeyDictionary[Any, _Codec]] = weakref.WeakKeyDictionary()

    @classmethod
    def of(cls, tokenizer: Any) -> _Codec:
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
        self._control = control_tokens_pattern(tokenizer)
        self._backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_padding()
        self._backend.no_truncation()
        bos = tokenizer.bos_token_id
        self._bos: int | None = bos if self._backend.encode("a").ids[:1] == [bos] else None
        # One int object per id: a list of ids then costs 8 bytes a token instead of up to 36.
        self._ints = list(range(max(len(tokenizer), *tokenizer.added_tokens_decoder) + 1))
        # A SentencePiece tokenizer begins every text with a space of its own. Where a segment goes on from another it
        # is encoded after a line break, whose tokens are then taken off.
        self._lead: list[int] = []
        lead, alone, after = self._raw(["\n", "a", "\na"])
        if after[: len(lead)] == lead and after[len(lead) :] != alone:
            self._lead = lead

    def encode(self, conversations: Sequence[Sequence[Segment]]) -> list[list[_Part]]:
        """The parts of each conversation, BOS and EOS included."""
        flat = [segment for segments in conversations for segment in segments]
        goes_on = [number > 0 for segments in conversations for number in range(len(segments))]
        try:
            encoded = self._texts([segment.text for segment in flat], goes_on)
        except TypeError:  # half a surrogate pair: a string in Python, but no text that could be encoded
            for problem in filter(None, (text_problem(segment.text) for segment in flat)):
                raise BadMessages(f"the text {problem}") from None
            raise
        for number, segment in enumerate(flat):
            if self._holds_literal_control(segment):
                encoded[number] = self._apart(segment, goes_on[number])
        ids = iter(encoded)
        return [
            [self._part(next(ids), segment, number) for number, segment in enumerate(segments)]
            for segments in conversations
        ]

    def _part(self, ids: list[int], segment: Segment, number: int) -> _Part:
        if number == 0 and self._bos is not None and ids[:1] != [self._bos]:
            ids = [self._bos, *ids]
        if segment.trained and ids[-1:] != [self.eos]:
            ids = [*ids, self.eos]
        return _Part(ids, segment.trained)

    def _raw(self, texts: list[str]) -> list[list[int]]:
        ints = self._ints.__getitem__
        return [
            list(map(ints, found.ids)) for found in self._backend.encode_batch_fast(texts, add_special_tokens=False)
        ]

    def _texts(self, texts: list[str], goes_on: Sequence[bool]) -> list[list[int]]:
        if not self._lead:
            return self._raw(texts)
        encoded = self._raw([f"\n{text}" if on else text for text, on in zip(texts, goes_on, strict=True)])
        for number, (ids, on) in enumerate(zip(encoded, goes_on, strict=True)):
            if on and ids[: len(self._lead)] == self._lead:
                encoded[number] = ids[len(self._lead) :]
            elif on:
                encoded[number] = self._raw([texts[number]])[0]
        return encoded

    def _holds_literal_control(self, segment: Segment) -> bool:
        if not segment.literal or not self._control.search(segment.text):
            return False
        return any(_overlap(found.span(), segment.literal) for found in self._control.finditer(segment.text))

    def _apart(self, segment: Segment, goes_on: bool) -> list[int]:
        """Encode with the template's own control tokens as tokens and those in literal text broken up.

        A control token that is cut after its first character can't be recognised, whatever the kind of tokenizer.
        """
        text = segment.text
        pieces: list[str] = []
        tokens: list[list[int]] = []  # what stands after each piece
        done = 0
        while found := self._control.search(text, done):
            own = not _overlap(found.span(), segment.literal)
            cut = found.start() if own else found.start() + 1
            pieces.append(text[done:cut])
            tokens.append([self._backend.token_to_id(found[0])] if own else [])
            done = found.end() if own else cut
        encoded = self._texts([*pieces, text[done:]], [goes_on, *(True for _ in pieces)])
        return [token for piece in zip(encoded, [*tokens, []], strict=True) for ids in piece for token in ids]


def _overlap(span: Span, spans: Sequence[Span]) -> bool:
    """Whether `span` touches one of `spans`, which are in order and apart: there may be as many as control tokens."""
    before = bisect_left(spans, (span[1],))  # so many of them begin before its end
    return before > 0 and span[0] < spans[before - 1][1]


def _truncate(parts: list[_Part], cutoff_len: int) -> bool:
    """Shorten the parts in place to at most `cutoff_len` tokens; False where the first prompt leaves no room."""
    length = sum(len(part.ids) for part in parts)
    while length > cutoff_len and len(parts) > 2:
        length -= len(parts.pop().ids) + len(parts.pop().ids)
    if length <= cutoff_len:
        return True
    prompt, response = parts
    room = cutoff_len - len(prompt.ids)
    response.ids[max(room - 1, 0) : -1] = []
    return room >= 2


def _join(parts: Sequence[_Part], row: int, *, train_on_inputs: bool = False) -> Encoded:
    ids: list[int] = []
    spans: list[Span] = []
    for part in parts:
        if part.trained:
            spans.append((len(ids), len(ids) + len(part.ids)))
        ids += part.ids
    # The first token is never trained: there is nothing to predict it from.
    return Encoded(ids, [(1, len(ids))] if train_on_inputs else spans, row)


def _batches(examples: Sequence[Example]) -> Iterator[Sequence[Example]]:
    for start in range(0, len(examples), BATCH):
        yield examples[start : start + BATCH]


def _pieces(tokenizer: Any, encoded: Encoded) -> Iterator[tuple[str, bool]]:
    done = 0
    for start, end in [*encoded.trained, (len(encoded), len(encoded))]:
        for piece, trained in ((encoded.input_ids[done:start], False), (encoded.input_ids[start:end], True)):
            if piece:
                text = tokenizer.decode(piece, clean_up_tokenization_spaces=False)
                yield text.replace("\x1b", "␛"), trained  # a row must not steer the terminal
        done = end
