"""Translation of rows, text by text, each checked for what it may not lose, tried again, and listed in the end."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from alpaca.data.languages import UNCLEAR, language_of
from alpaca.data.rows import to_row
from alpaca.errors import BadSetting, QuestionFailed
from alpaca.progress import Advance
from alpaca.prompts.example import Example
from alpaca.prompts.turn import Turn
from alpaca.synthesis.about_language import is_about_language
from alpaca.synthesis.desk import Desk
from alpaca.synthesis.filters import goes_in_circles
from alpaca.synthesis.glossary import Glossary
from alpaca.synthesis.journal import Made
from alpaca.synthesis.kept_parts import MASKED, PART, Masked, is_code, lost_parts, masked
from alpaca.synthesis.language import Language
from alpaca.synthesis.question import Question
from alpaca.synthesis.translate_prompt import translate_prompt
from alpaca.words import joined, shown

TRANSLATED, LISTED, NO_TERM = "translated", "listed, not translated", "without a term of the glossary"
ADAPTED, ABOUT, DROPPED = "about a language: adapted", "about a language: left", "about a language: dropped"
ALREADY, TOOLS, CODE = "in that language already: left", "with tools: left", "without words: left"
OUTCOMES = (TRANSLATED, ADAPTED, ABOUT, DROPPED, ALREADY, TOOLS, CODE, LISTED, NO_TERM)
TAGS = re.compile(r"\A\s*(?:<text>)?\s*|\s*(?:</text>)?\s*\Z", re.IGNORECASE)
WARMER = 0.3  # is added to the temperature with every try: the same again would be wrong again
SHORTEST, LONGEST, LONG = 0.12, 8.0, 60  # of a translation's characters per character, where the text has so many


@dataclass(frozen=True, slots=True)
class Order:
    """What is wanted. Raises BadSetting for what can't be."""

    language: Language
    glossary: Glossary = field(default_factory=Glossary)
    language_tasks: str = "adapt"
    """What becomes of tasks about a language: adapt, leave or drop."""
    tries: int = 3
    max_tokens: int = 4096
    temperature: float = 0.0

    def __post_init__(self) -> None:
        for name, most in (("tries", 20), ("max_tokens", 131_072)):
            if not 1 <= getattr(self, name) <= most:
                raise BadSetting(f"--{name} is {getattr(self, name)}: it must be from 1 to {most:,}")

    def work(self, model: str) -> dict[str, object]:
        """What must not change between a run and the one that goes on from it; the rows may, and the tries."""
        return {
            "command": "translate",
            "model": model,
            "to": self.language.name,
            "language_tasks": self.language_tasks,
            "glossary": [list(pair) for pair in self.glossary.pairs],
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
        }


class Lost(Exception):
    """A text has no translation that can be used."""


@dataclass(slots=True)
class Translating:
    """A run over `rows`, as many at a time as it has workers."""

    order: Order
    desk: Desk
    rows: Sequence[Example]
    advance: Advance = lambda count: None
    listed: dict[int, str] = field(default_factory=dict)
    """Row numbers of rows that were not translated, and why."""
    _left: Iterator[tuple[str, Example]] = field(init=False)

    def __post_init__(self) -> None:
        made = self.desk.journal.made
        self._left = iter([pair for pair in sources(self.rows) if pair[0] not in made])

    async def work(self) -> None:
        """One worker: row after row until there are no more."""
        for source, example in self._left:
            try:
                found, outcomes = await self.row(example)
            except (Lost, QuestionFailed) as error:
                self.listed[example.row] = error.message if isinstance(error, QuestionFailed) else str(error)
                self.advance(1)
                continue
            self.desk.journal.make(Made(source, [] if found is None else [to_row(found)], Counter(outcomes)))
            self.advance(1)

    async def row(self, example: Example) -> tuple[Example | None, list[str]]:
        """The row in the other language (None: it is dropped) and what was done. Raises Lost or QuestionFailed."""
        if example.uses_tools:
            return example, [TOOLS]
        about = is_about_language(example)
        if about and self.order.language_tasks == "drop":
            return None, [DROPPED]
        adapted = about and self.order.language_tasks == "adapt" and all(turn.input.strip() for turn in example.turns)
        if about and not adapted:
            return example, [ABOUT]
        if self.order.language.is_in("\n".join(example.texts)):
            return example, [ALREADY]
        text = _Texts(self, self.order.glossary.within("\n".join(example.texts)))
        system = await text.translated("system", example.system)
        turns = []
        for turn in example.turns:
            instruction = await text.translated("instruction", turn.instruction)
            if adapted:
                turns.append(replace(turn, instruction=instruction))
                continue
            given = await text.translated("input", turn.input)
            answer = await text.translated("output", turn.output or "")
            turns.append(Turn(instruction, given, answer))
        outcome = ADAPTED if adapted else TRANSLATED if text.asked else CODE
        return replace(example, system=system, turns=tuple(turns)), [outcome, *([NO_TERM] if text.lacks_term else [])]


