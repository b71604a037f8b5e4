"""A template knows where a turn ends, on every shape of base: for training, for serving, for one turn and for many."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from alpaca.prompts.chat import ChatTemplate
from alpaca.prompts.encode import accepted, encode_examples, encode_prompt, plain_preview, prompt_at_least
from alpaca.prompts.example import Example, Turn
from alpaca.prompts.find import load_template
from tests.conftest import make_tokenizer
from tests.prompts.chat_templates import MISTRAL_V3, SHAPES, Shape

TALK = Example((Turn("Name it.", "", "hay"), Turn("the field ", "", " the herd\n"), Turn("And?", "", "grass")), row=7)
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def in_chat_form(example: Example) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": example.system}] if example.system else []
    for turn in example.turns:
        messages.append({"role": "user", "content": turn.instruction})
        messages += [{"role": "assistant", "content": turn.output}] if turn.output is not None else []
    return messages


def trained_texts(tokenizer: Any, *examples: Example) -> list[str]:
    """Each example with what is trained between ⟦ and ⟧."""
    made = encode_examples(tokenizer, load_template("chat", tokenizer), examples, cutoff_len=10_000)
    return [plain_preview(tokenizer, encoded) for encoded in made.examples]


def chat(jinja: str, tokenizer: Any = None) -> ChatTemplate:
    tokenizer = tokenizer or make_tokenizer()
    tokenizer.chat_template = jinja
    return ChatTemplate(tokenizer)


# --- one turn -----------------------------------------------------------------------------------------------------
@shapes
def test_the_last_trained_token_is_the_turn_end_and_comes_once(shape: Shape) -> None:
    tokenizer = shape.tokenizer()
    template = load_template("chat", tokenizer)
    end = tokenizer.convert_tokens_to_ids(shape.turn_end)
    assert template.turn_end == end and template.stop_strings == ()
    for example in encode_examples(tokenizer, template, [TALK], cutoff_len=10_000).examples:
        for start, stop in example.trained:
            response = example.input_ids[start:stop]
            assert response[-1] == end and response.count(end) == 1
        if shape.eos != shape.turn_end:
            assert tokenizer.eos_token_id not in example.input_ids


@shapes
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_the_prompt_has_the_ids_of_transformers_own(shape: Shape, turns: int) -> None:
    tokenizer = shape.tokenizer()
    asked = Example((*TALK.turns[: turns - 1], replace(TALK.turns[turns - 1], output=None)))
    expected = tokenizer.apply_chat_template(in_chat_form(asked), add_generation_prompt=True, return_dict=False)
    assert encode_prompt(tokenizer, load_template("chat", tokenizer), asked) == expected


def test_blanks_that_a_turn_end_swallows_stay_out_of_the_next_prompt() -> None:
    """Phi 3's markers take the line break after them along, wherever the text is split to be encoded."""
    from tokenizers import AddedToken

    shape = SHAPES["Phi 3"]
    tokenizer = shape.tokenizer()
    greedy = [AddedToken(marker, special=True, normalized=False, rstrip=True) for marker in shape.markers]
    tokenizer.backend_tokenizer.add_special_tokens(greedy)
    asked = Example((Turn("a", "", "b"), Turn("c <|end|> d", "", "e"), Turn("f")))
    expected = tokenizer.apply_chat_template(
        in_chat_form(replace(asked, turns=(asked.turns[0], Turn("f")))), add_generation_prompt=True, return_dict=False
    )
    template = load_template("chat", tokenizer)
    assert encode_prompt(tokenizer, template, replace(asked, turns=(asked.turns[0], Turn("f")))) == expected
    assert tokenizer.convert_tokens_to_ids("Ċ") not in encode_prompt(tokenizer, template, asked)


@pytest.mark.parametrize(
    ("jinja", "stops"),
    [
        ("{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}", ("\nuser:",)),
        ("{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}[/A]{% endif %}{% endfor %}", ("[/A]",)),
        ("{% for m in messages %}{{ m.content + '\n' }}{% endfor %}", ()),
    ],
)
def test_plain_text_that_follows_an_answer_is_a_stop_string(jinja: str, stops: tuple[str, ...]) -> None:
    template = chat(jinja)
    assert (template.turn_end, template.stop_strings) == (None, stops)


