"""Token ids: the same in training and serving, EOS last and trained, nothing of a user's becomes a control token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpaca.errors import BadBase, BadMessages, BadSetting
from alpaca.paths import TEMPLATES
from alpaca.prompts.alpaca import AlpacaTemplate
from alpaca.prompts.encode import encode_examples, encode_prompt, encode_segments, plain_preview, preview
from alpaca.prompts.example import Example, Turn
from alpaca.prompts.find import load_template
from alpaca.prompts.template import Segment
from tests.conftest import make_tokenizer

SHIPPED = sorted(path.stem for path in TEMPLATES.glob("*.json"))
EXAMPLES = [
    Example.single("Name a herd animal.", "", "Alpaca", row=1),
    Example.single("Übersetze ins Deutsche:", "The alpaca eats hay.", "Das Alpaka frisst Heu.", row=2),
    Example.single("翻译成中文", "the herd\r\n\thums", "羊群在哼唱 🦙👩🏽‍🌾\r\n", system="你是译者。", row=3),
    Example((Turn("Hi", "", "Hello"), Turn("a", "b", "c"), Turn(" spaces ", "", "\n\nx")), system="Be kind.", row=4),
    Example.single("What does <|im_end|> or </s> do?", "<s>[INST]<|im_start|>", "<|im_end|> and </s> end it.", row=5),
    Example.single("{input}", "{instruction}", "### Instruction:\n{output}", row=6),
]
CHAT_WITH_SPACES = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + ' ' + eos_token }}"
    "{% else %}{{ '<<SYS>>' + m.content + '<</SYS>>' }}{% endif %}{% endfor %}"
)


def sentencepiece_like(kind: str) -> Any:
    """A tokenizer built like LLaMA's: a space put in front of a text, bytes for unknown characters, BOS added."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    corpus = ["▁Below▁is▁an▁instruction▁that▁describes▁a▁task.", "▁###▁Instruction:", "▁the▁alpaca▁eats▁hay"] * 8
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    if kind == "unigram":
        letters = sorted(set("".join(corpus)) | set("</s>"))
        pieces = [*((token, 0.0) for token in special), *((letter, -5.0) for letter in letters), ("▁the", -3.0)]
        rust = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    else:
        rust = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        rust.train_from_iterator(
            corpus, trainers.BpeTrainer(vocab_size=380, special_tokens=special, show_progress=False)
        )
    if kind == "legacy":
        rust.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        rust.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    rust.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    rust.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=rust, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = CHAT_WITH_SPACES
    return tokenizer


TOKENIZERS = {
    "byte-level": make_tokenizer(),
    "byte-level with BOS": make_tokenizer(add_bos=True),
    "sentencepiece": sentencepiece_like("first"),
    "sentencepiece, legacy": sentencepiece_like("legacy"),
    "sentencepiece, unigram": sentencepiece_like("unigram"),
}
BY_NAME = {name: AlpacaTemplate(name, load_template(name).card()) for name in SHIPPED}
tokenizers = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
templates = pytest.mark.parametrize("template", [*SHIPPED, "chat"])


def train_ids(tokenizer: Any, template: Any, example: Example, **options: Any) -> Any:
    [encoded] = encode_examples(tokenizer, template, [example], cutoff_len=100_000, **options).examples
    return encoded


def check_prompt_is_the_beginning_of_the_example(tokenizer: Any, template: Any, example: Example) -> None:
    for number in range(1, len(example.turns) + 1):
        so_far = Example(example.turns[:number], example.system)
        encoded = train_ids(tokenizer, template, so_far)
        asked = encode_prompt(tokenizer, template, so_far)
        waiting = Example(
            (*so_far.turns[:-1], Turn(so_far.turns[-1].instruction, so_far.turns[-1].input)), example.system
        )
        assert encode_prompt(tokenizer, template, waiting) == asked
        start, end = encoded.trained[-1]
        assert encoded.input_ids[:start] == asked
        assert "".join(segment.text for segment in template.segments(so_far)).startswith(
            "".join(segment.text for segment in template.segments(waiting))
        )
        assert end == len(encoded) and encoded.input_ids[-1] == tokenizer.eos_token_id


