"""Self-instruct (arXiv 2212.10560) as Stanford did it: a prompt with some seed tasks, drawn at random, and many new
tasks in every answer, which are read, filtered and added to those that are there.

Which seed tasks a question shows depends on the seed and on the question's number alone, so that a run that is begun
again asks the same questions, and has the answers to those that it asked before.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field

from alpaca.errors import BadSetting, NothingUsable, QuestionFailed
from alpaca.progress import Advance
from alpaca.synthesis.counts import listed
from alpaca.synthesis.desk import Desk
from alpaca.synthesis.filters import CUT, REASONS, UNREADABLE, Sieve
from alpaca.synthesis.instruct_prompt import instruct_prompt
from alpaca.synthesis.journal import Journal, Made, Row
from alpaca.synthesis.language import Language
from alpaca.synthesis.question import Question, Reply
from alpaca.synthesis.seed_tasks import SeedTasks
from alpaca.synthesis.task import Task, read_tasks

TASKS, LABELLED = "tasks kept", "of them classifications"
FRUITLESS = 40  # answers in a row without a row in them, from which more are of no use


@dataclass(frozen=True, slots=True)
class Order:
    """What is wanted. Raises BadSetting for what can't be."""

    rows: int
    seeds: SeedTasks
    language: Language | None = None
    shown: int = 3
    """Seed tasks in a prompt."""
    tasks: int = 10
    """New tasks that an answer is to hold."""
    max_tokens: int = 3072
    temperature: float | None = 1.0
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, most in (("rows", 10_000_000), ("shown", 50), ("tasks", 50), ("max_tokens", 131_072)):
            if not 1 <= getattr(self, name) <= most:
                raise BadSetting(f"--{name} is {getattr(self, name)}: it must be from 1 to {most:,}")
        if self.shown > len(self.seeds.tasks):
            raise BadSetting(f"--shown is {self.shown}, and there are {len(self.seeds.tasks)} seed tasks to show")

    def question(self, number: int) -> Question:
        """Question `number`, from 0."""
        shown = random.Random(f"{self.seed}/{number}").sample(self.seeds.tasks, self.shown)
        said = instruct_prompt(shown, self.tasks, self.language)
        return Question(said, self.max_tokens, self.temperature, self.top_p, (self.seed * 1_000_003 + number) % 2**31)

    def work(self, model: str) -> dict[str, object]:
        """What must not change between a run and the one that goes on from it; the number of rows may."""
        return {
            "command": "instruct",
            "model": model,
            "seed_tasks": sorted(self.seeds.hashes.values()),
            "language": self.language.name if self.language else None,
            "shown": self.shown,
            "tasks": self.tasks,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
        }


@dataclass(slots=True)
class Instructing:
    """A run: asks as many questions at a time as it has workers, and stops at the number of rows."""

    order: Order
    desk: Desk
    advance: Advance = lambda count: None
    rows: int = 0
    fruitless: int = 0
    _next: int = 0
    _flying: int = 0
    _sieve: Sieve = field(init=False)
    _landed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        """Takes up where an earlier run ended: its rows are there, and its answers that were not used yet are."""
        self._sieve = Sieve(self.order.language)
        for task in self.order.seeds.tasks:
            self._sieve.keep(task)
        for row in self.journal.rows:
            self._sieve.keep(Task(row["instruction"], ()))
            self.rows += 1
        for key, reply in self.journal.answers.items():
            self._use(key, reply)

    @property
    def journal(self) -> Journal:
        return self.desk.journal

    async def work(self) -> None:
        """One worker: question after question until there are enough rows. Raises NothingUsable where none come."""
        while await self._is_wanted():
            question = self._take()
            self._flying += 1
            try:
                reply = await self.desk.ask(question)
            except QuestionFailed:
                continue
            finally:
                self._flying -= 1
                self._landed.set()
            self._use(question.key(self.desk.model.name), reply)

    async def _is_wanted(self) -> bool:
        """Whether another question is needed: not while those that are being asked will likely do."""
        while self.rows < self.order.rows:
            if self._flying * self._per_answer() + self.rows < self.order.rows or not self._flying:
                return True
            self._landed.clear()
            await self._landed.wait()
        return False

    def _per_answer(self) -> float:
        """How many rows an answer brings."""
        return self.rows / len(self.journal.made) if self.journal.made else self.order.tasks / 2

    def _take(self) -> Question:
        """The next question that has no answer yet."""
        while True:
            question = self.order.question(self._next)
            self._next += 1
            if not self.desk.knows(question):
                return question

    def _use(self, key: str, reply: Reply) -> None:
        """Make rows of an answer, of its tasks from where an earlier run left off, as many as are still wanted."""
        tasks = read_tasks(reply.text)
        before = self.journal.made.get(key)
        taken = 0 if before is None else before.taken
        if taken is None or self.rows >= self.order.rows:
            return
        rows: list[Row] = []
        counts: Counter[str] = Counter()
        for place in range(taken, len(tasks)):
            if self.rows + len(rows) >= self.order.rows:
                break
            task = tasks[place]
            if place == len(tasks) - 1 and not reply.whole:
                counts[CUT] += 1
            elif task is None:
                counts[UNREADABLE] += 1
            else:
                rows += self._rows_of(task, counts)
            taken = place + 1
        counts[UNREADABLE] += not tasks
        rows = rows[: self.order.rows - self.rows]
        self.journal.make(Made(key, rows, +counts, taken if taken < len(tasks) else None))
        self.rows += len(rows)
        self.advance(len(rows))
        self.fruitless = 0 if rows else self.fruitless + 1
        if self.fruitless >= FRUITLESS:
            why = listed(counts, REASONS)
            raise NothingUsable(
                f"{FRUITLESS} answers in a row hold no row that can be used (the last one: {why or 'nothing new'}); "
                f"{self.rows} of {self.order.rows} rows are made. Ask a larger model, for fewer --tasks at once, or "
                "give more seed tasks"
            )

    def _rows_of(self, task: Task, counts: Counter[str]) -> list[Row]:
        refusal = self._sieve.refusal(task)
        if refusal:
            counts[refusal] += 1
            return []
        refusals = [self._sieve.instance_refusal(task, instance) for instance in task.instances]
        good = [one for one, refused in zip(task.instances, refusals, strict=True) if not refused]
        counts.update(refused for refused in refusals if refused)
        if good:
            self._sieve.keep(task)
            counts[TASKS] += 1
            counts[LABELLED] += task.is_classification
        distinct = dict.fromkeys((one.input, one.output) for one in good)
        return [{"instruction": task.instruction, "input": given, "output": said} for given, said in distinct]
