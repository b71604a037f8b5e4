"""Fast tokenizers from their parts: sentencepiece pieces, or byte-level tokens with merges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from alpaca.errors import ConversionError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

# Llama 3's way to cut text before byte pairs are merged; published with its tokenizer.
LLAMA_3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Text that every converted tokenizer must encode as the original does.
SAMPLES = (
    "Tell me something about alpacas.", "  two  spaces,\ttab\nand lines\n\n\nend ",
    "don't, I'll, WE'RE: 1234567.89 € (50 %)", "def f(x):\n    return x**2\n",
    "Größe, naïve, Łódź", "羊驼吃干草,也吃青草。", "アルパカは草を食べます。", "알파카", "الألبكة", "альпака", 
    "🦙 👩‍🌾",
)  # fmt: skip


class PieceKind(IntEnum):
    """Kinds of tokens; sentencepiece and GGUF use the same numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Piece:
    """One entry of a sentencepiece vocabulary; its place in the list is its id."""

    text: str
    score: float
    kind: PieceKind


def tokenizer_from_pieces(pieces: list[Piece], *, add_prefix: bool = True) -> Tokenizer:
    """A byte-fallback BPE tokenizer that encodes as sentencepiece does; `add_prefix` puts a space before the text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    vocab = {piece.text: index for index, piece in enumerate(pieces)}
    if len(vocab) != len(pieces):
        raise ConversionError(
            f"the tokenizer has {len(pieces)} pieces, but {len(pieces) - len(vocab)} of them occur twice"
        )
    unknown = [piece.text for piece in pieces if piece.kind == PieceKind.UNKNOWN]
    if len(unknown) != 1:
        raise ConversionError(f"the tokenizer has {len(unknown)} unknown-token pieces; exactly one was expected")
    if sum(piece.kind == PieceKind.BYTE for piece in pieces) != 256:
        raise ConversionError("the tokenizer has no byte fallback (256 byte pieces); LLaMA's tokenizers have it")
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=_piece_merges(pieces), unk_token=unknown[0], fuse_unk=True, byte_fallback=True)
    )
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if add_prefix else spaces
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if add_prefix else steps)
    special = (PieceKind.UNKNOWN, PieceKind.CONTROL)
    tokenizer.add_special_tokens(
        [AddedToken(piece.text, normalized=False, special=True) for piece in pieces if piece.kind in special]
    )
    tokenizer.add_tokens(
        [AddedToken(piece.text, normalized=False) for piece in pieces if piece.kind == PieceKind.USER_DEFINED]
    )
    return tokenizer


def _piece_merges(pieces: list[Piece]) -> list[tuple[str, str]]:
    """Every cut of a piece into two, best score first: sentencepiece merges the neighbours whose union scores best."""
    ids = {piece.text: index for index, piece in enumerate(pieces) if piece.kind == PieceKind.NORMAL}
    merges = [
        (-pieces[index].score, ids[text[:cut]], ids[text[cut:]], text[:cut], text[cut:])
        for text, index in ids.items()
        for cut in range(1, len(text))
        if text[:cut] in ids and text[cut:] in ids
    ]
    merges.sort()
    return [(left, right) for *_, left, right in merges]


def byte_level_tokenizer(vocab: Mapping[str, int], merges: list[tuple[str, str]], style: str) -> Tokenizer:
    """A byte-level BPE tokenizer; `style` is how text is cut first: "llama-3", "smollm" (digits apart) or "gpt-2"."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab=dict(vocab), merges=merges, ignore_merges=style == "llama-3"))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=style != "llama-3")
    first: Any = {
        "llama-3": lambda: pre_tokenizers.Split(Regex(LLAMA_3_SPLIT), behavior="isolated"),
        "smollm": lambda: pre_tokenizers.Digits(individual_digits=True),
        "gpt-2": lambda: None,
    }[style]()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, level]) if first else level
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def finish(
    tokenizer: Tokenizer, *, bos: str | None, eos: str | None, unk: str | None, pad: str | None, add_bos: bool,
    context: int, chat_template: str | None = None,
) -> PreTrainedTokenizerFast:  # fmt: skip
    """Wrap for transformers. BOS goes before every text if `add_bos`; `pad` is None where the model has none."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    if add_bos and bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    names = {"bos_token": bos, "eos_token": eos, "unk_token": unk, "pad_token": pad}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=context, clean_up_tokenization_spaces=False,
        **{name: token for name, token in names.items() if token is not None},
    )  # fmt: skip
    if chat_template is not None:
        fast.chat_template = chat_template
    return fast


def check_encodings(tokenizer: PreTrainedTokenizerFast, expected: Iterable[tuple[str, list[int]]]) -> None:
    """Raises ConversionError unless the reloaded tokenizer gives the original's ids for every text."""
    for text, ids in expected:
        found = tokenizer.encode(text, add_special_tokens=False)
        if found != ids:
            raise ConversionError(
                f"the converted tokenizer encodes {text!r} as {found}, the original as {ids}: "
                "this tokenizer works in a way that is not known here"
            )
