"""A look at rows before they cost hours of training: is the file fit to train on, and what is odd in it?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from alpaca.data.duplicates import Duplicates, find_duplicates
from alpaca.data.finding import Finding
from alpaca.data.histogram import bars
from alpaca.data.languages import UNCLEAR, languages_of
from alpaca.data.lengths import Lengths, in_characters, in_tokens
from alpaca.data.report import by_kind
from alpaca.data.scan import Scan
from alpaca.data.shapes import SHAPES
from alpaca.data.suspicions import OF_TEXT, SIGNS
from alpaca.paths import this_python
from alpaca.prompts.example import Example
from alpaca.words import joined, numbered_rows, percent, plural, row_list, shown

if TYPE_CHECKING:
    from alpaca.data.misfits import Look
    from alpaca.data.yardstick import Yardstick

SHOWN_FAULTS, SHOWN_REASONS, SHOWN_LANGUAGES = 10, 3, 12
SHORTEST_COPY = 100  # characters of a passage of plain text that is not to be there twice
BELONGING = "Answers and their questions"
Section = tuple[str, list[str]]


@dataclass(frozen=True)
class Check:
    """Everything that was found. Row numbers are 1-based and those of the source. `look`: what a base was asked about
    answers and their questions, None for nothing."""

    scan: Scan
    trainable: int
    duplicates: Duplicates
    findings: list[Finding]
    languages: dict[str, list[int]]
    lengths: Lengths
    look: Look | None = None

    @property
    def faulty_rows(self) -> int:
        return len({fault.row for fault in self.scan.faults})

    @property
    def warnings(self) -> list[Finding]:
        """Findings that a person should look at."""
        return [finding for finding in self.findings if not finding.harmless]

    def unfit(self) -> list[str]:
        """Why the file can't be trained on as it is; empty where it can."""
        if not self.scan.rows_read:
            return ["it holds no rows"]
        reasons = []
        if self.scan.faults:
            reasons.append(f"{self.faulty_rows} of {plural(self.scan.rows_read, 'row')} can't be used")
        if not self.trainable:
            reasons.append("no row has anything to train on")
        elif not self.lengths.fitting:
            reasons.append(f"no row fits in cutoff_len {self.lengths.cutoff_len}")
        return reasons

    def verdict(self) -> str:
        """One sentence that a newcomer understands."""
        if reasons := self.unfit():
            return f"NOT FIT to train: {joined(reasons)}."
        rows = plural(self.trainable, "row")
        if self.lengths.fitting < self.trainable:
            rows = f"{self.lengths.fitting} of {rows}"
        if not self.warnings:
            return f"FIT to train: {rows}, and nothing odd was found."
        by_count = sorted(self.warnings, key=lambda finding: -len(finding.seen))
        named = [f"{finding.title} ({len(finding.seen)})" for finding in by_count[:SHOWN_REASONS]]
        more = len(by_count) - len(named)
        named += [f"{plural(more, 'other thing')}"] if more else []
        return f"FIT to train, {rows}, but look first at {joined(named)}."

    def advice(self) -> str:
        """What to do next, in one line."""
        if self.unfit() and not self.trainable:
            shapes = "{instruction, input, output} or {messages}"
            return f"Give a file with rows of {shapes}, each with an answer, or a .txt file that holds text."
        if self.scan.faults:
            return "Correct the rows named below, or let --fix OUT.jsonl write a file without them."
        if self.unfit():
            return "Raise --cutoff_len, here and when training."
        if any(finding.mended for finding in self.findings) and not self.scan.is_text:
            return "Some of it can be mended by itself: add --fix OUT.jsonl."
        return f"Train: {this_python()} finetune.py --data_path {self.scan.source}"

    def sections(self) -> list[Section]:
        """Title and lines of each part of the report, in order."""
        parts: list[Section] = [("Rows", self._row_lines())]
        if self.trainable:
            parts.append(("Copies", self._finding_lines("Copies") or ["none"]))
        if self.scan.examples:
            parts.append(("Odd rows", self._finding_lines("Odd rows") or ["none"]))
        if self.look is not None and self.trainable:
            parts.append((BELONGING, self._belonging_lines(self.look)))
        if self.trainable:
            languages = "Languages" if self.scan.is_text else "Languages of the answers"
            parts += [(languages, self._language_lines()), ("Lengths", self._length_lines())]
        return parts

    def _row_lines(self) -> list[str]:
        scan = self.scan
        lines = [f"{scan.rows_read} read, {self.trainable} to train on"]
        if scan.is_text:
            lines.append(
                "plain text: a row is a paragraph, or some lines of a long one; its number is its first line's"
            )
        elif scan.shapes:
            lines.append("shape: " + joined(f"{count} {SHAPES[shape]}" for shape, count in scan.shapes.most_common()))
        if scan.extra_fields:
            names = joined(f"{shown(name)} ({count})" for name, count in scan.extra_fields.most_common(6))
            lines.append(f"fields that training does not read: {names}")
        return lines + (self._fault_lines() if scan.faults else ["no faulty rows"] if scan.rows_read else [])

    def _fault_lines(self) -> list[str]:
        """Faults of one kind together, because a file with a wrong field has it in every row."""
        rows = by_kind(self.scan.faults)
        lines = [f"faulty: {plural(self.faulty_rows, 'row')}"]
        for (name, problem), numbers in list(rows.items())[:SHOWN_FAULTS]:
            lines.append(f"    {numbered_rows(numbers)}: {f'{name}: ' if name else ''}{problem}")
        if len(rows) > SHOWN_FAULTS:
            lines.append(f"    and {plural(len(rows) - SHOWN_FAULTS, 'other fault')}; --json OUT.json lists all")
        if self.trainable:
            lines.append("    → correct them, leave them out with --fix, or train without them: --skip_bad_rows")
        return lines

    def _finding_lines(self, section: str) -> list[str]:
        return [line for finding in self.findings if finding.section == section for line in finding.lines()]

    def _belonging_lines(self, look: Look) -> list[str]:
        """What the base was asked, and what it can't judge."""
        lines = []
        for matter in look.judged:
            half = float(np.median(matter.per_token))
            lines.append(f"{matter.language}: in half of {plural(len(matter.rows), 'row')} the own question tells "
                         f"{look.base} {half:.2f} nats a token more than others do")  # fmt: skip
        for matter in look.languages:
            if matter.blind:
                asked = plural(len(matter.rows), "row")
                lines.append(f"{matter.language}: not judged, because the questions of {asked} tell {look.base} too "
                             "little: it hardly knows the language, or very many answers have slipped")  # fmt: skip
        if left_out := look.of - look.asked:
            lines.append(f"not looked at: {plural(left_out, 'row')}, beyond --fit_rows, in a language with few rows, "
                         "or without a question to exchange")  # fmt: skip
        if not look.judged:
            return lines
        return lines + (self._finding_lines(BELONGING) or ["no answer stands out as not fitting its question"])

    def _language_lines(self) -> list[str]:
        lines = []
        for language, rows in list(self.languages.items())[:SHOWN_LANGUAGES]:
            few = f" ({row_list(rows)})" if len(rows) * 20 < self.trainable and language != UNCLEAR else ""
            lines.append(f"{percent(len(rows), self.trainable):>7}  {language}, {plural(len(rows), 'row')}{few}")
        beyond = len(self.languages) - SHOWN_LANGUAGES
        return [*lines, f"and {plural(beyond, 'other language')}"] if beyond > 0 else lines

    def _length_lines(self) -> list[str]:
        lengths = self.lengths
        (_, half), *points, (_, longest) = lengths.percentiles().items()
        most = ", ".join(f"{number} % {length}" for number, length in points)
        lines = [f"in {lengths.unit} ({lengths.measured_with})"]
        lines += [f"half of the rows have at most {half}, {most}; the longest has {longest}", *bars(lengths)]
        if lengths.cutoff_len is not None:
            fits = joined(f"{cutoff}: {percent(round(share * self.trainable), self.trainable)}"
                          for cutoff, share in lengths.coverage().items())  # fmt: skip
            lines.append(f"rows that fit whole in a cutoff_len of {fits}")
        if self.scan.is_text:
            lines.append("training joins rows to pieces of at most cutoff_len, so short ones cost nothing")
        return lines + self._finding_lines("Lengths")

    def as_json(self) -> dict[str, Any]:
        """The same numbers with all rows, for a program to read."""
        scan, found = self.scan, self.duplicates
        return {
            "source": scan.source,
            "fit": not self.unfit(),
            "verdict": self.verdict(),
            "rows": {
                "read": scan.rows_read, "trainable": self.trainable, "faulty": self.faulty_rows,
                "shapes": dict(scan.shapes), "extra_fields": dict(scan.extra_fields),
            },
            "faults": [{"row": fault.row, "field": fault.field, "problem": fault.problem} for fault in scan.faults],
            "duplicates": {"exact": found.exact, "near": found.near, "answers": found.answers},
            "findings": [finding.as_json() for finding in self.findings],
            "languages": [
                {"language": language, "count": len(rows), "share": round(len(rows) / self.trainable, 4), "rows": rows}
                for language, rows in self.languages.items()
            ],
            "lengths": self.lengths.as_json(),
        } | ({"matter": self.look.as_json()} if self.look is not None else {})  # fmt: skip


