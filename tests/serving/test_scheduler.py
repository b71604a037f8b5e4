"""Which prompts a step takes: short ones first, none passed over for ever, and never more than a chunk."""

from __future__ import annotations

from collections.abc import Sequence as Several

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpaca.prompts.example import Example
from alpaca.serving.request import GenerationRequest
from alpaca.serving.sampling import Sampler
from alpaca.serving.scheduler import Scheduler
from alpaca.serving.sequence import Job, Sequence
from alpaca.serving.text import TextStream
from tests.conftest import make_tokenizer

TOKENIZER = make_tokenizer()


def answer(length: int, computed: int = 0) -> Sequence:
    """An answer that has a slot, with `length` tokens of which `computed` are in the cache."""
    request = GenerationRequest(Example.single("hay"))
    job = Job(request, None, [5] * length, max_tokens=10)
    sampler = Sampler(request, job.prompt, seed=0, eos_ids=[2])
    return Sequence(job, 0, sampler, TextStream(TOKENIZER), frozenset({2}), list(job.prompt), computed)


def run(scheduler: Scheduler, answers: Several[Sequence]) -> list[tuple[int, int]]:
    """One step: which answers (by number) took part with how many tokens. An answer that is through is said on."""
    parts = scheduler.next_step(answers)
    for taken, count in parts:
        taken.computed += count
        if not taken.remaining:
            taken.tokens.append(5)
    return [(answers.index(taken), count) for taken, count in parts]


def test_every_answer_that_decodes_takes_part_in_every_step() -> None:
    answers = [answer(9, 8), answer(300), answer(5, 4), answer(1)]
    assert run(Scheduler(128), answers) == [(0, 1), (2, 1), (3, 1), (1, 128)]
    assert run(Scheduler(128), answers[:1] * 1) == [(0, 1)]


def test_short_prompts_come_first_and_those_that_fit_come_together() -> None:
    answers = [answer(500), answer(100), answer(20), answer(30)]
    assert run(Scheduler(128), answers) == [(2, 20), (3, 30)]


def test_what_does_not_end_with_the_first_waits() -> None:
    assert run(Scheduler(128), [answer(500), answer(100)]) == [(1, 100)]
    assert run(Scheduler(128), [answer(500), answer(400)]) == [(1, 128)]


def test_what_is_left_of_a_prompt_counts_and_not_its_length() -> None:
    assert run(Scheduler(128), [answer(60), answer(900, 890)]) == [(1, 10), (0, 60)]


def test_a_long_prompt_is_not_passed_over_for_ever() -> None:
    scheduler, long = Scheduler(128), answer(2000)
    running = [long]
    steps = 0
    while long.remaining > 1:
        running = [long, answer(100)]  # one newcomer with every step
        run(scheduler, running)
        steps += 1
        assert steps <= 200
    assert steps > 2000 / 128


def test_nothing_is_remembered_of_answers_that_left() -> None:
    scheduler = Scheduler(16)
    for _ in range(50):
        scheduler.next_step([answer(40), answer(30)])
    assert len(scheduler._passed) == 1
    scheduler.next_step([])
    assert not scheduler._passed


@given(
    lengths=st.lists(st.tuples(st.integers(1, 400), st.integers(0, 399)), max_size=9),
    chunk=st.sampled_from([2, 16, 128]),
)
def test_a_step_holds_at_most_a_chunk_of_prompts_and_all_are_computed_in_the_end(
    lengths: list[tuple[int, int]], chunk: int
) -> None:
    answers = [answer(length, min(computed, length - 1)) for length, computed in lengths]
    scheduler, waiting = Scheduler(chunk), list(answers)
    for _ in range(sum(length for length, _ in lengths) + 1):
        if not waiting:
            break
        parts = scheduler.next_step(waiting)
        assert parts, "no step without work"
        assert len({id(taken) for taken, _ in parts}) == len(parts)
        assert all(1 <= count <= taken.remaining for taken, count in parts)
        assert sum(count for taken, count in parts if taken.remaining > 1) <= chunk
        for taken, count in parts:
            taken.computed += count
        waiting = [taken for taken in waiting if taken.remaining]
    assert not waiting


@pytest.mark.parametrize("chunk", [1, 128])
def test_without_answers_there_is_nothing_to_do(chunk: int) -> None:
    assert Scheduler(chunk).next_step([]) == []