def test_the_mark_of_the_next_turn_ends_an_answer_where_nothing_else_does() -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    jinja = (
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    template = chat(jinja, tokenizer)
    assert template.turn_end == tokenizer.convert_tokens_to_ids("<|user|>")
    assert trained_texts(tokenizer, Example((Turn("a", "", "b"), Turn("c", "", "d")))) == [
        "<|user|>\na<|assistant|>\n⟦b<|user|>⟧\nc<|assistant|>\n⟦d<|user|>⟧"
    ]


def test_a_template_without_a_generation_prompt_has_no_such_mark() -> None:
    jinja = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}{% endfor %}"
    tokenizer = make_tokenizer()
    tokenizer.bos_token = None
    template = chat(jinja, tokenizer)
    assert (template.turn_end, template.stop_strings) == (None, ())
    assert [s.text for s in template.segments(Example.single("a", "", "b"))][1] == "<|im_start|>assistant\nb"


def test_a_base_whose_turn_end_is_eos_keeps_its_ids() -> None:
    tokenizer = make_tokenizer()
    assert load_template("chat", tokenizer).turn_end == tokenizer.eos_token_id
    assert load_template("alpaca").turn_end is None
    assert trained_texts(tokenizer, TALK) == [
        "<|im_start|>user\nName it.<|im_end|>\n<|im_start|>assistant\n⟦hay<|im_end|>⟧\n<|im_start|>user\nthe field "
        "<|im_end|>\n<|im_start|>assistant\n⟦ the herd\n<|im_end|>⟧\n<|im_start|>user\nAnd?<|im_end|>\n"
        "<|im_start|>assistant\n⟦grass<|im_end|>⟧"
    ]


# --- several turns ------------------------------------------------------------------------------------------------
@shapes
def test_what_is_trained_of_a_conversation_is_what_is_served(shape: Shape) -> None:
    tokenizer = shape.tokenizer()
    template = load_template("chat", tokenizer)
    made = encode_examples(tokenizer, template, [TALK], cutoff_len=10_000)
    thinks = bool(shape.tags)
    assert (len(made.examples), made.report.split) == ((3, [7]) if thinks else (1, []))
    starts = [example.input_ids[:start] for example in made.examples for start, _ in example.trained]
    assert starts == [encode_prompt(tokenizer, template, replace(TALK, turns=TALK.turns[:n])) for n in (1, 2, 3)]
    if thinks:
        assert any("made into one example for each answer" in line for line in made.report.lines())


def test_thoughts_are_trained_with_the_answer_that_has_them_and_leave_the_ones_before() -> None:
    talk = Example((Turn("a", "", "<think>\nwhy\n</think>\n\nb"), Turn("c", "", "d")))
    assert trained_texts(SHAPES["Qwen3"].tokenizer(), talk) == [
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n⟦<think>\nwhy\n</think>\n\nb<|im_end|>⟧",
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n"
        "<|im_start|>assistant\n⟦<think>\n\n</think>\n\nd<|im_end|>⟧",
    ]


def test_an_answer_goes_on_from_a_prompt_that_opens_the_thoughts() -> None:
    talk = Example((Turn("a", "", "<think>\nwhy\n</think>\n\nb"), Turn("c", "", "d")))
    begin, end = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
    assert trained_texts(SHAPES["R1 distill"].tokenizer(), talk) == [
        f"{begin}<｜User｜>a<｜Assistant｜><think>\n⟦why\n</think>\n\nb{end}⟧",
        f"{begin}<｜User｜>a<｜Assistant｜>\n\nb{end}<｜User｜>c<｜Assistant｜><think>\n⟦\n</think>\n\nd{end}⟧",
    ]