def check_rows(scan: Scan, yardstick: Yardstick | None, why_none: str = "", look: Look | None = None) -> Check:
    """Look at every row. Without a yardstick lengths are characters, and `why_none` says why. `look`: what a base
    was asked about them, None for nothing."""
    examples = scan.trainable()
    lengths = in_tokens(examples, yardstick) if yardstick and examples else in_characters(examples, why_none)
    scan.refuse(lengths.refused)
    examples = scan.trainable()
    duplicates = find_duplicates([example for example in examples if not _is_refrain(example)])
    findings = [
        *_copies(duplicates, scan.is_text),
        *_suspicions(scan),
        *_misfits(look, examples),
        *_over_length(lengths),
    ]
    found = [finding for finding in findings if finding.seen]
    return Check(scan, len(examples), duplicates, found, languages_of(examples), lengths, look)


def _is_refrain(example: Example) -> bool:
    """Whether it is a passage so short that a text may well repeat it: a heading, a line of stars, "Yes," she said."""
    return example.place is not None and len(example.turns[-1].output or "") < SHORTEST_COPY


def _copies(found: Duplicates, is_text: bool) -> list[Finding]:
    def later(groups: list[list[int]], text: str) -> dict[int, str]:
        return dict(sorted((row, f"{text} row {group[0]}") for group in groups for row in group[1:]))

    return [
        Finding("exact_copy", "exact copies of an earlier row",
                "they weigh more than others; " + ("take them out" if is_text else "--fix drops them"),
                later(found.exact, "equal to"), mended=True, section="Copies"),
        Finding("near_copy", "near copies of an earlier row",
                "keep the better one, unless the small difference is the point",
                later(found.near, "nearly equal to"), section="Copies"),
        Finding("other_answer", "questions asked before, with another answer", "fine where both are right",
                later(found.answers, "the question of"), harmless=True, section="Copies"),
    ]  # fmt: skip