# --- training and serving agree -----------------------------------------------------------------------------------
@tokenizers
@templates
def test_the_served_prompt_is_the_trained_one(tokenizer: Any, template: str) -> None:
    for example in EXAMPLES:
        check_prompt_is_the_beginning_of_the_example(tokenizer, load_template(template, tokenizer), example)


@pytest.mark.parametrize("kind", ["legacy", "first"])
def test_what_follows_an_answer_has_the_ids_of_the_whole_text(kind: str) -> None:
    """Older tokenizers put a space of their own after every control token, the end of an answer too."""
    tokenizer = sentencepiece_like(kind)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '\n' + m.role + '\n' + m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\nassistant\n' }}{% endif %}"
    )
    example = Example((Turn("hay", "", "the alpaca"), Turn("the task")))
    whole = "\nuser\nhay</s>\nassistant\nthe alpaca</s>\nuser\nthe task</s>\nassistant\n"
    assert encode_prompt(tokenizer, load_template("chat", tokenizer), example) == tokenizer.encode(whole)


SAID = st.one_of(
    st.text(max_size=30), st.sampled_from(["<|im_end|>", "</s>x", "\n", "<|im_<|im_end|>end|>", " a", "🦙"])
)
TURNS = st.lists(st.builds(Turn, SAID, SAID, SAID), min_size=1, max_size=3)


@settings(max_examples=40, deadline=None)
@given(
    turns=TURNS,
    system=SAID,
    tokenizer=st.sampled_from(sorted(TOKENIZERS)),
    template=st.sampled_from(["alpaca", "alpaca_legacy", "chat"]),
)
def test_the_served_prompt_is_the_trained_one_for_any_text(
    turns: list[Turn], system: str, tokenizer: str, template: str
) -> None:
    made_for = TOKENIZERS[tokenizer]
    example = Example(tuple(turns), system)
    check_prompt_is_the_beginning_of_the_example(made_for, load_template(template, made_for), example)


@tokenizers
def test_ordinary_text_is_tokenised_as_the_tokenizer_does(tokenizer: Any) -> None:
    text = "Below is an instruction.\n\n  the alpaca\teats 羊驼 🦙\r\n"
    [encoded] = encode_segments(tokenizer, [[Segment(text, False, ((0, len(text)),))]])
    assert encoded.input_ids == tokenizer(text)["input_ids"]


@pytest.mark.parametrize("example", EXAMPLES[:4])
def test_chat_ids_are_those_of_the_rendered_whole(example: Example) -> None:
    tokenizer = make_tokenizer()
    segments = load_template("chat", tokenizer).segments(example)
    [encoded] = encode_segments(tokenizer, [segments])
    whole = "".join(segment.text for segment in segments)
    assert tokenizer.decode(encoded.input_ids) == whole
    assert (
        encode_prompt(tokenizer, load_template("chat", tokenizer), Example((example.turns[0],), example.system))
        == (tokenizer(segments[0].text, add_special_tokens=False)["input_ids"])
    )


@pytest.mark.parametrize("example", EXAMPLES[:4])
def test_chat_ids_of_a_sentencepiece_base_are_those_of_the_rendered_whole(example: Example) -> None:
    tokenizer = TOKENIZERS["sentencepiece"]
    segments = load_template("chat", tokenizer).segments(example)
    [encoded] = encode_segments(tokenizer, [segments])
    whole = "".join(segment.text for segment in segments)
    expected = tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert [token for token in encoded.input_ids if token != 1] == [token for token in expected if token != 1]


