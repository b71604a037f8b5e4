"""No id beyond the embeddings reaches a model: such tokens stay plain text, or the base is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from alpaca.base.load import load_model, load_tokenizer
from alpaca.data.yardstick import open_yardstick
from alpaca.errors import BadBase
from alpaca.prompts.encode import encode_examples, encode_prompt
from alpaca.prompts.example import Example, Turn
from alpaca.prompts.find import load_template
from alpaca.serving.inputs import request_from_inputs
from alpaca.serving.loading import LoadedBase, open_engine
from tests.base.shapes import shaped_base
from tests.conftest import make_tokenizer
from tests.training.runs import settings, train

CPU = torch.device("cpu")
SPECIAL, PLAIN = "<|tool|>", "<think>"
TEXT = f"{SPECIAL} the alpaca {PLAIN} eats hay {SPECIAL}{PLAIN}"


def larger_tokenizer(**named: str) -> Any:
    """One that knows more tokens than the base has embeddings for, as releases with added tokens do."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": [SPECIAL]} | named)
    tokenizer.add_tokens([PLAIN])
    return tokenizer


@pytest.fixture(params=["Llama", "Qwen2"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return shaped_base(tmp_path / "base", request.param, tokenizer=larger_tokenizer(), vocab_size=len(make_tokenizer()))


def test_the_spelling_of_a_token_beyond_the_embeddings_is_plain_text(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = len(make_tokenizer())
    tokenizer, smaller = load_tokenizer(base), make_tokenizer()
    assert "<think>, <|tool|> lie beyond the model's" in capsys.readouterr().out
    assert len(tokenizer) == rows
    assert tokenizer.encode(TEXT) == smaller.encode(TEXT)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert not {SPECIAL, PLAIN} & {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    kept = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "unk")}
    assert kept == {"bos": 1, "eos": 2, "pad": 3, "unk": 0}


def test_training_and_serving_give_the_model_ids_that_it_has(base: Path) -> None:
    rows = len(make_tokenizer())
    tokenizer = load_tokenizer(base)
    for name in ("chat", "alpaca"):
        template = load_template(name, tokenizer)
        example = Example((Turn(TEXT, TEXT, TEXT),), system=TEXT)
        encoded = encode_examples(tokenizer, template, [example], cutoff_len=4096).examples[0]
        assert max(encoded.input_ids) < rows
        assert max(encode_prompt(tokenizer, template, example)) < rows


def test_a_chat_template_may_write_such_a_token(base: Path) -> None:
    """It was not trained into the model, so it is text like any other."""
    tokenizer = load_tokenizer(base)
    tokenizer.chat_template = "{% for m in messages %}<|tool|>{{ m['content'] }}<|im_end|>{% endfor %}"
    example = Example((Turn("hay", "", "grass"),))
    encoded = encode_examples(tokenizer, load_template("chat", tokenizer), [example], cutoff_len=4096).examples[0]
    assert max(encoded.input_ids) < len(make_tokenizer())
    assert tokenizer.decode(encoded.input_ids) == "<|tool|>hay<|im_end|><|tool|>grass<|im_end|>"


def test_an_answer_beside_a_client_that_writes_such_tokens(base: Path) -> None:
    loaded = LoadedBase(base, load_model(base, "fp32", CPU), load_tokenizer(base))
    engine = open_engine(loaded, say=lambda line: None)
    try:
        for prompt in (TEXT, "hay", PLAIN * 20):
            chunks = list(engine.submit(request_from_inputs(prompt=prompt, max_tokens=3, temperature=0.0)))
            assert chunks[-1].finish is not None
    finally:
        engine.close()


def test_rows_with_such_tokens_are_trained_on(base: Path, tmp_path: Path) -> None:
    rows = [{"instruction": f"{TEXT} {n}", "output": f"{n} {TEXT}"} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    train(settings(base, tmp_path / "rows.jsonl", tmp_path / "adapter"))
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_the_check_of_rows_counts_with_the_same_tokenizer(base: Path) -> None:
    yardstick = open_yardstick(str(base), "auto", 512)
    assert max(yardstick.encode([Example((Turn(TEXT, "", TEXT),))]).examples[0].input_ids) < len(make_tokenizer())


def test_a_padding_token_beyond_the_embeddings_is_none(tmp_path: Path) -> None:
    """LLaMA 1's followers added [PAD] and forgot the embedding; nothing here needs padding."""
    tokenizer = larger_tokenizer(pad_token="[PAD]")
    base = shaped_base(tmp_path / "base", "Llama", tokenizer=tokenizer, vocab_size=len(make_tokenizer()))
    loaded = load_tokenizer(base)
    assert loaded.pad_token is None and loaded.eos_token_id == 2
    assert loaded.encode("[PAD]") == make_tokenizer().encode("[PAD]")


def test_an_eos_beyond_the_embeddings_is_refused(tmp_path: Path) -> None:
    tokenizer = larger_tokenizer(eos_token="<|eos|>")
    base = shaped_base(tmp_path / "base", "Llama", tokenizer=tokenizer, vocab_size=len(make_tokenizer()))
    with pytest.raises(BadBase, match=r"^E3003 .*eos_token_id \d+ lies outside the model's \d+ embeddings"):
        load_tokenizer(base)


def test_a_tokenizer_of_another_release_is_refused(tmp_path: Path) -> None:
    """Its own vocabulary is larger than the model: texts would be cut into tokens that the model never saw."""
    base = shaped_base(tmp_path / "base", "Llama", vocab_size=300)
    with pytest.raises(
        BadBase, match=r"tokens for which the model's 300 embeddings have no row, .* not of one release"
    ):
        load_tokenizer(base)


def test_more_embeddings_than_tokens_are_as_usual(tmp_path: Path) -> None:
    """Rows are rounded up for speed in many releases."""
    tokenizer = larger_tokenizer()
    base = shaped_base(tmp_path / "base", "Qwen2", tokenizer=tokenizer, vocab_size=len(tokenizer) + 50)
    assert load_tokenizer(base).encode(SPECIAL) == [tokenizer.convert_tokens_to_ids(SPECIAL)]


def test_rows_count_as_the_weights_have_them(tmp_path: Path) -> None:
    """Whatever config.json says: ids are looked up in the weights."""
    whole = shaped_base(tmp_path / "whole", "Llama", tokenizer=larger_tokenizer(), vocab_size=len(make_tokenizer()))
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"vocab_size": len(make_tokenizer()) + 2}))
    assert len(load_tokenizer(copy)) == len(make_tokenizer())
