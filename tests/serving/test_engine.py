"""The engine answers as transformers' generate() does, one request never harms another, and cancelled work ends."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from alpaca.base import load_model, load_tokenizer
from alpaca.errors import (
    BadMessages,
    BadTemplate,
    EngineStopped,
    GenerationFailed,
    PromptTooLong,
    TemplateNotFound,
    WrongBase,
)
from alpaca.serving.engine import GenerateEngine, end_ids
from alpaca.serving.inputs import request_from_inputs
from alpaca.serving.loading import LoadedBase, load_base, open_engine
from alpaca.serving.stream import Chunk, FinishReason, Stream
from tests.conftest import make_base
from tests.serving.peft_adapters import make_adapter

PROMPTS = ["hay", "Tell me about the alpaca.", "你好 🦙 " * 20, "a\n\n### Response:\nb"]
Open = Callable[..., GenerateEngine]


@pytest.fixture(scope="module")
def adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tiny_base, tmp_path_factory.mktemp("adapters") / "a", template="alpaca")


@pytest.fixture
def loaded(tiny_base: Path) -> LoadedBase:
    return load_base(str(tiny_base), "fp32", say=lambda line: None)


@pytest.fixture
def opened(loaded: LoadedBase) -> Iterator[Open]:
    """Opens engines on the tiny base and closes them."""
    engines: list[GenerateEngine] = []

    def open_one(adapter: Path | None = None) -> GenerateEngine:
        engines.append(open_engine(loaded, adapter, say=lambda line: None))
        return engines[-1]

    yield open_one
    for engine in engines:
        engine.close()


def ask(engine: GenerateEngine, prompt: str = "hay", **inputs: Any) -> list[Chunk]:
    return list(engine.submit(request_from_inputs(prompt=prompt, **{"max_tokens": 24, "temperature": 0.0, **inputs})))


def text(chunks: list[Chunk], index: int = 0) -> str:
    return "".join(chunk.text for chunk in chunks if chunk.index == index)


def oracle(model: Any, tokenizer: Any, prompt: str, **options: Any) -> str:
    """What generate() answers to a chat prompt."""
    messages = [{"role": "user", "content": prompt}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    answer = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=3, **{"max_new_tokens": 24, **options}
    )
    return tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True)


# --- answers ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.3}], ids=["plain", "repetition penalty"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_answers_are_those_of_generate(
    tiny_base: Path, opened: Open, prompt: str, options: dict[str, float]
) -> None:
    model, tokenizer = load_model(tiny_base, "fp32"), load_tokenizer(tiny_base)
    assert text(ask(opened(), prompt, **options)) == oracle(model, tokenizer, prompt, **options)


def test_greedy_answers_with_an_adapter_are_those_of_peft(tiny_base: Path, adapter: Path, opened: Open) -> None:
    from peft import PeftModel

    engine, tokenizer = opened(adapter), load_tokenizer(tiny_base)
    model = load_model(tiny_base, "fp32")
    base = [oracle(model, tokenizer, prompt) for prompt in PROMPTS]
    model = PeftModel.from_pretrained(model, str(adapter))
    for prompt, alone in zip(PROMPTS, base, strict=True):
        expected = oracle(model, tokenizer, prompt)
        assert expected != alone
        assert text(ask(engine, prompt, prompt_template="chat")) == expected
        assert text(ask(engine, prompt, prompt_template="chat", adapter_scale=0.0)) == alone
        assert text(ask(engine, prompt, prompt_template="chat", adapter_scale=0.5)) not in (expected, alone)
        assert text(ask(engine, prompt, prompt_template="chat")) == expected


@pytest.mark.parametrize("lora", [{"use_rslora": True}, {"use_dora": True}], ids=["rslora", "dora"])
def test_scale_zero_is_the_base_for_every_kind_of_adapter(
    tiny_base: Path, tmp_path: Path, opened: Open, lora: dict[str, bool]
) -> None:
    from peft import PeftModel

    folder = make_adapter(tiny_base, tmp_path / "other", **lora)
    engine, tokenizer, model = opened(folder), load_tokenizer(tiny_base), load_model(tiny_base, "fp32")
    assert text(ask(engine, adapter_scale=0.0)) == oracle(model, tokenizer, "hay")
    assert text(ask(engine)) == oracle(PeftModel.from_pretrained(model, str(folder)), tokenizer, "hay")


def test_a_closed_engine_leaves_the_base_as_it_was(loaded: LoadedBase, adapter: Path) -> None:
    answers, settings = [], loaded.model.generation_config
    for folder in (None, adapter, None, adapter):
        engine = open_engine(loaded, folder, say=lambda line: None)
        answers.append(text(ask(engine, prompt_template="chat")))
        engine.close()
    assert answers[0] == answers[2] != answers[1] == answers[3]
    assert loaded.model.generation_config is settings
    assert not any("lora" in name for name, _ in loaded.model.named_parameters())


def test_the_adapters_template_is_used(adapter: Path, opened: Open) -> None:
    engine = opened(adapter)
    assert text(ask(engine)) == text(ask(engine, prompt_template="alpaca"))
    assert ask(engine)[-1].usage != ask(engine, prompt_template="chat")[-1].usage


def test_an_adapter_of_another_base_is_refused(tmp_path: Path, adapter: Path) -> None:
    other = load_base(str(make_base(tmp_path / "other", seed=9)), "fp32", say=lambda line: None)
    with pytest.raises(WrongBase, match="fingerprint"):
        open_engine(other, adapter, say=lambda line: None)


def test_settings_of_the_base_do_not_leak_into_requests(tiny_base: Path, loaded: LoadedBase) -> None:
    loaded.model.generation_config.update(temperature=0.1, do_sample=True, repetition_penalty=1.8, max_length=30)
    engine = open_engine(loaded, say=lambda line: None)
    expected = oracle(load_model(tiny_base, "fp32"), loaded.tokenizer, "hay")
    assert text(ask(engine)) == expected
    engine.close()


# --- how it is drawn ----------------------------------------------------------------------------------------------
def test_a_seed_gives_the_same_answer_and_zero_is_a_seed(opened: Open) -> None:
    engine = opened()
    drawn = {"temperature": 1.0, "top_p": 1.0}
    answers = {}
    for seed in (0, 1, 2):
        torch.manual_seed(seed + 99)
        answers[seed] = text(ask(engine, **drawn, seed=seed))
        torch.rand(7)
        assert text(ask(engine, **drawn, seed=seed)) == answers[seed]
    assert len(set(answers.values())) == 3
    first, second = (ask(engine, **drawn) for _ in range(2))
    assert text(first) != text(second)
    assert text(ask(engine, **drawn, seed=first[-1].usage.seed)) == text(first)


def test_the_processes_own_random_numbers_are_left_alone(opened: Open) -> None:
    engine = opened()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    ask(engine, temperature=1.0)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}, {"temperature": 1e-9}], ids=str)
def test_drawing_from_one_token_is_greedy(opened: Open, narrow: dict[str, float]) -> None:
    engine = opened()
    assert text(ask(engine, **{"temperature": 1.0, "seed": 3, **narrow})) == text(ask(engine))


def test_draws_follow_the_distribution_of_transformers() -> None:
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    from alpaca.data.example import Example
    from alpaca.serving.request import GenerationRequest
    from alpaca.serving.sampling import processors

    request = GenerationRequest(Example.single("a"), temperature=0.8, top_k=6, top_p=0.9, min_p=0.05)
    scores = torch.randn(1, 12, generator=torch.Generator().manual_seed(1)) * 2
    ids = torch.zeros(1, 1, dtype=torch.long)
    warped = scores
    for warper in (TemperatureLogitsWarper(0.8), TopKLogitsWarper(6), TopPLogitsWarper(0.9), MinPLogitsWarper(0.05)):
        warped = warper(ids, warped)
    chain = processors(request, prompt_length=1, eos_ids=[0], seed=4, device=torch.device("cpu"))
    draws = torch.tensor([int(chain(ids, scores).argmax()) for _ in range(4000)])
    seen = torch.bincount(draws, minlength=12) / len(draws)
    assert torch.allclose(seen, torch.softmax(warped, -1)[0], atol=0.03)


def test_several_answers_differ_and_the_first_is_the_one_alone(opened: Open) -> None:
    engine = opened()
    chunks = ask(engine, n=3, temperature=1.0, seed=7)
    assert [chunk.index for chunk in chunks if chunk.finish] == [0, 1, 2]
    assert len({text(chunks, index) for index in range(3)}) == 3
    assert text(chunks) == text(ask(engine, temperature=1.0, seed=7))


# --- how it ends --------------------------------------------------------------------------------------------------
def test_length_is_an_ending_like_any_other(opened: Open) -> None:
    last = ask(opened(), max_tokens=5)[-1]
    assert (last.finish, last.usage.output_tokens) == (FinishReason.LENGTH, 5)
    assert 0 < last.usage.first_token <= last.usage.total


def test_the_model_may_not_end_before_min_tokens(loaded: LoadedBase) -> None:
    prompt = loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": "hay"}], add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    likeliest = int(loaded.model(prompt).logits[0, -1].argmax())
    loaded.model.generation_config.eos_token_id = [2, likeliest]
    engine = open_engine(loaded, say=lambda line: None)
    at_once = ask(engine)
    assert (text(at_once), at_once[-1].finish, at_once[-1].usage.output_tokens) == ("", FinishReason.STOP, 0)
    assert ask(engine, min_tokens=6)[-1].usage.output_tokens >= 6
    engine.close()


def test_all_the_ends_a_base_names_are_known(loaded: LoadedBase) -> None:
    loaded.model.generation_config.eos_token_id = [5, 7]
    assert end_ids(loaded.model, loaded.tokenizer) == (2, 5, 7)


def test_an_answer_ends_before_a_stop_sequence(opened: Open) -> None:
    engine = opened()
    whole = text(ask(engine, temperature=1.0, seed=2, max_tokens=60))
    stop = whole[len(whole) // 2 :][:3]
    chunks = ask(engine, temperature=1.0, seed=2, max_tokens=60, stop_sequences=f'["never", {json.dumps(stop)}]')
    assert text(chunks) == whole[: whole.index(stop)]
    assert chunks[-1].finish is FinishReason.STOP


def test_a_prompt_over_the_context_is_refused_with_both_numbers(opened: Open) -> None:
    engine = opened()
    with pytest.raises(PromptTooLong, match=r"E1002.* 3,\d{3} tokens.* 1,024") as caught:
        ask(engine, "你好" * 500)
    assert engine.stats().submitted == 0, caught.value


def test_an_answer_ends_with_the_context(opened: Open) -> None:
    engine = opened()
    prompt = "你" * 330
    last = ask(engine, prompt, max_tokens=900, min_tokens=900)[-1]
    assert last.usage.input_tokens + last.usage.output_tokens == 1024
    assert last.finish is FinishReason.LENGTH


def test_total_tokens_counts_the_prompt(opened: Open) -> None:
    engine = opened()
    prompt = ask(engine, max_tokens=1)[-1].usage.input_tokens
    request = {"total_tokens": prompt + 4, "max_tokens": 512}
    assert ask(engine, **request)[-1].usage.output_tokens == 4
    with pytest.raises(PromptTooLong, match=f"{prompt} tokens.*total_tokens allows {prompt}"):
        ask(engine, **{**request, "total_tokens": prompt})


# --- templates ----------------------------------------------------------------------------------------------------
def test_a_template_given_as_text_is_filled_literally(loaded: LoadedBase, opened: Open) -> None:
    engine = opened()
    filled = "<|im_start|>user\n{x} {0} {system_prompt}<|im_end|>"
    template = "S:{system_prompt}|<|im_start|>user\n{prompt}<|im_end|>"
    chunks = ask(engine, "{x} {0} {system_prompt}", prompt_template=template, system_prompt="be {prompt}")
    ids = loaded.tokenizer.encode(f"S:be {{prompt}}|{filled}", add_special_tokens=False)
    assert chunks[-1].usage.input_tokens == len(ids)


def test_a_clients_special_tokens_stay_text(loaded: LoadedBase, opened: Open) -> None:
    plain = ask(opened(), "<|im_end|>", prompt_template="{prompt}")[-1].usage.input_tokens
    assert plain > len(loaded.tokenizer.encode("<|im_end|>", add_special_tokens=False)) == 1


@pytest.mark.parametrize(
    ("name", "error"),
    [("none", TemplateNotFound), ("/etc/passwd", TemplateNotFound), ("{instruction}", BadTemplate)],
)
def test_a_template_that_is_none_is_refused(opened: Open, name: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        ask(opened(), prompt_template=name)


def test_a_path_is_never_a_template(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(TemplateNotFound):
        ask(opened(), prompt_template=str(tmp_path / "t.json"))


def test_a_conversation_needs_a_template_for_turns(opened: Open) -> None:
    messages = [{"role": r, "content": "hay"} for r in ("user", "assistant", "user")]
    with pytest.raises(BadMessages, match="2 turns"):
        ask(opened(), "", messages=messages, prompt_template="Q: {prompt}\nA:")
    assert ask(opened(), "", messages=messages)[-1].finish


# --- streams, cancelling, failing ---------------------------------------------------------------------------------
def long_request(engine: GenerateEngine) -> Stream:
    return engine.submit(request_from_inputs(prompt="hay", max_tokens=900, min_tokens=900, temperature=1.0, seed=1))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_closing_the_stream_ends_the_generation(opened: Open) -> None:
    engine = opened()
    stream = long_request(engine)
    next(stream)
    stream.close()
    stream.close()
    wait_for(lambda: engine.stats().running == 0)
    assert engine.stats().finished == {FinishReason.CANCELLED: 1}
    assert list(stream) == []
    assert ask(engine)[-1].finish


def test_a_request_cancelled_before_its_turn_costs_nothing(opened: Open) -> None:
    engine = opened()
    first, second = long_request(engine), long_request(engine)
    second.close()
    next(first)
    first.close()
    assert ask(engine)[-1].finish
    assert engine.stats().finished[FinishReason.CANCELLED] == 2


def test_every_answer_has_one_terminal_chunk_and_it_is_the_last(opened: Open) -> None:
    chunks = ask(opened(), n=2, temperature=1.0)
    for index in (0, 1):
        mine = [chunk for chunk in chunks if chunk.index == index]
        assert [chunk.finish is not None for chunk in mine] == [False] * (len(mine) - 1) + [True]
        assert [chunk.usage is not None for chunk in mine] == [chunk.finish is not None for chunk in mine]


def test_asyncio_reads_the_same_chunks(opened: Open) -> None:
    engine = opened()
    request = request_from_inputs(prompt="hay", max_tokens=24, temperature=0.0)

    async def read() -> str:
        return "".join([chunk.text async for chunk in engine.submit(request)])

    async def read_both() -> list[str]:
        return list(await asyncio.gather(read(), read()))

    assert asyncio.run(read_both()) == [text(ask(engine))] * 2


def test_asyncio_cancels_by_closing(opened: Open) -> None:
    engine = opened()

    async def read_one() -> None:
        stream = long_request(engine)
        async for _ in stream:
            break
        await stream.aclose()

    asyncio.run(read_one())
    wait_for(lambda: engine.stats().running == 0)
    assert engine.stats().finished == {FinishReason.CANCELLED: 1}


def test_many_threads_get_their_own_answers(opened: Open) -> None:
    engine = opened()
    alone = [text(ask(engine, prompt)) for prompt in PROMPTS]
    got: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda n=n: got.update({n: text(ask(engine, PROMPTS[n]))})) for n in range(len(PROMPTS))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[n] for n in range(len(PROMPTS))] == alone


@pytest.mark.parametrize("trouble", ["CUDA out of memory. Tried to allocate 2 GiB", "something else"])
def test_a_request_that_fails_harms_no_other(loaded: LoadedBase, trouble: str, capfd: Any) -> None:
    engine = open_engine(loaded, say=lambda line: None)
    before = text(ask(engine))

    def fail(*args: Any) -> None:
        handle.remove()
        raise RuntimeError(trouble)

    handle = loaded.model.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(GenerationFailed, match=f"^E1101 GenerationFailed: .*{re.escape(trouble)}"):
        ask(engine)
    assert text(ask(engine)) == before
    assert engine.alive
    assert engine.stats().finished[FinishReason.FAILED] == 1
    engine.close()


def test_a_dead_engine_says_so(loaded: LoadedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda *args: None)
    engine = open_engine(loaded, say=lambda line: None)

    def die(*args: Any) -> None:
        raise SystemExit

    handle = loaded.model.model.layers[0].register_forward_pre_hook(die)
    with pytest.raises(GenerationFailed):
        ask(engine)
    wait_for(lambda: not engine.alive)
    with pytest.raises(EngineStopped):
        ask(engine)
    handle.remove()
    engine.close()


def test_closing_the_engine_ends_what_runs_and_refuses_what_waits(opened: Open) -> None:
    engine = opened()
    running, waiting = long_request(engine), long_request(engine)
    next(running)
    engine.close()
    with pytest.raises(EngineStopped):
        list(waiting)
    with pytest.raises(EngineStopped):
        ask(engine)
