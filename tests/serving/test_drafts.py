"""Guesses change how many steps an answer takes and nothing else: the same tokens, for every setting and mixture."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaForCausalLM

from alpaca.prompts.example import Example
from alpaca.serving.cache import BLOCK
from alpaca.serving.draft import ALLOWED, LONGEST, ROWS, SEEN, START, Drafter, check, shared
from alpaca.serving.engine import Engine
from alpaca.serving.inputs import request_from_inputs
from alpaca.serving.limits import EngineLimits
from alpaca.serving.loading import load_base, open_engine
from alpaca.serving.request import GenerationRequest
from alpaca.serving.sampling import Sampler, choose
from alpaca.serving.scheduler import Scheduler
from alpaca.serving.slots import Slot
from alpaca.serving.stream import Chunk, FinishReason
from alpaca.serving.together import answers
from tests.conftest import make_base, make_tokenizer
from tests.serving.peft_adapters import EVERY_KIND, make_adapters


# --- the guess ----------------------------------------------------------------------------------------------------
def eager(tokens: Sequence[int]) -> Drafter:
    """One that was right so often that nothing keeps it from guessing."""
    drafter = Drafter(tokens)
    drafter.learn([], 0, LONGEST)
    return drafter


def looked_up_plainly(tokens: Sequence[int]) -> list[int]:
    """What the guess should be, by looking at every place."""
    least, most = SEEN
    for size in range(most, least - 1, -1):
        for end in range(len(tokens) - 1, size - 1, -1):
            if tokens[end - size : end] == tokens[len(tokens) - size :]:
                going_on = list(tokens)
                for number in range(min(LONGEST, 2 * size)):
                    going_on.append(going_on[end + number])
                return going_on[len(tokens) :]
    return []


few = st.lists(st.sampled_from([5, 0xD800, 200_000, 0]), min_size=1, max_size=30)
repeating = st.builds(
    lambda lists, order: [token for number in order for token in lists[number % len(lists)]],
    st.lists(few, min_size=1, max_size=3),
    st.lists(st.integers(0, 2), min_size=1, max_size=6),
)


@given(few | repeating)
def test_a_guess_is_what_followed_the_longest_end_that_occurred_before(tokens: list[int]) -> None:
    assert eager(tokens).guess(LONGEST) == looked_up_plainly(tokens)


@given(repeating, st.integers(-3, LONGEST))
def test_fewer_guesses_begin_as_more_do(tokens: list[int], longest: int) -> None:
    drafter = eager(tokens)
    assert drafter.guess(longest) == eager(tokens).guess(LONGEST)[: max(0, longest)] == drafter.guess(longest)


@given(few, few)
def test_what_an_answer_says_is_looked_at_as_its_prompt_is(prompt: list[int], said: list[int]) -> None:
    drafter = eager(prompt)
    drafter.guess(LONGEST)
    drafter.learn(said, 0, 0)
    assert drafter.guess(LONGEST) == eager(prompt + said).guess(LONGEST)


def test_wrong_guesses_become_few_and_right_ones_many() -> None:
    drafter = Drafter([5, 6] * 20)
    guessed = 0
    for token in range(400):  # 5 and 6 over and over, and each time something else comes
        wrong = len(drafter.guess(LONGEST))
        guessed += wrong
        drafter.learn([100 + token, 5, 6], wrong, 0)
        assert guessed <= START + 3 * ALLOWED * (token + 1)
    for _ in range(10):
        right = drafter.guess(LONGEST)
        drafter.learn([*right, 5], len(right), len(right))
    drafter.learn([5, 6] * 20, 0, 0)
    assert len(drafter.guess(LONGEST)) == LONGEST


# --- how many -----------------------------------------------------------------------------------------------------
@given(st.lists(st.integers(0, LONGEST), max_size=20), st.integers(0, 64))
def test_room_is_shared_evenly_and_as_far_as_it_goes(wishes: list[int], room: int) -> None:
    given = shared(wishes, room)
    assert sum(given) == min(room, sum(wishes))
    assert all(got <= wish for got, wish in zip(given, wishes, strict=True))
    cut = [got for got, wish in zip(given, wishes, strict=True) if got < wish]
    assert not cut or max(given) <= min(cut) + 1


@pytest.mark.parametrize(("answers", "waiting"), [(1, 0), (4, 0), (15, 0), (16, 0), (20, 0), (2, 9), (2, 100)])
def test_guesses_fill_a_step_up_to_its_rows_and_never_more(answers: int, waiting: int) -> None:
    running = [sequence([5, 6] * 20, computed=39) for _ in range(answers)]
    running += [sequence([7] * waiting)] * bool(waiting)
    parts = Scheduler(128, ROWS["cpu"]).next_step(running)
    assert [count for _, count in Scheduler(128).next_step(running)] == [1] * answers + [waiting] * bool(waiting)
    assert [one for one, _ in parts] == running
    assert all(1 <= count <= 1 + START for one, count in parts if len(one.tokens) == 40)
    rows = sum(count for _, count in parts)
    assert rows == max(answers + waiting, min(ROWS["cpu"], answers * (1 + int(START)) + waiting))


@pytest.mark.parametrize("left", [1, 2, 3])
def test_no_guess_goes_beyond_max_tokens(left: int) -> None:
    one = sequence([5, 6] * 20, computed=39, max_tokens=10)
    one.said = 10 - left
    assert [count for _, count in Scheduler(128, ROWS["cpu"]).next_step([one])] == [left]


@pytest.mark.parametrize(
    ("chosen", "said", "finish"),
    [
        ([5, 6, 5, 9], [5, 6, 5, 9], None),
        ([9], [9], None),
        ([5, 6, 2, 9], [5, 6], FinishReason.STOP),
        ([2], [], FinishReason.STOP),
        ([5, 6, 5, 6, 5, 6], [5, 6, 5, 6, 5], FinishReason.LENGTH),
        ([5, 6, 5, 6, 5], [5, 6, 5, 6, 5], FinishReason.LENGTH),
    ],
)
def test_an_answer_takes_what_was_right_up_to_its_end(
    chosen: list[int], said: list[int], finish: FinishReason | None
) -> None:
    """And what is in the cache for later is that, but for the last token where no row was computed for it."""
    one = sequence([5, 6] * 20, computed=39, max_tokens=5)
    one.slot = Slot(0, BLOCK, tokens=list(one.tokens[:39]))
    one.advance(1)
    one.take(chosen, 5, 1)
    assert (one.tokens[40:], one.said, one.finish) == (said, len(said), finish)
    assert one.slot.tokens == one.tokens[: one.computed] == one.tokens[: 40 + min(len(said), len(chosen) - 1)]


def sequence(tokens: list[int], computed: int = 0, max_tokens: int = 10) -> Any:
    from alpaca.serving.sequence import Job, Sequence
    from alpaca.serving.text import TextStream

    request = GenerationRequest(Example.single("hay"))
    job = Job(request, (), tokens, max_tokens=max_tokens)
    text = TextStream(make_tokenizer())
    return Sequence(job, 0, sampler(), text, frozenset({2}), list(tokens), computed)


# --- the check ----------------------------------------------------------------------------------------------------
def sampler(seed: int = 0, **inputs: Any) -> Sampler:
    request = GenerationRequest(Example.single("hay"), **{"temperature": 1.0, "top_p": 1.0, **inputs})
    return Sampler(request, [3, 4], seed=seed, eos_ids=[2])


SETTINGS: list[dict[str, Any]] = [
    {}, {"temperature": 0.0}, {"temperature": 0.3, "top_k": 3}, {"top_p": 0.6}, {"min_p": 0.2}, {"min_tokens": 3},
    {"repetition_penalty": 1.8}, {"temperature": 0.0, "presence_penalty": 2.0, "frequency_penalty": 0.7},
]  # fmt: skip


@settings(deadline=None)
@given(st.data())
def test_tokens_are_those_that_are_chosen_one_by_one(data: st.DataObject) -> None:
    chosen = [data.draw(st.sampled_from(SETTINGS)) for _ in range(data.draw(st.integers(0, 4)))]
    logits = [torch.randn(data.draw(st.integers(1, 6)), 8) for _ in chosen]
    alone = [sampler(number, **inputs) for number, inputs in enumerate(chosen)]
    together = [sampler(number, **inputs) for number, inputs in enumerate(chosen)]
    told = [[choose(row[None].clone(), [one])[0] for row in rows] for rows, one in zip(logits, alone, strict=True)]
    drafts = [said[:-1] for said in told]
    for draft in drafts:
        for place in data.draw(st.sets(st.integers(0, 5), max_size=2)):
            if place < len(draft):
                draft[place] = data.draw(st.integers(0, 7))
    found = check(torch.cat([*logits, torch.empty(0, 8)]), together, drafts)
    for said, draft, got, number in zip(told, drafts, found, range(len(told)), strict=True):
        wrong = [place for place, token in enumerate(draft) if token != said[place]]
        assert got == said[: (wrong[0] if wrong else len(draft)) + 1]
        again = sampler(number, **chosen[number])
        for row in logits[number][: len(got)]:
            choose(row[None].clone(), [again])
        assert together[number].draw() == again.draw(), "a random number for each token, and no more"


def test_tokens_are_as_likely_as_without_guesses() -> None:
    """The first, and the second where the first is the guess, over many seeds against the distributions' own shares."""
    logits = torch.tensor([[1.0, 0.0, 2.0, -1.0, 0.5, 0.0, 0.0, 1.5], [0.0, 1.0, 0.0, 2.0, 0.0, -1.0, 0.3, 0.0]])
    count = 20_000
    found = check(logits.repeat(count, 1), [sampler(seed) for seed in range(count)], [[2]] * count)
    assert_shares([tokens[0] for tokens in found], torch.softmax(logits[0], -1))
    assert_shares([tokens[1] for tokens in found if tokens[0] == 2], torch.softmax(logits[1], -1))
    assert all(len(tokens) == 1 + (tokens[0] == 2) for tokens in found)


