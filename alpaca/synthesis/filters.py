"""What keeps a task that a model thought up from becoming rows. Each reason is counted.

The order is that of self-instruct (arXiv 2212.10560, section 2.2) with the signs of odd rows before what costs most.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from alpaca.data.suspicions import (
    CONTROL,
    cut_off,
    echo,
    input_missing,
    marker,
    merged,
    mojibake,
    no_input,
    placeholder,
    unseeable,
)
from alpaca.prompts.turn import UNWRITABLE, Turn
from alpaca.synthesis.language import Language
from alpaca.synthesis.similarity import Pool, words
from alpaca.synthesis.task import Instance, Task

FEWEST_WORDS, MOST_WORDS = 3, 150  # of an instruction
MOST_CHARACTERS = 6_000  # of an input or an answer
ALIKE = 0.7  # ROUGE-L of two instructions from which they are one task
LEAST_LETTERS = 0.3  # of all characters that are no blanks
LOOP = re.compile(r"(.{2,120}?)(?:\s*\1){3,}", re.DOTALL)
LOOP_CHARACTERS = 60
BEYOND_TEXT = re.compile(
    r"(?:^|[.!?;]\s+|\b(?:and|then|please) )(?:sketch|paint|photograph|visuali[sz]e|sing|hum|record|listen to|watch|"
    r"attach|upload|download|browse|google|click|plot|play(?= (?:the|an?|some|me|music)\b)|"
    r"draw(?! (?:an? |the |your )?(?:conclusions?|comparisons?|parallels?)))\b"
    r"|\b(?:images?|pictures?|photos?|photographs?|videos?|audio|flow ?charts?|diagrams?|screenshots?|mp3|"
    r"spreadsheets?)\b"
    r"|\b(?:go to|visit|open|check) (?:the |this |a )?(?:website|link|url|web page|store|internet)\b"
    r"|\b(?:set|turn on|turn off) (?:the |an? |my )?(?:alarm|timer|lights?|reminder)\b"
    r"|\b(?:zeichne|male|fotografiere|skizziere)\b|\b(?:Bild|Foto|Video|Diagramm)\b"
    r"|\b(?:dessine[rz]?|photographie[rz]?)\b|\b(?:dibuja|fotografía)\b"
    r"|画[一张幅个出]|绘制|图片|图像|照片|视频|音频|流程图|打开(?:网页|链接|网站)|描いて|画像|動画|写真を",
    re.IGNORECASE,
)

TOO_SHORT, TOO_LONG, BEYOND, NO_TEXT = "too short", "too long", "asks for more than text", "not text"
UNREADABLE, CUT, REPEATED, SIMILAR = "unreadable", "cut off", "repeated", "too similar"
LOOPS, OTHER_LANGUAGE, NO_ANSWER, NO_TASK_INPUT = "goes in circles", "another language", "no answer", "input missing"
MIXED = "several tasks in one"
REASONS = (
    UNREADABLE, CUT, TOO_SHORT, TOO_LONG, BEYOND, NO_TEXT, LOOPS, MIXED, NO_ANSWER, NO_TASK_INPUT, OTHER_LANGUAGE,
    REPEATED, SIMILAR,
)  # fmt: skip


@dataclass(slots=True)
class Sieve:
    """Knows the tasks that are there, and says why another is refused."""

    language: Language | None
    pool: Pool = field(default_factory=Pool)
    _asked: set[tuple[str, ...]] = field(default_factory=set)

    def keep(self, task: Task) -> None:
        """Remember a task that is there now."""
        self.pool.add(task.instruction)
        self._asked.add(tuple(words(task.instruction)))

    def refusal(self, task: Task) -> str:
        """Why the whole task can't be used, one of REASONS; "" where it can."""
        count = len(words(task.instruction))
        if count < FEWEST_WORDS:
            return TOO_SHORT
        if count > MOST_WORDS:
            return TOO_LONG
        if BEYOND_TEXT.search(task.instruction) or unseeable(Turn(task.instruction)):
            return BEYOND
        if not is_text(task.instruction) or (
            not task.instruction[0].isalnum() and task.instruction[0] not in "\"'“«「¿¡"
        ):
            return NO_TEXT
        if self.language and self.language.differs(task.instruction):
            return OTHER_LANGUAGE
        if tuple(words(task.instruction)) in self._asked:
            return REPEATED
        return SIMILAR if self.pool.nearest(task.instruction, ALIKE) else ""

    def instance_refusal(self, task: Task, instance: Instance) -> str:
        """Why an instance of a task can't be a row, one of REASONS; "" where it can."""
        if task.is_classification and not instance.input:
            return NO_TASK_INPUT
        turn = Turn(task.instruction, instance.input, instance.output)
        return next((reason for reason, see in SIGNS if see(turn)), "") or self._language_refusal(instance)

    def _language_refusal(self, instance: Instance) -> str:
        wrong = self.language is not None and self.language.differs(instance.output)
        return OTHER_LANGUAGE if wrong else ""


def is_text(text: str) -> bool:
    """Whether it is made of letters and digits for the most part, and holds nothing that can't be shown."""
    visible = [letter for letter in text if not letter.isspace()]
    letters = sum(letter.isalnum() for letter in visible)
    return bool(visible) and letters >= LEAST_LETTERS * len(visible) and not UNWRITABLE.search(text)


def _damaged(turn: Turn) -> bool:
    texts = (turn.instruction, turn.input, turn.output or "")
    return bool(
        mojibake(turn) or marker(turn) or any(CONTROL.search(text) or UNWRITABLE.search(text) for text in texts)
    )


def goes_in_circles(text: str) -> bool:
    """Whether a text says the same again and again, as small models do."""
    loops = (found for found in LOOP.finditer(text[:MOST_CHARACTERS]) if len(found[0]) >= LOOP_CHARACTERS)
    return any(letter.isalpha() for found in loops for letter in found[1])


def _too_long(turn: Turn) -> bool:
    return max(len(turn.input), len(turn.output or "")) > MOST_CHARACTERS


SIGNS: tuple[tuple[str, Callable[[Turn], object]], ...] = (
    (TOO_LONG, _too_long),
    (NO_TEXT, _damaged),
    (BEYOND, unseeable),
    (LOOPS, lambda turn: goes_in_circles(f"{turn.input}\n{turn.output}")),
    (MIXED, merged),
    (NO_ANSWER, lambda turn: placeholder(turn) or echo(turn)),
    (NO_TASK_INPUT, lambda turn: input_missing(turn) or no_input(turn)),
    (CUT, cut_off),
)