def _suspicions(scan: Scan) -> list[Finding]:
    signs = [replace(sign, advice=sign.advice.replace("--fix takes", "take")) for sign in SIGNS if sign.kind in OF_TEXT]
    signs = signs if scan.is_text else list(SIGNS)
    seen: list[dict[int, str]] = [{} for _ in signs]
    for example in scan.examples:
        for turn in example.turns:
            for sign, rows in zip(signs, seen, strict=True):
                if example.row not in rows and (text := sign.see(turn)) is not None:
                    rows[example.row] = text
    return [
        Finding(sign.kind, sign.title, sign.advice, rows, sign.mended, sign.harmless)
        for sign, rows in zip(signs, seen, strict=True)
    ]


def _misfits(look: Look | None, examples: list[Example]) -> list[Finding]:
    if look is None:
        return []
    answers = {example.row: " ".join(example.turns[-1].written) for example in examples}
    seen = {row: f"{nats:+.2f} nats a token: {answers[row]}" for row, nats in look.misfits().items()}
    title = "answers that do not seem to fit their questions"
    advice = "read them: an answer may have slipped to another row, or say little that was asked for"
    return [Finding("misfit", title, advice, seen, section=BELONGING)]


def _over_length(lengths: Lengths) -> list[Finding]:
    cutoff = lengths.cutoff_len
    return [
        Finding("truncated", f"rows cut to cutoff_len {cutoff}",
                "the end of the answer is lost (of a conversation, its last turns); raise --cutoff_len",
                dict.fromkeys(lengths.truncated, ""), section="Lengths"),
        Finding("too_long", f"rows left out, because the question alone fills cutoff_len {cutoff}",
                "shorten the question, or raise --cutoff_len", dict.fromkeys(lengths.too_long, ""), section="Lengths"),
        Finding("split", "conversations that become one example for each answer",
                "the template rewrites earlier answers, so each is trained where it is the last one",
                dict.fromkeys(lengths.split, ""), harmless=True, section="Lengths"),
    ]  # fmt: skip