@pytest.mark.real
def test_chat_ids_of_the_real_base(smollm2: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    template = load_template("auto", tokenizer)
    messages = [{"role": "user", "content": "Tell me something about alpacas."}]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert encode_prompt(tokenizer, template, Example.from_messages(messages)) == expected
    for example in EXAMPLES:
        for name in (*SHIPPED, "chat"):
            check_prompt_is_the_beginning_of_the_example(tokenizer, load_template(name, tokenizer), example)
    answered = Example.from_messages([*messages, {"role": "assistant", "content": "They hum."}])
    encoded = train_ids(tokenizer, template, answered)
    assert plain_preview(tokenizer, encoded).endswith("<|im_start|>assistant\n⟦They hum.<|im_end|>⟧")


@pytest.mark.parametrize("kind", ["sentencepiece", "sentencepiece, legacy"])
def test_a_response_goes_on_from_its_prompt_without_a_space_of_the_tokenizers_own(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    template = load_template("alpaca")
    example = Example.single("the alpaca", "", "eats hay")
    prompt, response = template.segments(example)
    assert train_ids(tokenizer, template, example).input_ids == [
        *tokenizer(prompt.text + response.text)["input_ids"],
        tokenizer.eos_token_id,
    ]


# --- BOS and EOS --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("template", ["alpaca", "chat"])
@tokenizers
def test_bos_comes_once_and_only_where_the_tokenizer_puts_it(tokenizer: Any, template: str) -> None:
    adds = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    prompt = encode_prompt(tokenizer, load_template(template, tokenizer), Example.single("a"))
    begins = prompt[0] == tokenizer.bos_token_id
    assert begins == (adds or template == "chat")  # both chat templates here write their BOS
    assert prompt[1] != tokenizer.bos_token_id


@tokenizers
@templates
def test_every_response_ends_with_one_trained_eos_and_nothing_else_is_trained(tokenizer: Any, template: str) -> None:
    made = load_template(template, tokenizer)
    for example in EXAMPLES:
        encoded = train_ids(tokenizer, made, example)
        assert len(encoded.trained) == len(example.turns)
        assert encoded.row == example.row
        assert encoded.n_trained == sum(end - start for start, end in encoded.trained)
        for (start, end), turn in zip(encoded.trained, example.turns, strict=True):
            response = encoded.input_ids[start:end]
            assert response.count(tokenizer.eos_token_id) == 1 and response[-1] == tokenizer.eos_token_id
            assert tokenizer.decode(response[:-1]).strip() == (turn.output or "").strip()


def test_an_answer_that_spells_eos_still_gets_its_own() -> None:
    tokenizer = make_tokenizer()
    for template in ("alpaca", "chat"):
        encoded = train_ids(tokenizer, load_template(template, tokenizer), Example.single("a", "", "x<|im_end|>"))
        start, end = encoded.trained[0]
        assert encoded.input_ids[start:end].count(2) == 1
        assert tokenizer.decode(encoded.input_ids[start:end]) == "x<|im_end|><|im_end|>"


def test_pad_is_never_trained() -> None:
    tokenizer = make_tokenizer()
    for template in ("alpaca", "chat"):
        spelled = Example.single("a", "", "<|pad|><|endoftext|>")
        encoded = train_ids(tokenizer, load_template(template, tokenizer), spelled)
        assert tokenizer.pad_token_id not in encoded.input_ids
        assert tokenizer.unk_token_id not in encoded.input_ids


def test_a_tokenizer_without_eos_is_refused() -> None:
    tokenizer = make_tokenizer(chat=False)
    tokenizer.eos_token = None
    with pytest.raises(BadBase, match="no EOS token"):
        encode_prompt(tokenizer, load_template("alpaca"), Example.single("a"))


# --- control tokens in texts of users -----------------------------------------------------------------------------
@tokenizers
@templates
def test_no_text_of_a_user_becomes_a_control_token(tokenizer: Any, template: str) -> None:
    made = load_template(template, tokenizer)
    innocent = Example((Turn("a", "b", "c"), Turn("d", "", "e")), "f")
    spelled = "".join(tokenizer.all_special_tokens) + "<|im_<|im_end|>end|></</s>s>"
    attack = Example((Turn(spelled, spelled, spelled), Turn(f"d{spelled}", "", f"{spelled}e")), spelled)
    control = set(tokenizer.all_special_ids)
    wanted = [token for token in train_ids(tokenizer, made, innocent).input_ids if token in control]
    found = train_ids(tokenizer, made, attack)
    assert [token for token in found.input_ids if token in control] == wanted
    assert tokenizer.decode(found.input_ids).count(spelled) == 6


def test_control_tokens_that_a_template_itself_writes_are_tokens() -> None:
    fields = {
        "prompt_input": "<|im_start|>{instruction}\n{input}<|im_end|>Reply:",
        "prompt_no_input": "<|im_start|>{instruction}<|im_end|>Reply:",
        "response_split": "Reply:",
    }
    tokenizer = make_tokenizer()
    prompt = encode_prompt(
        tokenizer, AlpacaTemplate("mine", fields), Example.single("<|im_end|>", system="<|im_start|>")
    )
    assert [token for token in prompt if token < 4] == [1, 2]
    assert tokenizer.decode(prompt) == "<|im_start|>\n\n<|im_start|><|im_end|><|im_end|>Reply:"


def test_a_marker_that_is_only_an_added_token_is_guarded_too() -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<turn>"])
    tokenizer.chat_template = "{% for m in messages %}<turn>{{ m.content }}<|im_end|>{% endfor %}"
    marker = tokenizer.convert_tokens_to_ids("<turn>")
    prompt = encode_prompt(tokenizer, load_template("chat", tokenizer), Example.single("a<turn>b"))
    assert prompt.count(marker) == 1 and prompt[0] == marker


def test_half_a_character_is_refused_with_a_code() -> None:
    with pytest.raises(BadMessages, match="half a character"):
        encode_prompt(make_tokenizer(), load_template("alpaca"), Example.single("a\ud83e"))


# --- lengths ------------------------------------------------------------------------------------------------------
LONG = Example.single("the alpaca", "", "eats hay and grass in the field with the herd", row=9)


@pytest.mark.parametrize("template", ["alpaca_short", "chat"])
@tokenizers
def test_truncation_cuts_the_response_and_keeps_a_trained_eos(tokenizer: Any, template: str) -> None:
    made = load_template(template, tokenizer)
    whole = train_ids(tokenizer, made, LONG)
    prompt = whole.trained[0][0]
    for cutoff in range(prompt + 2, len(whole)):
        encoded = encode_examples(tokenizer, made, [LONG], cutoff_len=cutoff)
        assert (encoded.report.kept, encoded.report.truncated) == (1, 1)
        [cut] = encoded.examples
        assert cut.input_ids == [*whole.input_ids[: cutoff - 1], tokenizer.eos_token_id]
        assert cut.trained == [(prompt, cutoff)]
        assert list(encoded.report.lengths) == [len(whole)]
    fits = encode_examples(tokenizer, made, [LONG], cutoff_len=len(whole))
    assert (fits.examples, fits.report.truncated) == ([whole], 0)


def test_a_prompt_that_leaves_no_room_is_dropped_with_its_row() -> None:
    tokenizer, template = make_tokenizer(), load_template("alpaca_short")
    prompt = train_ids(tokenizer, template, LONG).trained[0][0]
    for cutoff in (1, prompt - 1, prompt, prompt + 1):
        encoded = encode_examples(tokenizer, template, [LONG], cutoff_len=cutoff)
        assert encoded.examples == []
        assert (encoded.report.kept, encoded.report.dropped_too_long) == (0, [9])


def test_later_turns_fall_away_whole() -> None:
    tokenizer, template = make_tokenizer(), load_template("chat", make_tokenizer())
    turns = tuple(Turn(f"turn {number}", "", "a long answer " * 4) for number in range(3))
    lengths = [len(train_ids(tokenizer, template, Example(turns[:number]))) for number in (1, 2, 3)]
    for cutoff, kept in ((lengths[2] - 1, 2), (lengths[1], 2), (lengths[1] - 1, 1), (lengths[0], 1)):
        encoded = encode_examples(tokenizer, template, [Example(turns)], cutoff_len=cutoff)
        assert encoded.examples == [train_ids(tokenizer, template, Example(turns[:kept]))]
        assert encoded.report.truncated == 1
    [cut] = encode_examples(tokenizer, template, [Example(turns)], cutoff_len=lengths[0] - 1).examples
    assert len(cut) == lengths[0] - 1 and cut.input_ids[-1] == tokenizer.eos_token_id


def test_over_length_rows_can_be_dropped_instead() -> None:
    tokenizer, template = make_tokenizer(), load_template("alpaca_short")
    short = Example.single("a", "", "b", row=3)
    cutoff = len(train_ids(tokenizer, template, LONG)) - 1
    encoded = encode_examples(tokenizer, template, [LONG, short], cutoff_len=cutoff, over_length="drop")
    assert [example.row for example in encoded.examples] == [3]
    report = encoded.report
    assert (report.kept, report.truncated, report.dropped_too_long, report.dropped_no_label) == (1, 0, [9], [])


def test_rows_without_an_answer_are_dropped_and_counted() -> None:
    tokenizer, template = make_tokenizer(), load_template("chat", make_tokenizer())
    rows = [Example.single("a", row=1), Example((Turn("a", "", "b"), Turn("c")), row=2)]
    encoded = encode_examples(tokenizer, template, rows, cutoff_len=100)
    assert encoded.report.dropped_no_label == [1]
    assert encoded.examples == [train_ids(tokenizer, template, Example.single("a", "", "b", row=2))]


def test_training_on_inputs_labels_all_but_the_first_token() -> None:
    tokenizer, template = make_tokenizer(), load_template("alpaca")
    masked = train_ids(tokenizer, template, EXAMPLES[3])
    encoded = train_ids(tokenizer, template, EXAMPLES[3], train_on_inputs=True)
    assert encoded.input_ids == masked.input_ids
    assert encoded.trained == [(1, len(encoded))]


@pytest.mark.parametrize("options", [{"cutoff_len": 0}, {"cutoff_len": 9, "over_length": "wrap"}])
def test_settings_that_mean_nothing_are_refused(options: Any) -> None:
    with pytest.raises(BadSetting):
        encode_examples(make_tokenizer(), load_template("alpaca"), [LONG], **options)


def test_many_examples_keep_their_order_and_progress_is_told() -> None:
    tokenizer, template = make_tokenizer(), load_template("alpaca_short")
    rows = [Example.single(f"{number}", "", "x" * (number % 7 + 1), row=number) for number in range(1, 4500)]
    told: list[tuple[int, int]] = []
    encoded = encode_examples(tokenizer, template, rows, cutoff_len=64, progress=lambda *at: told.append(at))
    assert [example.row for example in encoded.examples] == [row.row for row in rows]
    assert told[-1] == (4499, 4499) and told == sorted(told) and len(told) > 1
    assert encoded.examples[4000] == train_ids(tokenizer, template, rows[4000])


def test_the_report_counts_and_names_rows() -> None:
    tokenizer, template = make_tokenizer(), load_template("alpaca_short")
    rows = [Example.single("a", "", "b" * number, row=number) for number in range(1, 101)]
    rows += [Example.single("a " * 99, "", "b", row=number) for number in range(101, 120)]
    rows.append(Example.single("a", row=120))
    report = encode_examples(tokenizer, template, rows, cutoff_len=100).report
    assert report.lengths.dtype == "int32" and len(report.lengths) == 120
    percentiles = report.percentiles((0, 50, 100))
    assert percentiles[0] == report.lengths.min() and percentiles[100] == report.lengths.max()
    lines = report.lines()
    assert lines[0] == f"100 examples kept, {report.truncated} of them truncated to cutoff_len 100"
    assert lines[2] == "19 dropped as too long: rows 101, 102, 103, 104, 105, 106, 107, 108 and 11 more"
    assert lines[3] == "1 dropped, nothing to train on: row 120"
    empty = encode_examples(tokenizer, template, [], cutoff_len=100).report
    assert empty.percentiles() == dict.fromkeys((50, 75, 90, 95, 99, 100), 0) and empty.lines()


# --- preview ------------------------------------------------------------------------------------------------------
def test_the_preview_tells_trained_from_masked() -> None:
    tokenizer = make_tokenizer()
    example = Example((Turn("Hi", "", "Hello 🦙"), Turn("Bye", "", "See you")))
    encoded = train_ids(tokenizer, load_template("chat", tokenizer), example)
    assert plain_preview(tokenizer, encoded) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Hello 🦙<|im_end|>⟧"
        "\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n⟦See you<|im_end|>⟧"
    )
    text = preview(tokenizer, encoded)
    assert text.plain == tokenizer.decode(encoded.input_ids)
    bold = [text.plain[span.start : span.end] for span in text.spans if "bold" in str(span.style)]
    assert bold == ["Hello 🦙<|im_end|>", "See you<|im_end|>"]


def test_the_preview_lets_no_row_steer_the_terminal() -> None:
    tokenizer = make_tokenizer()
    encoded = train_ids(tokenizer, load_template("alpaca_short"), Example.single("a", "", "\x1b[2Jb"))
    assert "\x1b" not in plain_preview(tokenizer, encoded) + preview(tokenizer, encoded).plain
