"""From rows to answers on every shape of base: trained on conversations, served for two turns, stopped in time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alpaca.errors import BadMessages, PromptTooLong
from alpaca.serving.engine import Engine
from alpaca.serving.inputs import request_from_inputs
from alpaca.serving.limits import EngineLimits
from alpaca.serving.loading import load_base, open_engine
from alpaca.serving.stream import FinishReason
from tests.prompts.chat_templates import SHAPES, TOOL_SHAPES, Shape
from tests.training.runs import settings, train, write_rows

ROLES = ("user", "assistant")


def open_quietly(base: Path, adapter: Path | None = None) -> Engine:
    loaded = load_base(str(base), "fp32", say=lambda line: None)
    return open_engine(loaded, adapter, limits=EngineLimits(context=256), say=lambda line: None)


def answer(engine: Engine, **inputs: Any) -> tuple[str, FinishReason | None]:
    chunks = list(engine.submit(request_from_inputs(**{"max_tokens": 12, "temperature": 0.0, **inputs})))
    return "".join(chunk.text for chunk in chunks), chunks[-1].finish


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_an_adapter_trained_on_conversations_answers_each_turn_and_stops(shape: Shape, tmp_path: Path) -> None:
    base = shape.make_base(tmp_path / "base")
    talks = [[("Name it.", "hay"), ("And then?", "hay")], [("Name it.", "hay")]] * 8
    rows = [
        {"messages": [{"role": role, "content": text} for pair in talk for role, text in zip(ROLES, pair, strict=True)]}
        for talk in talks
    ]
    said = train(
        settings(
            base, write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "lora",
            num_epochs=4, learning_rate=2e-2, val_set_size=0, lora_r=8, lora_alpha=16, eval_steps=50,
        )
    )  # fmt: skip
    assert any("one example for each answer" in line for line in said) == bool(shape.tags)
    engine = open_quietly(base, tmp_path / "lora")
    try:
        first = answer(engine, prompt="Name it.")
        messages = [{"role": "user", "content": "Name it."}, {"role": "assistant", "content": first[0]}]
        second = answer(engine, messages=[*messages, {"role": "user", "content": "And then?"}])
    finally:
        engine.close()
    for text, finish in (first, second):
        assert (text.rpartition("</think>")[2].strip(), finish) == ("hay", FinishReason.STOP)


@pytest.mark.parametrize("name", ["Qwen2.5 base", "Llama 3 base", "Phi 3"])
def test_a_base_stops_at_the_turn_end_of_its_template(name: str, tmp_path: Path) -> None:
    shape = SHAPES[name]
    engine = open_quietly(shape.make_scripted_base(tmp_path / "base", "Ċ", "a", "Ġ", "b", shape.turn_end, "c"))
    try:
        assert answer(engine, prompt="Say it.") == ("a b", FinishReason.STOP)
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("stops", "text"),
    [(["<|call|>"], "a b"), (["b<|call|>c"], "a "), (["<|call|>c"], "a b"), (["<|call|>d"], "a bcdx")],
)
def test_a_stop_sequence_may_hold_special_tokens(stops: list[str], text: str, tmp_path: Path) -> None:
    chatml = SHAPES["Qwen2.5 base"]
    shape = Shape("Qwen2", chatml.jinja, chatml.eos, chatml.turn_end, (*chatml.markers, "<|call|>"))
    chain = ("Ċ", "a", "Ġ", "b", "<|call|>", "c", "d", "x", shape.turn_end)
    engine = open_quietly(shape.make_scripted_base(tmp_path / "base", *chain))
    try:
        assert answer(engine, prompt="Say it.", stop_sequences=json.dumps(stops)) == (text, FinishReason.STOP)
    finally:
        engine.close()


def test_a_conversation_that_cannot_fit_is_refused_by_its_size(tmp_path: Path) -> None:
    engine = open_quietly(SHAPES["Qwen3"].make_base(tmp_path / "base"))
    talk = [{"role": role, "content": "hay " * 99} for _ in range(99) for role in ROLES]
    try:
        with pytest.raises(PromptTooLong, match=r"has at least .* tokens, and the context holds 256"):
            answer(engine, messages=[*talk, {"role": "user", "content": "And?"}])
    finally:
        engine.close()


# --- tools --------------------------------------------------------------------------------------------------------
QUESTION = {"role": "user", "content": "Name it."}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c1", "function": {"name": "look", "arguments": "{}"}}],
}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "hay"}


def test_an_adapter_trained_on_calls_makes_them_and_answers_their_results(tmp_path: Path) -> None:
    base = TOOL_SHAPES["Qwen2.5"].make_base(tmp_path / "base")
    rows = [{"messages": [QUESTION, CALL, RESULT, {"role": "assistant", "content": "hay"}]}] * 16
    train(
        settings(
            base, write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "lora",
            num_epochs=6, learning_rate=2e-2, val_set_size=0, lora_r=8, lora_alpha=16, eval_steps=50,
        )
    )  # fmt: skip
    engine = open_quietly(base, tmp_path / "lora")
    try:
        called = answer(engine, messages=[QUESTION], max_tokens=80)
        assert called == ('<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>', FinishReason.STOP)
        assert answer(engine, messages=[QUESTION, CALL, RESULT]) == ("hay", FinishReason.STOP)
    finally:
        engine.close()


def test_tools_that_the_template_would_lose_are_refused(tmp_path: Path) -> None:
    engine = open_quietly(SHAPES["Qwen2.5 base"].make_base(tmp_path / "base"))
    try:
        with pytest.raises(BadMessages, match="leaves out the call of the tool 'look'"):
            answer(engine, messages=[QUESTION, CALL, RESULT])
        with pytest.raises(BadMessages, match="the template 'alpaca' can't write tools"):
            answer(engine, messages=[QUESTION, CALL, RESULT], prompt_template="alpaca")
    finally:
        engine.close()
