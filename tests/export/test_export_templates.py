"""Templates as chat templates: other tools make the same tokens of messages as training did."""

from __future__ import annotations

from pathlib import Path

import pytest

from alpaca.errors import ExportFailed
from alpaca.export.here import prove
from alpaca.export.ollama import find_affixes, write_modelfile
from alpaca.prompts.encode import encode_prompt
from alpaca.prompts.example import Example
from alpaca.prompts.find import load_template, template_names
from alpaca.prompts.jinja import chat_template, rendered
from tests.conftest import make_tokenizer
from tests.export.conftest import of

USER = {"role": "user", "content": "What's in {input}?\n\"Hay\" \\ or 'grass'"}
CONVERSATIONS = [
    [USER],
    [{"role": "system", "content": "Be brief."}, USER],
    [USER, {"role": "assistant", "content": "Hay."}, {"role": "user", "content": "And more?"}],
    [
        {"role": "system", "content": "Be brief."}, USER, {"role": "assistant", "content": "Hay."},
        {"role": "user", "content": "羊驼?"}, {"role": "assistant", "content": "Yes."}, USER,
    ],
]  # fmt: skip


@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize("name", [name for name in template_names() if name != "auto"])
def test_messages_give_the_tokens_of_training(name: str, add_bos: bool) -> None:
    tokenizer = make_tokenizer(add_bos=add_bos)
    if name == "chat" and add_bos:
        tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    template = load_template(name, tokenizer)
    jinja = chat_template(template, begins_with_bos=add_bos)
    for messages in CONVERSATIONS:
        expected = encode_prompt(tokenizer, template, Example.from_messages(messages))
        assert rendered(tokenizer, jinja, messages) == expected


def test_a_chat_template_that_gives_other_tokens_is_not_exported(tiny_base: Path, adapters: Path) -> None:
    """As with a template that lost its last line break on the way."""
    from dataclasses import replace

    model = of(tiny_base, adapters / "a")
    broken = replace(model, jinja=model.jinja.replace("assistant\\n", "assistant").replace("assistant\n", "assistant"))
    assert broken.jinja != model.jinja
    with pytest.raises(ExportFailed, match="gives other tokens than here"):
        prove(broken, "merged", {"model": "."}, "fp32", lambda line: None)


DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize("jinja", [None, DEFAULT_SYSTEM])
@pytest.mark.parametrize("name", [name for name in template_names() if name != "auto"])
def test_ollamas_template_is_the_same_text(name: str, jinja: str | None) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = jinja or tokenizer.chat_template
    written = chat_template(load_template(name, tokenizer), begins_with_bos=False)

    def render(messages: list[dict[str, str]]) -> str:
        return str(
            tokenizer.apply_chat_template(messages, chat_template=written, tokenize=False, add_generation_prompt=True)
        )

    affixes = find_affixes(render)
    assert affixes is not None
    assert affixes.default == ("Be kind." if jinja and name == "chat" else "")
    for messages in CONVERSATIONS:
        assert affixes.filled(messages) == render(messages)
        system = [{"role": "system", "content": affixes.default}] if affixes.default else []
        full = messages if messages[0]["role"] == "system" else [*system, *messages]
        assert go_template(affixes.go(), full) == render(messages)


def go_template(text: str, messages: list[dict[str, str]]) -> str:
    """Run what `Affixes.go` writes of Go's text/template: strings, if/else on the role, range, with trimmed blanks."""
    import json
    import re

    tokens = re.findall(r"\{\{-? ?(.*?) ?-?\}\}", text)
    assert "".join(f"{{{{- {token} }}}}" for token in tokens) == text, "there is text outside of actions"

    def run(place: int, scope: dict[str, str] | None, active: bool) -> tuple[str, int]:
        out, taken = "", False
        while place < len(tokens):
            token = tokens[place]
            if token == "end" or token.startswith("else"):
                return out, place
            if token.startswith("range"):
                inner = ""
                end = place
                for message in messages:
                    said, end = run(place + 1, message, active)
                    inner += said
                out, place = out + inner, end
            elif token.startswith("if"):
                taken = False
                while tokens[place] != "end":
                    wanted = re.search(r'eq (\.Role|\(index \.Messages 0\)\.Role) "(\w+)"', tokens[place])
                    assert wanted
                    role = (scope or {}).get("role") if wanted[1] == ".Role" else messages[0]["role"]
                    holds = not taken and role == wanted[2]
                    said, place = run(place + 1, scope, holds)
                    out += said if holds else ""
                    taken = taken or holds
            elif token == ".Content":
                out += scope["content"] if scope and active else ""
            else:
                out += json.loads(token) if active else ""
            place += 1
        return out, place

    return run(0, None, True)[0]


def test_a_modelfile_names_what_ends_an_answer(tiny_base: Path, adapters: Path, tmp_path: Path) -> None:
    model = of(tiny_base, adapters / "carded")
    told = write_modelfile(model, tmp_path, "x.gguf", [[USER]])
    text = (tmp_path / "Modelfile").read_text(encoding="utf-8")
    assert "same text" in told
    assert text.startswith('FROM ./x.gguf\nTEMPLATE """')
    assert 'PARAMETER stop "<|im_end|>"' in text and 'PARAMETER stop "\\n### Instruction:"' in text
    assert "PARAMETER num_ctx 1024" in text


def test_a_template_that_ollama_has_no_words_for_is_said(tiny_base: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    model = of(tiny_base)
    counting = replace(model, jinja="{% for m in messages %}{{ loop.index }} {{ m['content'] | upper }}{% endfor %}")
    assert "guess" in write_modelfile(counting, tmp_path, "x.gguf", [[USER]])
    assert "TEMPLATE" not in (tmp_path / "Modelfile").read_text(encoding="utf-8")
