"""Where questions are handed in: what was answered before is not asked again, what is answered is kept at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from alpaca.errors import LimitReached, QuestionFailed
from alpaca.synthesis.budget import Budget
from alpaca.synthesis.journal import Journal
from alpaca.synthesis.model import Model
from alpaca.synthesis.question import Question, Reply

FAILED_IN_A_ROW = 5  # questions without an answer, one after the other, from which the fault is the server's


class Desk:
    """Asks `model` within `budget`, by way of `journal`."""

    def __init__(self, model: Model, journal: Journal, budget: Budget) -> None:
        self.model, self.journal, self.budget = model, journal, budget
        self.asked = self.unanswered = 0
        self._flying: dict[str, asyncio.Task[Reply]] = {}
        self._failed = 0

    async def ask(self, question: Question) -> Reply:
        """The answer, the journal's where it has one; who asks the same at the same time shares it.

        Raises QuestionFailed where there is none, LimitReached before a limit is passed, ModelRefused.
        """
        key = question.key(self.model.name)
        if key in self.journal.answers:
            return self.journal.answers[key]
        if key not in self._flying:
            self._flying[key] = asyncio.create_task(self._ask(key, question))
        return await asyncio.shield(self._flying[key])

    def sum_up(self) -> str:
        """For people: how many answers there are, and what they took."""
        failed = f", {self.unanswered} questions have none" if self.unanswered else ""
        return f"answers: {len(self.journal.answers)}, {self.asked} questions asked now{failed}; {self.budget.spent()}"

    def knows(self, question: Question) -> bool:
        """Whether the journal has its answer."""
        return question.key(self.model.name) in self.journal.answers

    async def _ask(self, key: str, question: Question) -> Reply:
        reply = None
        try:
            aside = self.budget.set_aside(question)
            try:
                self.asked += 1
                reply = await self.model.ask(question)
            finally:
                self.budget.settle(question, aside, reply)
        except QuestionFailed as error:
            self._failed += 1
            self.unanswered += 1
            if self._failed < FAILED_IN_A_ROW:
                raise
            raise GivenUp(error) from None
        finally:
            del self._flying[key]
        self._failed = 0
        self.journal.answered(key, reply)
        return reply


class GivenUp(Exception):
    """So many questions in a row have no answer that no more are asked."""

    def __init__(self, last: QuestionFailed) -> None:
        self.last = QuestionFailed(f"{FAILED_IN_A_ROW} questions in a row have no answer; {last.message}")


async def work_through(workers: int, work: Callable[[], Awaitable[None]]) -> None:
    """Run as many workers until each has ended. At a limit a worker ends, and the others end what they have begun,
    which is paid for; then LimitReached is raised. Any other error ends all at once, and is raised as it is."""
    limits: list[LimitReached] = []

    async def one() -> None:
        try:
            await work()
        except LimitReached as reached:
            limits.append(reached)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(one())
    except BaseExceptionGroup as several:
        first = several.exceptions[0]
        raise first.last if isinstance(first, GivenUp) else first from None
    if limits:
        raise LimitReached(f"{limits[0].message}. What was made is kept; a higher limit goes on from there")
