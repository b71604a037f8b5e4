"""Text comes out as decoding the whole would give it, without stop strings, special tokens or half characters."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpaca.serving.text import StopStrings, TextStream, special_ids, stop_ids
from tests.conftest import make_tokenizer

TEXT = st.text(alphabet=st.sampled_from("ab \n#:alpc你好早🦙é\u200d👩‍🔬"), max_size=40)


def byte_fallback_tokenizer() -> Any:
    """Like LLaMA's: ▁ for spaces, one put in front, and bytes for characters that are not in the vocabulary."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *"abelpc#:\n好", "al", "pa", "▁al"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges = [("a", "l"), ("p", "a"), ("▁", "al")]
    bpe = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


BYTE_LEVEL = make_tokenizer()
BYTE_FALLBACK = byte_fallback_tokenizer()
TOKENIZERS = pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK], ids=["byte-level", "byte-fallback"])


def streamed(tokenizer: Any, ids: list[int], stops: tuple[str, ...] = ()) -> str:
    stream = TextStream(tokenizer, stops)
    return "".join([stream.push(i) for i in ids] + [stream.finish()])


def whole(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def cut(text: str, stops: tuple[str, ...]) -> str:
    """What is left of `text` when it is read letter by letter until a stop string is complete."""
    for end in range(len(text) + 1):
        met = [stop for stop in stops if text[:end].endswith(stop)]
        if met:
            return text[: end - max(map(len, met))]
    return text


@TOKENIZERS
@given(text=TEXT)
@settings(deadline=None)
def test_streamed_text_is_the_decoded_whole(tokenizer: Any, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert streamed(tokenizer, ids) == whole(tokenizer, ids)


@given(ids=st.lists(st.integers(0, len(BYTE_LEVEL) - 1), max_size=30))
@settings(deadline=None)
def test_any_tokens_at_all_stream_to_the_decoded_whole(ids: list[int]) -> None:
    assert streamed(BYTE_LEVEL, ids) == whole(BYTE_LEVEL, ids)


@TOKENIZERS
@given(text=TEXT, stops=st.lists(st.text(alphabet="ab #:\n你好", min_size=1, max_size=4), max_size=3))
@settings(deadline=None)
def test_the_answer_ends_before_the_first_completed_stop_string(tokenizer: Any, text: str, stops: list[str]) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert streamed(tokenizer, ids, tuple(stops)) == cut(whole(tokenizer, ids), tuple(stops))


@given(text=TEXT, stops=st.lists(st.text(alphabet="ab #:", min_size=1, max_size=4), max_size=3), data=st.data())
def test_how_text_is_cut_into_pieces_does_not_matter(text: str, stops: list[str], data: st.DataObject) -> None:
    at = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:end] for start, end in zip([0, *at], [*at, len(text)], strict=True)]
    matcher = StopStrings(stops)
    sent = "".join(map(matcher.push, pieces))
    assert sent + matcher.finish() == cut(text, tuple(stops))
    assert matcher.met == any(stop in text for stop in stops)


@TOKENIZERS
def test_no_piece_holds_half_a_character(tokenizer: Any) -> None:
    text = "al 🦙 你好 早 👩‍🔬 é"
    stream = TextStream(tokenizer)
    pieces = [stream.push(i) for i in tokenizer.encode(text, add_special_tokens=False)] + [stream.finish()]
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)
    assert "".join(pieces).strip() == text


def test_bytes_that_are_no_character_come_out_as_replacements() -> None:
    ids = [BYTE_FALLBACK.convert_tokens_to_ids(piece) for piece in ("<0xE4>", "<0xBD>", "al", "pa")]
    text = streamed(BYTE_FALLBACK, ids)
    assert text.endswith("alpa") and text[0] == "\N{REPLACEMENT CHARACTER}"


def test_what_was_sent_of_a_run_of_bytes_stays_when_a_later_byte_spoils_it() -> None:
    ids = [BYTE_FALLBACK.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in ("你".encode() + b"\xff")]
    stream = TextStream(BYTE_FALLBACK)
    assert [stream.push(i) for i in ids][:3] == ["", "", "你"]
    assert stream.push(BYTE_FALLBACK.convert_tokens_to_ids("al")) + stream.finish() == "\N{REPLACEMENT CHARACTER}al"


def test_endless_invalid_bytes_are_let_go_in_time() -> None:
    stream = TextStream(BYTE_FALLBACK)
    spoilt = BYTE_FALLBACK.convert_tokens_to_ids("<0xFF>")
    assert any(stream.push(spoilt) for _ in range(40))


@TOKENIZERS
def test_special_tokens_are_never_sent(tokenizer: Any) -> None:
    ids = tokenizer.encode("al pa", add_special_tokens=False)
    with_special = [token for i in ids for token in (i, *sorted(special_ids(tokenizer)))]
    assert streamed(tokenizer, with_special) == whole(tokenizer, ids)


def test_a_stop_string_over_several_tokens_is_never_begun() -> None:
    stop = "\n### Instruction:"
    ids = BYTE_LEVEL.encode("hay\n### Inst\n### Instruction:\nmore", add_special_tokens=False)
    stream = TextStream(BYTE_LEVEL, [stop])
    pieces = [stream.push(i) for i in ids] + [stream.finish()]
    assert "".join(pieces) == "hay\n### Inst"
    assert stream.stopped


def test_a_beginning_that_came_to_nothing_is_sent_at_the_end() -> None:
    ids = BYTE_LEVEL.encode("hay\n###", add_special_tokens=False)
    assert streamed(BYTE_LEVEL, ids, ("\n### Instruction:",)) == "hay\n###"


# --- stop strings that spell special tokens -----------------------------------------------------------------------
def ids_of(*pieces: str) -> list[int]:
    """Each piece as tokens; one that is a special token's spelling as that token."""
    return [token for piece in pieces for token in BYTE_LEVEL.encode(piece, add_special_tokens=False)]


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("<|im_start|>", "hay"),
        ("<|im_start|>user", "hay"),
        ("y<|im_start|>", "ha"),
        ("<|im_start|>users", "hayuser grass"),
        ("hay user", "hayuser grass"),
        ("<|im_end|>", "hayuser grass"),
    ],
)
def test_a_stop_string_is_met_by_the_special_tokens_it_spells(stop: str, text: str) -> None:
    assert streamed(BYTE_LEVEL, ids_of("hay", "<|im_start|>", "user", " grass"), (stop,)) == text


def test_text_that_spells_a_special_token_meets_the_stop_string_too() -> None:
    ids = ids_of("hay<|im_", "start|>user")
    assert streamed(BYTE_LEVEL, ids, ("<|im_start|>user",)) == "hay"


def test_stop_strings_that_are_special_tokens_are_found_by_id() -> None:
    assert stop_ids(BYTE_LEVEL, ["<|im_start|>", "x", "<|im_end|>user"]) == [1]
    assert stop_ids(BYTE_LEVEL, []) == []