def assert_shares(tokens: list[int], shares: Tensor) -> None:
    """Within four standard deviations each."""
    seen = torch.bincount(torch.tensor(tokens), minlength=len(shares)) / len(tokens)
    assert ((seen - shares).abs() < 4 * (shares * (1 - shares) / len(tokens)).sqrt()).all()


# --- the engine ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that likes to say tokens in circles of eight, and leaves them now and then."""
    folder = make_base(tmp_path_factory.mktemp("bases") / "circling", seed=3, tied=False)
    model = LlamaForCausalLM.from_pretrained(folder)
    tokens = torch.arange(len(model.lm_head.weight))
    with torch.no_grad():
        after = (tokens // 8 * 8 + (tokens + 1) % 8).clamp(max=len(tokens) - 1)
        model.lm_head.weight[after] = model.model.embed_tokens.weight
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight *= 0.04
            layer.mlp.down_proj.weight *= 0.04
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def roots(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapters(base, tmp_path_factory.mktemp("adapters"), EVERY_KIND, spread=0.02)


@pytest.fixture
def pair(base: Path, roots: Path) -> Iterator[tuple[Engine, Engine]]:
    """The same base twice: with guesses and without."""
    engines = []
    for drafts in (True, False):
        limits = EngineLimits(concurrency=8, context=512, roots=(roots,), drafts=drafts)
        loaded = load_base(str(base), "fp32", say=lambda line: None)
        engines.append(open_engine(loaded, limits=limits, say=lambda line: None))
    yield engines[0], engines[1]
    for engine in engines:
        engine.close()


def request(prompt: str = "hay and grass " * 5, **inputs: Any) -> GenerationRequest:
    plain = {"max_tokens": 60, "temperature": 0.0, "seed": 7, "prompt_template": "{prompt}"}
    if "stop_sequences" in inputs:
        inputs["stop_sequences"] = json.dumps(inputs["stop_sequences"])
    return request_from_inputs(prompt=prompt, **{**plain, **inputs})


def said(engine: Engine, requests: Sequence[GenerationRequest]) -> list[list[tuple[str, Any, int, int]]]:
    """All at once: text, end, number of tokens and seed of every answer."""
    streams = [engine.submit(one) for one in requests]
    return [ends(list(stream)) for stream in streams]


def ends(chunks: list[Chunk]) -> list[tuple[str, Any, int, int]]:
    found = []
    for last in sorted((chunk for chunk in chunks if chunk.usage), key=lambda chunk: chunk.index):
        assert last.usage is not None
        text = "".join(chunk.text for chunk in chunks if chunk.index == last.index)
        found.append((text, last.finish, last.usage.output_tokens, last.usage.seed))
    return found


DRAWN = {"temperature": 0.4, "seed": 3}


@pytest.mark.parametrize(
    "inputs",
    [
        {}, DRAWN, {**DRAWN, "n": 3, "top_k": 5}, {**DRAWN, "top_p": 0.8, "min_p": 0.1}, {"adapter": "a"},
        {"adapter": "dora", **DRAWN}, {"adapter": "a:0.5+b", "max_tokens": 17}, {"repetition_penalty": 1.05},
        {"frequency_penalty": 0.05, "presence_penalty": 0.2, **DRAWN}, {"min_tokens": 60},
        {"min_tokens": 60, "repetition_penalty": 1.02, **DRAWN}, {"max_tokens": 1}, {"max_tokens": 2},
    ],
    ids=lambda inputs: " ".join(inputs) or "plain",
)  # fmt: skip
def test_answers_are_those_without_guesses(pair: tuple[Engine, Engine], inputs: dict[str, Any]) -> None:
    ours, plain = pair
    for prompt in ("hay and grass " * 5, "the alpaca eats", "你好 🦙 " * 12):
        assert said(ours, [request(prompt, **inputs)]) == said(plain, [request(prompt, **inputs)])
    found, steps = ours.stats(), plain.stats().steps
    assert (plain.stats().guessed, plain.stats().right) == (0, 0)
    if inputs.get("max_tokens", 60) > 2:
        assert 0 < found.right <= found.guessed and found.steps < steps, "or nothing was looked at"
    if inputs.get("n", 1) == 1:
        assert found.steps + found.right == steps, "every right guess saves a step"


def test_every_mixture_gives_the_answers_without_guesses(pair: tuple[Engine, Engine]) -> None:
    """Guessing answers beside others, chunks of prompts, and each with its own adapter and settings."""
    ours, plain = pair
    kinds = ["none", *EVERY_KIND, "b:0.25+a:2"]
    requests = [
        request(
            prompt * (1 + number % 3), adapter=kinds[number % len(kinds)], max_tokens=10 + 7 * (number % 9),
            **({"seed": number, "temperature": 0.5} if number % 3 else {}),
        )
        for number, prompt in enumerate(["hay and grass ", "the herd ", "x ", "grass\nhay\n", "field " * 60] * 4)
    ]  # fmt: skip
    assert said(ours, requests) == said(plain, requests)
    assert ours.stats().right > 50


@pytest.mark.parametrize("inputs", [{}, DRAWN], ids=["greedy", "drawn"])
def test_a_stop_string_ends_an_answer_in_the_midst_of_right_guesses(
    pair: tuple[Engine, Engine], inputs: dict[str, Any]
) -> None:
    """An answer's own beginning is such a string: the longer it is, the later it is complete."""
    ours, plain = pair
    [[(whole, *_)]] = said(plain, [request(**inputs)])
    for length in range(1, min(250, len(whole) - 20), 3):
        asked = [request(stop_sequences=[whole[:length]], **inputs)]
        got = said(ours, asked)
        assert got == said(plain, asked)
        assert got[0][0][:2] == ("", FinishReason.STOP)
    assert ours.stats().right > ours.stats().steps / 2, "or no guess reached beyond the ends"


def test_the_next_turn_finds_what_was_right_and_nothing_else(pair: tuple[Engine, Engine]) -> None:
    prompts = ["hay and grass " * 5, "the herd and the alpaca " * 4]
    for prompt in prompts:
        reused = []
        for engine in pair:
            (first,) = answers(engine, [request(prompt, temperature=0.5, seed=1)])
            longer = [request(prompt + first.text + end) for end in (" and", " hay and grass")]
            found = [one for asked in longer for one in answers(engine, [asked])]
            reused.append([(one.text, one.usage.reused_tokens if one.usage else None) for one in found])
        assert reused[0] == reused[1]
        assert all(count for _, count in reused[0])
    assert pair[0].stats().guessed > pair[0].stats().right > 0


def test_neighbours_whose_slots_are_filled_to_the_last_token_are_left_alone(pair: tuple[Engine, Engine]) -> None:
    """Guesses at the end of a slot would be written over the beginning of the next one."""
    ours, plain = pair
    requests = []
    for number in range(6):
        prompt = f"{number}" + " hay" * (8 + number)
        (length,) = (len(plain._admission.admit(request(prompt)).prompt),)
        requests.append(request(prompt, max_tokens=BLOCK - length, min_tokens=BLOCK - length))
    assert said(ours, requests) == said(plain, requests)
    assert ours.stats().right > 0
