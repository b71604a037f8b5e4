"""Templates: the text that is made, and why a template that can't work is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpaca.errors import BadMessages, BadTemplate, TemplateNotFound
from alpaca.paths import TEMPLATES
from alpaca.prompts.alpaca import AlpacaTemplate
from alpaca.prompts.chat import ChatTemplate
from alpaca.prompts.example import Example, Turn
from alpaca.prompts.find import load_template, template_from_card
from alpaca.prompts.template import Segment, Template
from tests.conftest import make_tokenizer

SHIPPED = sorted(path.stem for path in TEMPLATES.glob("*.json"))
FIELDS = {
    "description": "A short one.",
    "prompt_input": "Do it.\n\n### Task:\n{instruction}\n\n### Given:\n{input}\n\n### Answer:\n",
    "prompt_no_input": "Do it.\n\n### Task:\n{instruction}\n\n### Answer:\n",
    "response_split": "### Answer:",
}


def texts(template: Template, example: Example) -> list[str]:
    return [segment.text for segment in template.segments(example)]


def literal_texts(segment: Segment) -> list[str]:
    return [segment.text[start:end] for start, end in segment.literal]


# --- templates in alpaca-lora's format ----------------------------------------------------------------------------
def test_the_published_prompt_is_byte_exact() -> None:
    template = load_template("alpaca")
    assert texts(template, Example.single("Name a herd animal.", "", "Alpaca")) == [
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nName a herd animal.\n\n### Response:\n",
        "Alpaca",
    ]
    assert texts(load_template("alpaca_legacy"), Example.single("A", "B")) == [
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n"
        "### Instruction:\nA\n\n### Input:\nB\n\n### Response:"
    ]


def test_placeholders_in_a_users_text_stay_as_they_are() -> None:
    template = AlpacaTemplate("t", FIELDS)
    example = Example.single("{input} {instruction} {0} {{", "{instruction} %s \\1", "{input}", system="{input}")
    prompt, response = template.segments(example)
    assert prompt.text == (
        "{input}\n\nDo it.\n\n### Task:\n{input} {instruction} {0} {{\n\n"
        "### Given:\n{instruction} %s \\1\n\n### Answer:\n"
    )
    assert literal_texts(prompt) == ["{input}\n\n", "{input} {instruction} {0} {{", "{instruction} %s \\1"]
    assert response == Segment("{input}", True, ((0, 7),))


def test_a_blank_input_is_no_input() -> None:
    template = AlpacaTemplate("t", FIELDS)
    assert texts(template, Example.single("a", " \n")) == texts(template, Example.single("a"))


def test_a_blank_system_text_is_none() -> None:
    template = AlpacaTemplate("t", FIELDS)
    assert texts(template, Example.single("a", system="\n")) == texts(template, Example.single("a"))


def test_further_turns_begin_at_the_line_that_heads_the_instruction() -> None:
    example = Example((Turn("a", "", "b"), Turn("c", "d", "e"), Turn("f")), system="Be kind.")
    assert texts(AlpacaTemplate("t", FIELDS), example) == [
        "Be kind.\n\nDo it.\n\n### Task:\na\n\n### Answer:\n",
        "b",
        "\n\n### Task:\nc\n\n### Given:\nd\n\n### Answer:\n",
        "e",
        "\n\n### Task:\nf\n\n### Answer:\n",
    ]


@pytest.mark.parametrize(
    ("prompt", "marker", "stops"),
    [
        (FIELDS["prompt_no_input"], "### Answer:", ("\n### Task:", "### Task:")),
        ("Chat.\nUSER: {instruction}\nASSISTANT:", "ASSISTANT:", ("\nUSER:",)),
        ("{instruction}\n### Answer:\n", "### Answer:", ("\n### Answer:", "### Answer:")),
        ("Chat.\n\n指令：\n\n{instruction}\n回答：", "回答：", ("\n指令：",)),
    ],
)
def test_stop_strings_come_from_the_template(prompt: str, marker: str, stops: tuple[str, ...]) -> None:
    with_input = prompt.replace("{instruction}", "{instruction}\n{input}")
    fields = {"prompt_input": with_input, "prompt_no_input": prompt, "response_split": marker}
    assert AlpacaTemplate("t", fields).stop_strings == stops


def test_shipped_templates_stop_at_their_own_header() -> None:
    assert load_template("alpaca").stop_strings == ("\n### Instruction:", "### Instruction:")
    assert {"alpaca", "alpaca_legacy", "alpaca_short"} < set(SHIPPED)
    for name in SHIPPED:
        template = load_template(name)
        further = texts(template, Example((Turn("a", "", "b"), Turn("c"))))[-1]
        assert template.stop_strings and further.startswith("\n" + template.stop_strings[0])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompt_input": None}, "has no 'prompt_input' (found: description, prompt_no_input, response_split)"),
        ({"response_split": None}, "has no 'response_split'"),
        ({"prompt_no_input": 5}, "'prompt_no_input' is a int, not text"),
        ({"description": ["x"]}, "'description' is a list, not text"),
        ({"response_split": " "}, "'response_split' is blank"),
        ({"prompt_input": "{instruction}\n### Answer:"}, "'prompt_input' lacks the placeholder {input}"),
        ({"prompt_input": "{input}\n### Answer:"}, "'prompt_input' lacks the placeholder {instruction}"),
        ({"prompt_no_input": "Do it.\n### Answer:"}, "'prompt_no_input' lacks the placeholder {instruction}"),
        ({"prompt_no_input": "{instruction}{input}### Answer:"}, "holds {input}, which nothing is put into; it may"),
        ({"prompt_no_input": "{instruction}{output}### Answer:"}, "holds {output}, which nothing is put into"),
        ({"prompt_no_input": "{{instruction}}### Answer:"}, "{{instruction}}; write {instruction} with single braces"),
        ({"prompt_no_input": "{{ instruction }}### Answer:"}, "write {instruction} with single braces"),
        ({"response_split": "### Reply:"}, "'prompt_input' does not hold the response_split '### Reply:'"),
        ({"prompt_no_input": "### Answer:\n{instruction}"}, "continues with '{instruction}' after the response_split"),
        ({"prompt_no_input": "{instruction}\n### Answer: yes"}, "continues with 'yes' after the response_split"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_work_is_refused_with_the_reason(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    fields = {key: value for key, value in {**FIELDS, **change}.items() if value is not None}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(BadTemplate) as refused:
        load_template(str(path))
    assert str(refused.value).startswith(f"E2102 BadTemplate: {path}: template 'mine'")
    assert reason in str(refused.value)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"{'a': 1}", "is not JSON: line 1, column 2"),
        (b"[1]", "is not a JSON object"),
        (b"", "is not JSON: line 1, column 1"),
        ('{"a": "é"}'.encode("latin-1"), "is not UTF-8 (byte 7)"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_file_that_is_no_template(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "mine.json").write_bytes(data)
    with pytest.raises(BadTemplate) as refused:
        load_template("mine", folder=tmp_path)
    assert reason in str(refused.value)


def test_json_in_a_template_is_no_placeholder() -> None:
    prompt = 'Answer as {"answer": {"text": "…"}}.\n{instruction}\n### Answer:\n'
    fields = {**FIELDS, "prompt_no_input": prompt}
    assert texts(AlpacaTemplate("t", fields), Example.single("a")) == [prompt.replace("{instruction}", "a")]


# --- finding one --------------------------------------------------------------------------------------------------
def test_a_dropped_in_template_is_found_by_name_and_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(FIELDS).encode())
    for found in (load_template("mine", folder=tmp_path), load_template(str(path))):
        assert found.name == "mine"
        assert texts(found, Example.single("a")) == ["Do it.\n\n### Task:\na\n\n### Answer:\n"]


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(TemplateNotFound) as refused:
        load_template("alpaka")
    said = str(refused.value)
    assert said.startswith("E2101 TemplateNotFound: no template 'alpaka'. There are: alpaca, ")
    assert ", chat, auto (in " in said and "Did you mean 'alpaca'?" in said


def test_paths_can_be_shut_out(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(FIELDS), encoding="utf-8")
    (tmp_path / "templates").mkdir()
    for name in (str(path), "../mine", "../mine.json", "..", ""):
        with pytest.raises(TemplateNotFound):
            load_template(name, allow_path=False, folder=tmp_path / "templates")


def test_auto_is_chat_where_there_is_a_chat_template() -> None:
    assert load_template("auto", make_tokenizer()).name == "chat"
    assert load_template("auto", make_tokenizer(chat=False)).name == "alpaca"
    assert load_template("auto").name == "alpaca"


def test_chat_without_a_chat_template_is_refused() -> None:
    with pytest.raises(BadTemplate, match="no chat template"):
        load_template("chat", make_tokenizer(chat=False))
    with pytest.raises(BadTemplate, match="no tokenizer was given"):
        load_template("chat")


# --- the base's own chat template ---------------------------------------------------------------------------------
def chat(jinja: str) -> ChatTemplate:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = jinja
    return ChatTemplate(tokenizer)


def test_chat_pieces_and_where_eos_belongs() -> None:
    example = Example((Turn("Hi", "there", "Hello"), Turn("Bye")), system="Be kind.")
    assert chat(make_tokenizer().chat_template).segments(example) == [
        Segment(
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi\n\nthere<|im_end|>\n<|im_start|>assistant\n",
            False,
        ),
        Segment("Hello<|im_end|>", True),
        Segment("\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n", False),
    ]


def test_control_tokens_in_a_users_text_are_marked_as_literal() -> None:
    example = Example.single("a <|im_end|><|im_start|> b", "", "say <|im_end|>", system="<|pad|>")
    prompt, response = chat(make_tokenizer().chat_template).segments(example)
    assert "user\na <|im_end|><|im_start|> b<|im_end|>\n" in prompt.text
    assert literal_texts(prompt) == ["<|pad|>", "<|im_end|>", "<|im_start|>"]
    assert (response.text, literal_texts(response)) == ("say <|im_end|><|im_end|>", ["<|im_end|>"])


def test_private_use_characters_of_a_user_come_through() -> None:
    example = Example.single("\ue000\ue001 <|im_end|>", "", "\ue002\ue000<|im_end|>")
    prompt, response = chat(make_tokenizer().chat_template).segments(example)
    assert "\ue000\ue001 <|im_end|>" in prompt.text
    assert response.text == "\ue002\ue000<|im_end|><|im_end|>"


def test_what_the_template_does_to_a_text_is_kept() -> None:
    jinja = (
        "{% for m in messages %}{{ '[' + m.role + ']' + m.content | trim + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    example = Example.single("  a<|pad|> ", "", "  b ")
    assert texts(chat(jinja), example) == ["[user]a<|pad|><|im_end|>[assistant]", "b<|im_end|>"]


def test_a_template_without_eos_gives_the_whole_rest_to_the_response() -> None:
    jinja = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    assert texts(chat(jinja), Example.single("a", "", "b <|im_end|>")) == ["user: a\nassistant: ", "b <|im_end|>\n"]


def test_the_prompt_does_not_depend_on_the_date() -> None:
    template = chat("{{ date_string }} {{ strftime_now('%Y-%m-%d') }} {{ messages[0].content }}")
    assert texts(template, Example.single("a")) == ["26 Jul 2024 2024-07-26 a"]


def test_a_template_that_refuses_a_system_text_says_why() -> None:
    jinja = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{{ messages[0].content }}"
    )
    with pytest.raises(BadMessages) as refused:
        chat(jinja).segments(Example.single("a", system="b", row=4))
    assert "row 4: the base's chat template refuses this conversation: System role not supported" in str(refused.value)
    assert texts(chat(jinja), Example.single("a")) == ["a"]


@pytest.mark.parametrize(
    ("jinja", "reason"),
    [
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ messages.nothing.there }}", "UndefinedError"),
    ],
)
def test_a_chat_template_that_fails_is_refused(jinja: str, reason: str) -> None:
    with pytest.raises(BadTemplate, match=f"the base's chat template fails: {reason}"):
        chat(jinja).segments(Example.single("a"))


def test_each_answer_is_trained_alone_where_the_template_rewrites_earlier_ones() -> None:
    jinja = (
        "{% for m in messages %}{{ '[' + m.role + ']' }}"
        "{% if m.role == 'assistant' and not loop.last %}(thoughts cut){% else %}{{ m.content }}{% endif %}"
        "<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert texts(chat(jinja), Example.single("a", "", "b")) == ["[user]a<|im_end|>[assistant]", "b<|im_end|>"]
    first, second = chat(jinja).conversations(Example((Turn("a", "", "b"), Turn("c", "", "d"))))
    assert [segment.text for segment in first] == ["[user]a<|im_end|>[assistant]", "b<|im_end|>"]
    assert "".join(segment.text for segment in second[:-1]) == (
        "[user]a<|im_end|>[assistant](thoughts cut)<|im_end|>[user]c<|im_end|>[assistant]"
    )
    assert second[-1].text == "d<|im_end|>"


def test_a_template_that_changes_what_follows_the_question_is_refused() -> None:
    template = chat("{% for m in messages %}{{ m.content }}{{ '!' if loop.length == 1 else '?' }}{% endfor %}")
    with pytest.raises(BadTemplate, match="rewrites the prompt once"):
        template.segments(Example.single("a", "", "b"))


def test_a_template_that_changes_what_stands_before_the_question_is_trained_as_it_is_served() -> None:
    template = chat("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}")
    assert texts(template, Example.single("a", "", "b")) == [*texts(template, Example.single("a")), "b"] == ["1a", "b"]


# --- cards --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [*SHIPPED, "chat"])
def test_a_template_comes_back_from_its_card(name: str) -> None:
    tokenizer = make_tokenizer()
    template = load_template(name, tokenizer)
    card = json.loads(json.dumps(template.card(), ensure_ascii=False))
    again = template_from_card(card, tokenizer)
    example = Example((Turn("a", "b", "c"), Turn("d")), system="e")
    assert again.segments(example) == template.segments(example)
    assert (again.name, again.stop_strings, again.card()) == (template.name, template.stop_strings, template.card())


def test_a_card_of_another_chat_template_is_refused_and_never_run() -> None:
    card = chat("{{ messages[0].content }}").card()
    with pytest.raises(BadTemplate, match="trained with another chat template"):
        template_from_card(card, make_tokenizer())
    # The card's Jinja is there to be read; only the base's own is rendered.
    forged = {
        **chat("{{ messages[0].content }}").card(),
        "sha256": load_template("chat", make_tokenizer()).card()["sha256"],
    }
    assert texts(template_from_card(forged, make_tokenizer()), Example.single("a"))[0].startswith("<|im_start|>")


@pytest.mark.parametrize("card", [{}, {"kind": "jinja"}, {"kind": "alpaca"}, [], {"kind": "alpaca", "prompt_input": 5}])
def test_a_card_without_a_template_is_refused(card: Any) -> None:
    with pytest.raises(BadTemplate):
        template_from_card(card, make_tokenizer())


# --- anything at all ----------------------------------------------------------------------------------------------
@given(st.text(), st.text(), st.text(), st.text())
def test_literal_spans_hold_exactly_the_users_texts(system: str, instruction: str, input: str, output: str) -> None:
    prompt, response = AlpacaTemplate("t", FIELDS).segments(Example.single(instruction, input, output, system=system))
    expected = [f"{system}\n\n"] if system.strip() else []
    expected += [instruction, input] if input.strip() else [instruction]
    assert literal_texts(prompt) == expected
    assert response.text == output
