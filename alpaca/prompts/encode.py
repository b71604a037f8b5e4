"""Examples as token ids: where responses begin and end, what is too long, what is counted and dropped.

Prompt and response are tokenised apart and joined, by one function for training and serving. So the ids of a prompt
are the same in both, whatever the response begins with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from alpaca.errors import BadMessages, BadSetting, BadTemplate
from alpaca.prompts.codec import Codec, Part, Span
from alpaca.prompts.example import Example
from alpaca.prompts.percentiles import PERCENTS, percentiles
from alpaca.prompts.pieces import Cutter, raw_segments
from alpaca.prompts.template import Segment, Template
from alpaca.words import numbered_rows, percent, plural

if TYPE_CHECKING:
    import numpy as np
    from rich.text import Text

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
class Refusal:
    """A row that the template refuses, and why."""

    row: int
    problem: str


@dataclass(frozen=True, slots=True)
class LengthReport:
    """What became of the examples under a cutoff. `lengths`: tokens of each, before truncation, int32.

    `split`: rows that became several examples, of which each trains its last answer. `cut`: rows of raw text that
    became several examples, each of at most the cutoff; of parts of a longer text, `lengths` are those of the pieces.
    `refused` have no length.
    """

    cutoff_len: int
    kept: int
    truncated: int
    dropped_too_long: list[int]
    dropped_no_label: list[int]
    lengths: np.ndarray
    split: list[int] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)

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
        if self.split:
            lines.append(
                f"{len(self.split)} conversations made into one example for each answer, because the template rewrites "
                f"earlier answers: {numbered_rows(self.split)}"
            )
        if self.cut:
            pieces = f"pieces of at most {self.cutoff_len} tokens"
            lines.append(f"{plural(len(self.cut), 'text')} cut into {pieces}: {numbered_rows(self.cut)}")
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
    tokenizer: Any,
    conversations: Sequence[Sequence[Segment]],
    *,
    rows: Sequence[int] | None = None,
    end: int | None = None,
) -> list[Encoded]:
    """Tokenise conversations. BOS comes first where the tokenizer itself would put it; the token `end` (None: EOS)
    ends every response.

    Ordinary text is tokenised as the tokenizer does it; a control token's spelling inside a segment's `literal` spans
    stays text. `rows` are the row numbers to write down.
    """
    parts = Codec.of(tokenizer).encode(conversations, end)
    return [_join(conversation, row) for conversation, row in zip(parts, rows or [0] * len(parts), strict=True)]


def encode_prompt(tokenizer: Any, template: Template, example: Example) -> list[int]:
    """The ids that serving sends: those of training up to where the last response begins."""
    return encode_segments(tokenizer, [template.segments(example.awaiting())], end=template.turn_end)[0].input_ids


def prompt_at_least(tokenizer: Any, example: Example) -> int:
    """A number of tokens that the prompt has at least, in any template, told from its size alone; mostly far fewer.

    What a template may leave out doesn't count: a system text, the thoughts of earlier answers, blanks at the edges.
    """
    codec = Codec.of(tokenizer)
    said = [text for turn in example.turns for text in (turn.instruction, *(part.content for part in turn.results))]
    said += [(turn.output or "").rpartition("</think>")[2] for turn in example.turns[:-1]]
    return sum(codec.at_least(text.strip()) for text in said)


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
    where its first turn alone is too long, the end of its response; the turn end stays the last token and is trained.
    It is dropped if its prompt leaves no room for one token of a response and the turn end.

    Raw text is cut into pieces of at most `cutoff_len`, at paragraphs where possible, and nothing of it is dropped; EOS
    ends it, unless it goes on, and every token is trained. What the template refuses is left out and reported. A
    conversation whose earlier answers it rewrites becomes one example for each answer.
    """
    import numpy as np

    if cutoff_len < 1 or over_length not in ("truncate", "drop"):
        raise BadSetting(f"cutoff_len {cutoff_len} (at least 1) or over_length '{over_length}' (truncate or drop)")
    codec, cutter = Codec.of(tokenizer), Cutter(tokenizer)
    kept: list[Encoded] = []
    lengths: list[int] = []
    report = LengthReport(cutoff_len, 0, 0, [], [], np.empty(0, dtype=np.int32))
    truncated = done = 0
    for batch in _batches(examples):
        rendered = [_conversations(template, example, report.refused) for example in batch]
        encoded = iter(codec.encode([segments for found in rendered for segments in found or ()], template.turn_end))
        for example, found in zip(batch, rendered, strict=True):
            if found is None:
                continue
            conversations = [next(encoded) for _ in found]
            if example.raw:
                ids = _raw_ids(conversations[0], codec.eos, goes_on=bool(example.place and not example.place.ends))
                if len(ids) < 2:
                    lengths.append(len(ids))
                    report.dropped_no_label.append(example.row)
                    continue
                pieces = cutter.pieces(ids, cutoff_len)
                lengths += map(len, pieces) if example.place else [len(ids)]
                report.cut.extend([example.row] * (len(pieces) > 1))
                kept += [Encoded(piece, [(1, len(piece))], example.row) for piece in pieces]
                continue
            whole = [sum(len(part.ids) for part in parts) for parts in conversations]
            lengths.append(max(whole, default=0))
            if not conversations:
                report.dropped_no_label.append(example.row)
                continue
            if len(conversations) > 1:
                report.split.append(example.row)
                conversations = [_last_answer(parts) for parts in conversations]
            fitting = [
                parts
                for parts, length in zip(conversations, whole, strict=True)
                if length <= cutoff_len or (over_length == "truncate" and _truncate(parts, cutoff_len))
            ]
            if not fitting:
                report.dropped_too_long.append(example.row)
                continue
            truncated += lengths[-1] > cutoff_len
            kept += [_join(parts, example.row, train_on_inputs=train_on_inputs) for parts in fitting]
        done += len(batch)
        if progress is not None:
            progress(done, len(examples))
    made = replace(report, kept=len(kept), truncated=truncated, lengths=np.array(lengths, dtype=np.int32))
    return EncodedSet(kept, made)


def accepted(template: Template, examples: Sequence[Example]) -> list[Example]:
    """The examples that the template does not refuse."""
    return [example for example in examples if _conversations(template, example, []) is not None]


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


def _truncate(parts: list[Part], cutoff_len: int) -> bool:
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


def _conversations(template: Template, example: Example, refused: list[Refusal]) -> list[list[Segment]] | None:
    """The example as conversations to train on, none of them without an answer; None where the template refuses it."""
    if example.raw:
        return [raw_segments(example)]
    if example.turns[-1].output is None:  # a question without its answer
        example = replace(example, turns=example.turns[:-1])
    try:
        return template.conversations(example) if example.turns else []
    except (BadMessages, BadTemplate) as error:
        refused.append(Refusal(example.row, error.message.removeprefix(f"row {example.row}: ")))
        return None


def _raw_ids(parts: Sequence[Part], eos: int, *, goes_on: bool) -> list[int]:
    """All ids of a text, with EOS at its end."""
    ids = [token for part in parts for token in part.ids]
    return ids if goes_on or ids[-1:] == [eos] else [*ids, eos]


def _last_answer(parts: Sequence[Part]) -> list[Part]:
    """The same with all before the last answer as its prompt."""
    return [Part([token for part in parts[:-1] for token in part.ids], False), parts[-1]]


def _join(parts: Sequence[Part], row: int, *, train_on_inputs: bool = False) -> Encoded:
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