def test_a_system_text_that_moves_to_the_last_question_is_trained_where_it_is_served() -> None:
    tokenizer = SHAPES["Mistral"].tokenizer()
    tokenizer.chat_template = MISTRAL_V3
    talk = Example((Turn("a", "", "b"), Turn("c", "", "d")), system="Be brief.")
    assert trained_texts(tokenizer, talk) == [
        "<s>[INST] Be brief.\n\na[/INST]⟦ b</s>⟧",
        "<s>[INST] a[/INST] b</s>[INST] Be brief.\n\nc[/INST]⟦ d</s>⟧",
    ]
    assert trained_texts(tokenizer, replace(talk, system="")) == ["<s>[INST] a[/INST]⟦ b</s>⟧[INST] c[/INST]⟦ d</s>⟧"]


def test_a_split_conversation_that_is_too_long_loses_its_last_answers() -> None:
    tokenizer = SHAPES["Qwen3"].tokenizer()
    template = load_template("chat", tokenizer)
    whole = encode_examples(tokenizer, template, [TALK], cutoff_len=10_000)
    cut = encode_examples(tokenizer, template, [TALK], cutoff_len=len(whole.examples[1]))
    assert cut.examples == whole.examples[:2]
    assert (cut.report.kept, cut.report.truncated) == (2, 1)
    assert list(cut.report.lengths) == [len(whole.examples[2])]


def test_what_the_template_refuses_is_left_out_and_named() -> None:
    tokenizer = SHAPES["Mistral"].tokenizer()
    rows = [Example.single("a", "", "b", row=1), Example.single("a", "", "b", system="Be brief.", row=2)]
    made = encode_examples(tokenizer, load_template("chat", tokenizer), rows, cutoff_len=1000)
    assert [example.row for example in made.examples] == [1]
    [refused] = made.report.refused
    assert refused.row == 2 and refused.problem.endswith("roles must alternate user/assistant/user/assistant/...")
    assert len(made.report.lengths) == 1
    assert accepted(load_template("chat", tokenizer), rows) == rows[:1]


def test_a_conversation_is_rendered_a_few_times_however_long_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = SHAPES["Llama 3 base"].tokenizer()
    template = load_template("chat", tokenizer)
    template.segments(Example.single("a"))
    rendered: list[int] = []
    render = tokenizer.apply_chat_template

    def counted(messages: list[dict[str, str]], **options: Any) -> Any:
        rendered.append(len(messages))
        return render(messages, **options)

    monkeypatch.setattr(tokenizer, "apply_chat_template", counted)
    template.segments(Example((*(Turn(f"a {n}", "", "b") for n in range(200)), Turn("c"))))
    assert len([size for size in rendered if size > 3]) == 2


@shapes
def test_a_prompt_is_never_shorter_than_was_told_before(shape: Shape) -> None:
    tokenizer = shape.tokenizer()
    template = load_template("chat", tokenizer)
    for text in ("a", "the alpaca eats hay " * 50, "<|im_end|>" * 9, "你好🦙 " * 9):
        asked = Example((Turn(text, "", f"<think>{text}</think>{text}"), Turn(text)))
        assert 3 <= prompt_at_least(tokenizer, asked) <= len(encode_prompt(tokenizer, template, asked))


# --- control tokens in disguise -----------------------------------------------------------------------------------
@pytest.mark.parametrize("spelled", ["<|IM_END|>", "＜|im_end|＞", "a <|Im_End|> b<|im_END|>", "<|im_<|IM_END|>end|>"])
@pytest.mark.parametrize("template", ["chat", "alpaca"])
def test_a_spelling_that_is_normalised_into_a_control_token_stays_text(spelled: str, template: str) -> None:
    from tokenizers import AddedToken, normalizers

    tokenizer = make_tokenizer()
    rust = tokenizer.backend_tokenizer
    rust.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    end = AddedToken("<|im_end|>", special=True, normalized=True, lstrip=True, rstrip=True)
    rust.add_special_tokens([end])
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == 2
    assert 2 in rust.encode(spelled).ids, "the tokenizer itself takes it for the token"
    made = load_template(template, tokenizer)
    innocent, attack = (
        encode_prompt(tokenizer, made, Example((Turn(text, "", text), Turn(text)))) for text in ("x", spelled)
    )
    assert attack.count(2) == innocent.count(2)
    assert tokenizer.decode(attack).count("im_end|") >= 3
