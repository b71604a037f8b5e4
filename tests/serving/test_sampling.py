"""Tokens are drawn from the distributions that transformers' processors leave, each row by its own settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from alpaca.prompts.example import Example
from alpaca.serving.request import GenerationRequest
from alpaca.serving.sampling import CANDIDATES, Sampler, answer_seed, choose

PROMPT = [3, 4, 4, 9]
EOS = [0, 2]


class Even(Sampler):
    """A sampler whose random number is given, so that many of them cover a distribution evenly."""

    point = 0.0

    def draw(self) -> float:
        return self.point


def sampler(vocabulary: int, *, seed: int = 0, kind: type[Sampler] = Sampler, **inputs: Any) -> Any:
    request = GenerationRequest(Example.single("hay"), **{"temperature": 1.0, "top_p": 1.0, **inputs})
    return kind(request, PROMPT, seed=seed, eos_ids=EOS)


def drawn(logits: Tensor, count: int, said: Sequence[int] = (), **inputs: Any) -> Tensor:
    """How often each token is drawn when the random numbers cover 0 … 1 evenly: [vocabulary], in sum 1."""
    seen = torch.zeros(len(logits))
    for start in range(0, count, 500):
        samplers = [sampler(len(logits), kind=Even, **inputs) for _ in range(min(500, count - start))]
        for number, one in enumerate(samplers, start):
            one.point = (number + 0.5) / count
            for token in said:
                one.accept(token)
        tokens = choose(logits.repeat(len(samplers), 1), samplers)
        seen += torch.bincount(torch.tensor(tokens), minlength=len(logits))
    return seen / count


def expected(logits: Tensor, said: Sequence[int] = (), **inputs: Any) -> Tensor:
    """What transformers leaves, by its own processors in the order of generate()."""
    ids = torch.tensor([[*PROMPT, *said]])
    chain: list[Any] = []
    if "repetition_penalty" in inputs:
        chain.append(RepetitionPenaltyLogitsProcessor(inputs["repetition_penalty"]))
    if "min_tokens" in inputs:
        chain.append(MinNewTokensLengthLogitsProcessor(len(PROMPT), inputs["min_tokens"], EOS))
    if "temperature" in inputs:
        chain.append(TemperatureLogitsWarper(inputs["temperature"]))
    if "top_k" in inputs:
        chain.append(TopKLogitsWarper(inputs["top_k"]))
    if "top_p" in inputs:
        chain.append(TopPLogitsWarper(inputs["top_p"]))
    if "min_p" in inputs:
        chain.append(MinPLogitsWarper(inputs["min_p"]))
    scores = logits[None].clone()
    for processor in chain:
        scores = processor(ids, scores)
    return torch.softmax(scores, -1)[0]


def random_logits(vocabulary: int, spread: float, seed: int = 1) -> Tensor:
    return torch.randn(vocabulary, generator=torch.Generator().manual_seed(seed)) * spread


# --- against transformers -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"temperature": 0.3},
        {"temperature": 3.0},
        {"top_k": 1},
        {"top_k": 7},
        {"top_k": 100_000},
        {"top_p": 0.5},
        {"top_p": 0.999},
        {"min_p": 0.1},
        {"repetition_penalty": 1.7},
        {"repetition_penalty": 0.4},
        {"min_tokens": 4},
        {"min_tokens": 3},
        {"temperature": 0.7, "top_k": 9, "top_p": 0.8},
        {"temperature": 1.6, "top_p": 0.9, "min_p": 0.2},
        {"temperature": 0.8, "top_k": 12, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.3, "min_tokens": 8},
    ],
    ids=str,
)
def test_draws_follow_the_distribution_of_transformers(inputs: dict[str, Any]) -> None:
    logits, said = random_logits(40, 2.0), [7, 7, 11]
    wanted = expected(logits, said, **inputs)
    found = drawn(logits, 2000, said, **inputs)
    assert (found - wanted).abs().max() <= 1.5 / 2000
    assert not found[wanted == 0].any()


@pytest.mark.parametrize(
    ("spread", "inputs"),
    [
        (0.01, {"top_p": 0.9}),  # nearly flat: 4,500 tokens stay
        (1.0, {"top_p": 0.95}),
        (1.0, {"min_p": 0.01}),
        (0.01, {"top_k": 1000}),
        (1.0, {"top_k": 1000, "top_p": 0.9}),
        (1.0, {"top_k": CANDIDATES}),
        (1.0, {"top_p": 0.99, "min_p": 0.05, "temperature": 1.5}),
        (0.01, {}),
    ],
    ids=str,
)
def test_a_vocabulary_that_the_likeliest_tokens_do_not_settle_is_looked_at_whole(
    spread: float, inputs: dict[str, Any]
) -> None:
    logits, count = random_logits(5000, spread), 4000
    wanted, found = expected(logits, **inputs), drawn(logits, count, **inputs)
    # at the edge of what is kept, rounding decides for a token or two
    assert int(((found > 0) & (wanted == 0)).sum()) <= 2
    assert (found - wanted).abs().max() <= 2.5 / count
    kept = int((wanted > 0).sum())
    assert kept > CANDIDATES or inputs.get("top_k") == CANDIDATES or "min_p" in inputs
    # the whole: tokens sorted by likelihood, in fifty groups
    groups = torch.argsort(wanted, descending=True).chunk(50)
    for group in groups:
        assert found[group].sum() == pytest.approx(float(wanted[group].sum()), abs=0.005)


def test_rows_of_a_step_each_have_their_own_settings() -> None:
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0}, {}, {"top_k": 3}, {"top_p": 0.4, "temperature": 2.0}, {"min_p": 0.3},
        {"repetition_penalty": 2.0}, {"top_k": 600}, {"temperature": 0.0, "frequency_penalty": 2.0},
    ]  # fmt: skip
    logits = random_logits(1000, 1.5)
    for point in (0.05, 0.5, 0.93):
        together = [sampler(1000, kind=Even, **kind) for kind in kinds]
        alone = [sampler(1000, kind=Even, **kind) for kind in kinds]
        for one in (*together, *alone):
            one.point = point
        assert choose(logits.repeat(len(kinds), 1), together) == [
            choose(logits[None].clone(), [one])[0] for one in alone
        ]


# --- penalties ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "inputs",
    [
        {"presence_penalty": 1.5},
        {"presence_penalty": -2.0},
        {"frequency_penalty": 0.7},
        {"presence_penalty": 0.5, "frequency_penalty": -0.4},
        {"presence_penalty": 0.5, "frequency_penalty": 0.4, "repetition_penalty": 1.5},
    ],
    ids=str,
)
def test_presence_counts_once_and_frequency_each_time_for_tokens_of_the_answer(inputs: dict[str, float]) -> None:
    logits, said = random_logits(30, 1.0), [9, 9, 9, 12]  # 9 is in the prompt as well
    by_hand = logits.clone()
    if penalty := inputs.get("repetition_penalty"):
        for token in {*PROMPT, *said}:
            by_hand[token] = by_hand[token] * penalty if by_hand[token] < 0 else by_hand[token] / penalty
    for token, times in ((9, 3), (12, 1)):
        by_hand[token] -= inputs.get("presence_penalty", 0.0) + times * inputs.get("frequency_penalty", 0.0)
    found = drawn(logits, 2000, said, **inputs)
    assert (found - torch.softmax(by_hand, -1)).abs().max() <= 1.5 / 2000
    greedy = sampler(30, **inputs, temperature=0.0)
    for token in said:
        greedy.accept(token)
    assert choose(logits[None].clone(), [greedy]) == [int(by_hand.argmax())]


def test_what_was_drawn_is_taken_note_of() -> None:
    logits = torch.zeros(1, 10)
    logits[0, 5] = 1.0
    greedy = sampler(10, temperature=0.0, presence_penalty=5.0)
    seen = [choose(logits.clone(), [greedy])[0] for _ in range(10)]
    assert seen[0] == 5 and sorted(seen) == list(range(10))


def test_the_end_is_ruled_out_for_min_tokens_and_no_longer() -> None:
    logits = torch.zeros(1, 10)
    logits[0, 2], logits[0, 0] = 9.0, 8.0
    greedy = sampler(10, temperature=0.0, min_tokens=3)
    assert [choose(logits.clone(), [greedy])[0] for _ in range(4)] == [1, 1, 1, 2]


# --- random numbers -----------------------------------------------------------------------------------------------
def test_draws_of_many_seeds_pass_a_chi_square_test() -> None:
    logits = random_logits(20, 1.0)
    wanted = torch.softmax(logits, -1)
    samplers = [sampler(20, seed=seed) for seed in range(4000)]
    for _ in range(3):
        seen = torch.bincount(torch.tensor(choose(logits.repeat(4000, 1), samplers)), minlength=20)
        statistic = ((seen - 4000 * wanted) ** 2 / (4000 * wanted)).sum()
        assert statistic < 43.8  # 19 degrees of freedom: one in a thousand is above


def test_draws_of_one_seed_pass_a_chi_square_test() -> None:
    logits = random_logits(20, 1.0)
    wanted, one = torch.softmax(logits, -1), sampler(20, seed=5)
    seen = torch.bincount(torch.tensor([choose(logits[None].clone(), [one])[0] for _ in range(4000)]), minlength=20)
    assert ((seen - 4000 * wanted) ** 2 / (4000 * wanted)).sum() < 43.8


def test_a_seed_repeats_and_each_token_takes_one_number() -> None:
    logits = random_logits(50, 1.0)
    texts = []
    for others in (0, 3):
        one = sampler(50, seed=11, top_p=0.9)
        rest = [sampler(50, seed=n, top_k=n + 1) for n in range(others)]
        texts.append([choose(logits.repeat(1 + others, 1), [one, *rest])[0] for _ in range(30)])
    assert texts[0] == texts[1]


def test_answers_of_a_request_have_seeds_far_apart() -> None:
    seeds = {answer_seed(seed, answer) for seed in (0, 1, 2, 2**32 - 1) for answer in range(5)}
    assert len(seeds) == 20
    assert answer_seed(7, 0) == 7


@pytest.mark.parametrize("inputs", [{}, {"top_k": 2}, {"top_p": 0.6}], ids=str)
def test_the_largest_random_number_never_draws_what_was_ruled_out(inputs: dict[str, Any]) -> None:
    logits = torch.tensor([5.0, 4.0, *([-30.0] * 300)])
    one = sampler(len(logits), seed=6037203, **inputs)  # whose first number is 1 - 1.4e-8: in fp32 it would be 1
    assert choose(logits[None].clone(), [one])[0] in (0, 1)


@given(
    data=st.data(),
    vocabulary=st.sampled_from([3, 40, 300, 700]),
    temperature=st.sampled_from([1e-9, 0.2, 1.0, 5.0]),
    top_k=st.sampled_from([0, 1, 2, 30, 256, 400, 100_000]),
    top_p=st.sampled_from([0.0, 0.1, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.1, 1.0]),
)
@settings(deadline=None, max_examples=150)
def test_whatever_the_settings_a_token_that_was_kept_is_drawn(
    data: st.DataObject, vocabulary: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = random_logits(
        vocabulary, data.draw(st.sampled_from([0.0, 0.1, 3.0, 1000.0])), data.draw(st.integers(0, 9))
    )
    one = sampler(vocabulary, kind=Even, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    one.point = data.draw(st.sampled_from([0.0, 0.5, 1 - 2**-40]))
    (token,) = choose(logits[None].clone(), [one])
    better = int((logits > logits[token]).sum())
    assert 0 <= token < vocabulary
    assert not top_k or better < top_k
    likelier = torch.softmax(logits.double() / max(temperature, 1e-4), -1)
    assert likelier[token] >= min_p * likelier.max() * (1 - 1e-5)
    # everything likelier together does not reach top_p, except by rounding
    if not top_k:
        assert better == 0 or likelier[logits > logits[token]].sum() <= top_p + 1e-4
