"""What of OpenAI's fields is honoured, passes without effect, or is refused by its name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from alpaca.gateway.asked import NUMBERS, UNHEARD, read_chat, read_completion, read_json
from alpaca.gateway.refusals import MEANINGS, Refused, of_upstream

HAY = [{"role": "user", "content": "hay"}]


def chat(**fields: Any) -> Any:
    return read_chat({"model": "m", "messages": HAY, **fields})


def test_every_setting_reaches_cog_by_its_own_name() -> None:
    given = {name: 1 for name in NUMBERS if name != "max_tokens"}
    asked = chat(**given, stop=["a,b", "\n"], user="anna", stream=True, stream_options={"include_usage": True})
    assert asked.inputs == {
        "messages": HAY, "temperature": 1, "top_p": 1, "top_k": 1, "min_p": 1, "repetition_penalty": 1,
        "presence_penalty": 1, "frequency_penalty": 1, "seed": 1, "n": 1, "max_tokens": 1, "min_tokens": 1,
        "stop_sequences": '["a,b", "\\n"]',
    }  # fmt: skip
    assert (asked.stream, asked.include_usage, asked.n) == (True, True, 1)
    assert asked.field_of("max_tokens") == "max_completion_tokens"


def test_messages_in_all_shapes_that_clients_send() -> None:
    given = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "hay?"}]},
        {"role": "assistant", "content": "Grass.", "refusal": None, "annotations": [], "tool_calls": None},
        {"role": "user", "content": "And straw?"},
    ]
    assert chat(messages=given).inputs["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is hay?"},
        {"role": "assistant", "content": "Grass."},
        {"role": "user", "content": "And straw?"},
    ]


def test_an_input_makes_an_instruction_of_the_one_question() -> None:
    asked = chat(input="Hay is dry.", messages=[{"role": "system", "content": "Be brief."}, *HAY])
    assert asked.inputs == {"input": "Hay is dry.", "prompt": "hay", "system_prompt": "Be brief."}
    with pytest.raises(Refused, match="one message from the user"):
        chat(input="x", messages=[*HAY, {"role": "assistant", "content": "a"}, *HAY])


@pytest.mark.parametrize("name", UNHEARD)
def test_what_asks_for_nothing_passes_and_the_rest_is_refused_by_name(name: str) -> None:
    for idle in (*UNHEARD[name], None):
        chat(**{name: idle})
    for value in ("x", 7, [1], {"a": 1}):
        with pytest.raises(Refused, match=name) as refused:
            chat(**{name: value})
        assert refused.value.status == 400 and refused.value.param == name


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"unheard_of": 1}, "unheard_of"),
        ({"model": ""}, "model"),
        ({"model": 5}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hay"}, "messages"),
        ({"messages": ["hay"]}, "messages[0]"),
        ({"messages": [{"content": "hay"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
            "messages[0].content[0]",
        ),
        ({"messages": [{"role": "user", "content": "hay", "name": "anna"}]}, "messages[0].name"),
        ({"messages": [{"role": "user", "content": "hay", "audio": {"id": "1"}}]}, "messages[0].audio"),
        ({"temperature": "warm"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"seed": 1.5}, "seed"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 100}, "stop"),
        ({"stop": 5}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"what": 1}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"prompt_template": 5}, "prompt_template"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(Refused) as refused:
        chat(**fields)
    assert (refused.value.status, refused.value.param) == (400, param)


def test_a_completion_takes_its_prompt_as_it_stands() -> None:
    asked = read_completion({"model": "m", "prompt": ["The alpaca"], "echo": False})
    assert asked.inputs == {"max_tokens": 16, "prompt_template": "{prompt}", "prompt": "The alpaca"}
    for prompt in (None, 5, [1, 2], ["a", "b"], []):
        with pytest.raises(Refused) as refused:
            read_completion({"model": "m", "prompt": prompt})
        assert refused.value.param == "prompt"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"5",
        b"null",
        b'{"a": NaN}',
        b'{"a": "\\ud800"}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 50_000,
    ],
)
def test_a_body_that_is_no_object_of_json_is_refused(body: bytes) -> None:
    with pytest.raises(Refused) as refused:
        read_json(body)
    assert refused.value.status == 400


@pytest.mark.parametrize("code", MEANINGS)
def test_a_servers_code_becomes_a_true_status(code: str) -> None:
    refused = of_upstream(f"Prediction failed: Generator iteration error: {code} SomeName: the reason")
    assert refused.status == MEANINGS[code].status >= 400
    assert refused.message == f"{code} SomeName: the reason{MEANINGS[code].words}"
    assert json.loads(json.dumps(refused.body))["error"]["message"] == refused.message
    assert (refused.retry_after is not None) == (refused.status == 503)


def test_an_error_without_a_code_is_the_servers_fault() -> None:
    assert of_upstream("Prediction failed: boom").status == 500
    assert of_upstream("").message


def test_every_code_that_a_prediction_may_end_with_has_a_meaning() -> None:
    """The table of docs/serving.md; what is not in MEANINGS is a fault of the server's: 500."""
    import re

    from tests.conftest import ROOT

    table = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8").partition("## Error codes")[2]
    codes = set(re.findall(r"\bE\d{4}\b", table))
    assert set(MEANINGS) <= codes
    assert codes - set(MEANINGS) == {"E4002", "E4003", "E4004", "E4005", "E4006", "E4008"}
