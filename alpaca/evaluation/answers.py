"""Answers of the base and of the adapter to the same questions, made many at a time by the serving engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpaca.errors import PromptTooLong
from alpaca.evaluation.budget import affordable
from alpaca.evaluation.probes import Probe
from alpaca.progress import Say, progress
from alpaca.prompts.example import Example
from alpaca.serving.composition import Composition, Part
from alpaca.serving.engine import Engine
from alpaca.serving.request import GenerationRequest
from alpaca.serving.stream import FinishReason
from alpaca.serving.together import Answer, answers
from alpaca.words import tagged

DOMAIN, GENERAL, PROBE = "domain", "general", "probe"
LEAST = {DOMAIN: 8, GENERAL: 16, PROBE: 40}  # questions of each topic that are asked whatever the budget
MOST = {DOMAIN: 12, GENERAL: 48}
TOKENS = {DOMAIN: 120, GENERAL: 64, PROBE: 48}  # of an answer, at most
# On repetition, for the answers that people read: small greedy models run in circles without. Probes have none,
# because it would keep a model from writing a number that stands in the question.
PENALTY = {DOMAIN: 1.1, GENERAL: 1.1, PROBE: 1.0}
BASE, TUNED = 0.0, 1.0  # the scale at which each answers; both are asked in the template of the tuned one


@dataclass(frozen=True)
class Question:
    """What is asked, and on which topic. A probe comes with its check."""

    example: Example
    topic: str
    probe: Probe | None = None

    @property
    def prompt(self) -> str:
        """The last turn's question with its input, for people."""
        turn = self.example.turns[-1]
        return "\n".join(turn.given).strip()

    @property
    def reference(self) -> str:
        """The answer that the row has."""
        return self.probe.answer if self.probe else "\n".join(filter(None, self.example.turns[-1].written))


@dataclass(frozen=True)
class Asked:
    """A question with the base's answer and the adapter's; "" where the prompt is too long to be answered.

    `base_cut`: the base's answer was cut at the limit of tokens.
    """

    question: Question
    base: str
    adapter: str
    base_cut: bool = False


def make_questions(
    domain: Sequence[Example], general: Sequence[Example], probes: Sequence[Probe]
) -> tuple[list[Question], list[Question]]:
    """(what is always asked, what is asked if there is time, the topics mixed)."""
    groups = [
        [Question(row, DOMAIN) for row in domain if not row.raw][: MOST[DOMAIN]],
        [Question(row, GENERAL) for row in general[: MOST[GENERAL]]],
        [Question(Example.single(probe.instruction, probe.input), PROBE, probe) for probe in probes],
    ]
    always = [question for group in groups for place, question in enumerate(group) if place < LEAST[question.topic]]
    rest = [
        (place / len(group), number, question)
        for number, group in enumerate(groups)
        for place, question in enumerate(group)
        if place >= LEAST[question.topic]
    ]
    return always, [question for _, _, question in sorted(rest, key=lambda item: item[:2])]


def ask_all(
    ask: Callable[[Sequence[Question], Callable[[int], object]], list[Asked]],
    always: Sequence[Question],
    rest: Sequence[Question],
    seconds: float | None,
    say: Say,
) -> list[Asked]:
    """Ask what must be asked, then as much of the rest as `seconds` allow; None has no end. Raises the engine's
    errors."""
    if seconds is None:
        always, rest = [*always, *rest], []
    started = time.monotonic()
    with progress(tagged("report", "answers"), 2 * len(always), "answer", say) as done:
        asked = ask(always, done)
    taken = time.monotonic() - started
    share = affordable(taken * tokens(rest) / max(1, tokens(always)), None if seconds is None else seconds - taken)
    more = rest[: int(len(rest) * share)]
    if more:
        with progress(tagged("report", "more answers"), 2 * len(more), "answer", say) as done:
            asked += ask(more, done)
    return asked


def tokens(questions: Iterable[Question]) -> int:
    """The most that the answers can have."""
    return sum(TOKENS[question.topic] for question in questions)


def ask(
    engine: Engine,
    adapters: Sequence[Path],
    questions: Sequence[Question],
    done: Callable[[int], object] = lambda answers: None,
) -> list[Asked]:
    """Ask the base and the adapters together; `done` is told of each answer."""
    composition = Composition(tuple(Part(adapter.resolve()) for adapter in adapters))
    requests = [
        request(question, adapter=composition, adapter_scale=scale) for scale in (BASE, TUNED) for question in questions
    ]
    found = answers(engine, requests, done=done, unanswered=(PromptTooLong,))
    return joined(questions, found[: len(questions)], found[len(questions) :])


def joined(questions: Sequence[Question], base: Sequence[Answer], tuned: Sequence[Answer]) -> list[Asked]:
    """Each question with both of its answers."""
    both = zip(questions, base, tuned, strict=True)
    return [
        Asked(question, before.text, after.text, before.finish == FinishReason.LENGTH)
        for question, before, after in both
    ]


def request(question: Question, **how: Any) -> GenerationRequest:
    """The question, to be answered greedily. `how`: further fields of the request."""
    return GenerationRequest(
        example=question.example.awaiting(),
        max_tokens=TOKENS[question.topic],
        temperature=0.0,
        repetition_penalty=PENALTY[question.topic],
        seed=0,
        **how,
    )
