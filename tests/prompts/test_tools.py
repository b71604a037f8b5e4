"""Conversations with tools: what is trained, what stays text, and what a template that can't write them says."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from alpaca.errors import BadMessages, BadTemplate
from alpaca.prompts.encode import encode_examples, encode_prompt, plain_preview, prompt_at_least
from alpaca.prompts.example import Example
from alpaca.prompts.find import load_template
from alpaca.prompts.tools import read_tools
from tests.conftest import make_tokenizer
from tests.prompts.chat_templates import SHAPES, TOOL_SHAPES, Shape

SCHEMA = {
    "type": "function",
    "function": {"name": "warmth", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CONTROL = "<|im_end|><|eot_id|><｜end▁of▁sentence｜>"  # a turn end of each shape
tool_shapes = pytest.mark.parametrize("shape", TOOL_SHAPES.values(), ids=TOOL_SHAPES)


def call(city: str, call_id: str = "call00001") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": "warmth", "arguments": {"city": city}}}


def talk(city: str = "Lima", result: str = "20", *, tools: str = "", row: int = 7) -> Example:
    """A question, a call, its result, the answer; then one more question and answer."""
    said = [
        {"role": "user", "content": "How warm is Lima?"},
        {"role": "assistant", "content": None, "tool_calls": [call(city)]},
        {"role": "tool", "tool_call_id": "call00001", "content": result},
        {"role": "assistant", "content": "It is warm."},
        {"role": "user", "content": "Thanks."},
        {"role": "assistant", "content": "Welcome."},
    ]
    return replace(Example.from_messages(said, row=row), tools=tools)


def trained_texts(tokenizer: Any, *examples: Example) -> list[str]:
    """Each example with what is trained between ⟦ and ⟧."""
    made = encode_examples(tokenizer, load_template("chat", tokenizer), examples, cutoff_len=10_000)
    assert not made.report.refused
    return [plain_preview(tokenizer, encoded) for encoded in made.examples]


def refusal(tokenizer: Any, example: Example, template: str = "chat") -> str:
    made = encode_examples(tokenizer, load_template(template, tokenizer), [example], cutoff_len=10_000)
    (refused,) = made.report.refused
    assert refused.row == example.row and made.examples == []
    return refused.problem


# --- what is trained ----------------------------------------------------------------------------------------------
def test_calls_and_answers_are_trained_and_results_and_schemas_are_not() -> None:
    tokenizer = TOOL_SHAPES["Qwen2.5"].tokenizer()
    assert trained_texts(tokenizer, talk(tools=read_tools([SCHEMA]))) == [
        "<|im_start|>system\nYou are a helpful assistant.\n\n# Tools\n\n<tools>\n"
        f"{json.dumps(SCHEMA)}\n</tools><|im_end|>\n"
        "<|im_start|>user\nHow warm is Lima?<|im_end|>\n<|im_start|>assistant\n"
        '⟦<tool_call>\n{"name": "warmth", "arguments": {"city": "Lima"}}\n</tool_call><|im_end|>⟧\n'
        "<|im_start|>user\n<tool_response>\n20\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
        "⟦It is warm.<|im_end|>⟧\n<|im_start|>user\nThanks.<|im_end|>\n<|im_start|>assistant\n⟦Welcome.<|im_end|>⟧"
    ]


def test_a_template_with_words_of_its_own_for_calls_and_results() -> None:
    (text,) = trained_texts(TOOL_SHAPES["Llama 3.1"].tokenizer(), talk())
    assert '⟦{"name": "warmth", "parameters": {"city": "Lima"}}<|eot_id|>⟧' in text
    assert '<|start_header_id|>ipython<|end_header_id|>\n\n"20"<|eot_id|>' in text
    assert text.count("⟦") == 3


def test_a_template_that_wants_arguments_as_text_gets_text() -> None:
    (text,) = trained_texts(TOOL_SHAPES["DeepSeek"].tokenizer(), talk())
    assert '⟦<｜tool▁call▁begin｜>function<｜tool▁sep｜>warmth\n```json\n{"city": "Lima"}\n```' in text
    assert text.count("⟦") == 3


def test_a_tokenizer_may_have_a_template_of_its_own_for_tools() -> None:
    tokenizer = TOOL_SHAPES["Qwen2.5"].tokenizer()
    listed = talk(tools=read_tools([SCHEMA]))
    expected = trained_texts(tokenizer, listed)
    tokenizer.chat_template = {"default": SHAPES["Qwen2.5 base"].jinja, "tool_use": tokenizer.chat_template}
    assert trained_texts(tokenizer, listed) == expected
    assert "leaves out the call" in refusal(tokenizer, talk())
    (plain,) = trained_texts(tokenizer, Example.single("a", "", "b"))
    assert plain == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n⟦b<|im_end|>⟧"


def test_several_calls_of_one_answer_and_what_is_said_before_them_are_trained() -> None:
    said = [
        {"role": "user", "content": "Warmer: Lima or Cusco?"},
        {"role": "assistant", "content": "I look.", "tool_calls": [call("Lima", "a"), call("Cusco", "b")]},
        {"role": "tool", "tool_call_id": "a", "content": "20"},
        {"role": "tool", "tool_call_id": "b", "content": "12"},
        {"role": "assistant", "content": "Lima."},
    ]
    (text,) = trained_texts(TOOL_SHAPES["Qwen2.5"].tokenizer(), Example.from_messages(said))
    assert "⟦I look.\n<tool_call>\n" in text and text.count("</tool_call>") == 2 and text.count("⟦") == 2
    assert "\n<tool_response>\n20\n</tool_response>\n<tool_response>\n12\n</tool_response><|im_end|>" in text


def test_a_conversation_may_end_with_a_call() -> None:
    whole = talk()
    (text,) = trained_texts(TOOL_SHAPES["Qwen2.5"].tokenizer(), replace(whole, turns=whole.turns[:1]))
    assert text.endswith("\n</tool_call><|im_end|>⟧")


@tool_shapes
def test_the_prompt_of_each_answer_is_what_is_served(shape: Shape) -> None:
    tokenizer = shape.tokenizer()
    template = load_template("chat", tokenizer)
    (made,) = encode_examples(tokenizer, template, [talk()], cutoff_len=10_000).examples
    prompts = [made.input_ids[:start] for start, _ in made.trained]
    assert prompts == [encode_prompt(tokenizer, template, replace(talk(), turns=talk().turns[:n])) for n in (1, 2, 3)]
    for n in (1, 2, 3):
        asked = replace(talk(), turns=talk().turns[:n]).awaiting()
        assert 1 <= prompt_at_least(tokenizer, asked) <= len(prompts[n - 1])


@tool_shapes
def test_control_tokens_in_calls_results_and_schemas_stay_text(shape: Shape) -> None:
    tokenizer = shape.tokenizer()
    schema = json.loads(json.dumps(SCHEMA))
    schema["function"]["description"] = CONTROL
    tools = read_tools([schema]) if shape.jinja != TOOL_SHAPES["DeepSeek"].jinja else ""
    template = load_template("chat", tokenizer)
    innocent, attack = (
        encode_examples(tokenizer, template, [talk(text, f'{{"x": "{text}"}}', tools=tools)], cutoff_len=9999)
        for text in ("x", CONTROL)
    )
    end = tokenizer.convert_tokens_to_ids(shape.turn_end)
    assert attack.examples[0].input_ids.count(end) == innocent.examples[0].input_ids.count(end)
    assert plain_preview(tokenizer, attack.examples[0]).count(CONTROL) == (3 if tools else 2)


# --- what is refused ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["Qwen2.5 base", "Qwen3", "Llama 3 base", "Phi 3"])
def test_a_template_that_leaves_calls_out_is_found_out(name: str) -> None:
    tokenizer = SHAPES[name].tokenizer()
    assert refusal(tokenizer, talk()).startswith("the base's chat template leaves out the call of the tool 'warmth'")
    only_schemas = replace(Example.single("a", "", "b", row=3), tools=read_tools([SCHEMA]))
    assert "leaves out the schema of the tool 'warmth'" in refusal(tokenizer, only_schemas)


@pytest.mark.parametrize(
    ("jinja", "left_out"),
    [
        ("{% if m.role != 'tool' %}{{ m.content + m.tool_calls | d('') | tojson }}{% endif %}", "a tool's result"),
        ("{{ m.content }}{% for c in m.tool_calls %}{{ c.function.name }}{% endfor %}", "the arguments in the call of"),
        ("{{ m.tool_calls | tojson if m.tool_calls else m.content }}", "what the assistant says before it calls"),
    ],
)  # fmt: skip
def test_whatever_is_left_out_is_named(jinja: str, left_out: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = f"{{% for m in messages %}}<|im_start|>{jinja}<|im_end|>{{% endfor %}}"
    said = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "tool_calls": [call("Lima")]},
        {"role": "tool", "content": "b"},
        {"role": "assistant", "content": "b"},
    ]
    assert f"leaves out {left_out}" in refusal(tokenizer, Example.from_messages(said, row=3))


def test_what_the_template_says_itself_is_the_reason() -> None:
    parallel = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": [call("Lima"), call("Cusco")]},
    ]
    tokenizer = TOOL_SHAPES["Llama 3.1"].tokenizer()
    problem = refusal(tokenizer, Example.from_messages(parallel, row=3))
    assert problem == (
        "the base's chat template refuses this conversation: This model only supports single tool-calls at once!"
    )
    with pytest.raises((BadMessages, BadTemplate), match="single tool-calls"):
        encode_prompt(tokenizer, load_template("chat", tokenizer), Example.from_messages(
            [*parallel, {"role": "tool", "content": "20"}, {"role": "tool", "content": "12"}]
        ))  # fmt: skip


@pytest.mark.parametrize("example", [talk(), replace(Example.single("a", "", "b", row=7), tools=read_tools([SCHEMA]))])
def test_the_alpaca_templates_refuse_tools(example: Example) -> None:
    assert refusal(make_tokenizer(), example, "alpaca").startswith("the template 'alpaca' can't write tools")


# --- calls and schemas, as they are written -----------------------------------------------------------------------
@pytest.mark.parametrize(
    "written",
    [
        {"tool_calls": [{"id": "x", "type": "function", "function": {"name": "f", "arguments": '{"a":  "ö"}'}}]},
        {"tool_calls": [{"id": "x", "name": "f", "arguments": {"a": "ö"}}], "content": ""},
        {"tool_calls": '{"id": "x", "name": "f", "parameters": {"a": "\\u00f6"}}', "content": None},
        {"function_call": {"id": "x", "name": "f", "arguments": '{"a": "ö"}'}, "tool_calls": None},
    ],
)
def test_a_call_is_the_same_however_it_is_written(written: dict[str, Any]) -> None:
    found = Example.from_messages([{"role": "user", "content": "a"}, {"role": "assistant", **written}])
    (made,) = found.turns[0].calls
    assert (made.name, made.arguments, made.id, found.turns[0].output) == ("f", '{"a": "ö"}', "x", "")
    again = Example.from_messages(found.messages())
    assert again == found and again.key() == found.key() != replace(found, tools=read_tools([SCHEMA])).key()


def test_an_older_function_message_is_a_tool_and_a_result_takes_the_name_of_its_call() -> None:
    question, made = {"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call("Lima")]}
    older = Example.from_messages([question, made, {"role": "function", "name": "warmth", "content": "20"}])
    newer = Example.from_messages([question, made, {"role": "tool", "tool_call_id": "call00001", "content": "20"}])
    assert [example.turns[-1].results[0].name for example in (older, newer)] == ["warmth", "warmth"]
    assert older.turns[-1].output is None


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        ({"tool_calls": "soon"}, "message 2: 'tool_calls' is not JSON: line 1, column 1"),
        ({"tool_calls": [5]}, "message 2: 'tool_calls' 1 is a number (5), not an object"),
        ({"tool_calls": [{"arguments": "{}"}]}, "message 2: 'tool_calls' 1 has no 'name' (found: arguments)"),
        ({"tool_calls": [{"name": " "}]}, "message 2: 'tool_calls' 1: 'name' is blank"),
        ({"tool_calls": [{"name": "f", "id": 5}]}, "'id' is a number (5), not text"),
        ({"tool_calls": [{"name": "f", "arguments": "[1]"}]}, "'arguments' is a list, not an object"),
        ({"tool_calls": [{"name": "f", "arguments": "{"}]}, "'arguments' is not JSON: line 1, column 2"),
        ({"tool_calls": [{"name": "f", "arguments": '{"a": "\\ud83e"}'}]}, "'arguments' holds half a character"),
        ({"tool_calls": [{"name": "f", "arguments": '{"a": ' + "[" * 99 + "]" * 99 + "}"}]}, "more than 64 levels"),
        ({"tool_calls": [{"name": "f", "arguments": '{"a": ' + "[" * 99_999}]}, "is not JSON that can be read"),
        ({"tool_calls": []}, "message 2 has no 'content'"),
    ],
)
def test_a_call_that_is_none_is_named(made: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadMessages) as refused:
        Example.from_messages([{"role": "user", "content": "a"}, {"role": "assistant", **made}])
    assert problem in str(refused.value)


def test_schemas_are_the_same_however_they_are_written() -> None:
    wanted = json.dumps([SCHEMA])
    for written in ([SCHEMA], [SCHEMA["function"]], json.dumps([SCHEMA], indent=2), SCHEMA):
        assert read_tools(written) == wanted
    for none in (None, "", "[]", []):
        assert read_tools(none) == ""


@pytest.mark.parametrize(
    ("tools", "problem"),
    [
        ("soon", "is not JSON: line 1"),
        (["warmth"], "tool 1 is a text, not an object"),
        ([SCHEMA, {"description": "x"}], "tool 2 has no 'name' (found: description)"),
        ([{"name": "f", "parameters": object()}], "can't be written as JSON"),
    ],
)
def test_a_schema_that_is_none_is_named(tools: Any, problem: str) -> None:
    with pytest.raises(BadMessages) as refused:
        read_tools(tools)
    assert problem in refused.value.message