@dataclass(slots=True)
class _Texts:
    """The texts of one row, one after the other, in one conversation with the model."""

    run: Translating
    terms: tuple[tuple[str, str], ...]
    earlier: list[tuple[str, str]] = field(default_factory=list)
    asked: bool = False
    lacks_term: bool = False

    async def translated(self, name: str, text: str) -> str:
        """Raises Lost, which names the field, where no try keeps all that must be kept."""
        hidden = masked(text)
        order = self.run.order
        if not hidden.has_words or is_code(hidden.text) or order.language.is_in(hidden.text):
            return text
        self.asked = True
        fault = ""
        for attempt in range(order.tries):
            last = attempt == order.tries - 1
            said = translate_prompt(self.earlier, hidden.text, order.language, self.terms, fault)
            most = min(order.max_tokens, 100 + 2 * len(text.encode("utf-8", "replace")))
            reply = await self.run.desk.ask(
                Question(said, most, order.temperature + WARMER * attempt, seed=attempt)
            )  # fmt: skip
            found = TAGS.sub("", reply.text)
            fault = "it breaks off" if not reply.whole else find_fault(hidden, found, order.language)
            missing = [] if fault else order.glossary.missing(hidden.text, found)
            if missing and not last:
                fault = f"it lacks the terms {joined(missing)}"
            if not fault:
                self.lacks_term |= bool(missing)
                self.earlier.append((hidden.text, found))
                return hidden.restored(found) or found
        raise Lost(f"{name}: {fault} ({order.tries} tries)")


def find_fault(hidden: Masked, translation: str, language: Language) -> str:
    """Why a translation can't be used, in words that a model understands too; "" where it can."""
    if not translation:
        return "it is empty"
    if hidden.restored(translation) is None:
        return "it does not hold each of the markers ⟦1⟧ … once"
    if lost := lost_parts(hidden.text, translation):
        return f"it lacks {joined(shown(part) for part in lost[:5])}"
    words, original = (MASKED.sub(" ", PART.sub(" ", text)) for text in (translation, hidden.text))
    if other := language.differs(words):
        return f"it is in {other}, not in {language.name}"
    if words.split() == original.split() and language_of(original) != UNCLEAR:
        return "it is the original"
    if len(original) >= LONG and not SHORTEST <= len(words) / len(original) <= LONGEST:
        return "its length does not fit the original's"
    return "it goes in circles" if goes_in_circles(words) and not goes_in_circles(original) else ""


def sources(rows: Sequence[Example]) -> list[tuple[str, Example]]:
    """Each row by its content, and by its number among equal ones, so that what was done is found again wherever it
    stands."""
    seen: Counter[str] = Counter()
    found = []
    for example in rows:
        key = example.key()
        found.append((f"{key}.{seen[key]}", example))
        seen[key] += 1
    return found
