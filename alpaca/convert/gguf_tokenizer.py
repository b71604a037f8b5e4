"""The tokenizer inside a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from alpaca.convert import bpe
from alpaca.convert.gguf_metadata import Metadata
from alpaca.errors import ConversionError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

# tokenizer.ggml.pre → how text is cut. Cutting otherwise gives other ids than the model was trained on, so no guess.
STYLES = {
    "smollm": "smollm", "llama-bpe": "llama-3", "llama3": "llama-3", "llama-v3": "llama-3", "gpt-2": "gpt-2",
}  # fmt: skip
# tokenizer.ggml.…_token_id of what ends an answer beside EOS: the end of a turn, and of a message that awaits a tool.
_ENDS = ("eot", "eom")
# Tokens that padding may use where the file names none, or names EOS: padding that equals EOS is lost as a label.
_PADS = ("<|finetune_right_pad_id|>", "<|endoftext|>", "<pad>", "[PAD]")


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the special tokens; None where the model has none. `ends`: all that end an answer, EOS first."""

    bos: int | None
    eos: int
    unk: int | None
    pad: int | None
    ends: tuple[int, ...]


class GgufTokenizer:
    """Vocabulary, merges or scores, special ids and chat template of the file."""

    def __init__(self, metadata: Metadata, context: int) -> None:
        self._metadata = metadata
        self._context = context
        self._model = metadata.get("tokenizer.ggml.model", str)
        if self._model not in ("gpt2", "llama"):
            raise ConversionError(
                f"{metadata.path.name}: tokenizer {self._model!r} is unknown here; 'gpt2' and 'llama' can be converted"
            )
        self._pre = metadata.get("tokenizer.ggml.pre", str, "")
        if self._model == "gpt2" and self._pre not in STYLES:
            raise ConversionError(
                f"{metadata.path.name}: tokenizer.ggml.pre is {self._pre or 'missing'}; how it cuts text is not known "
                f"(known: {', '.join(STYLES)}), and a wrong cut would give wrong ids"
            )
        self.tokens: list[str] = metadata.get("tokenizer.ggml.tokens", list)
        self._kinds = self._read_kinds()
        self.ids = self._special_ids()
        self.note = f"tokenizer: {self._model}" + (f", text cut as by {self._pre!r}" if self._model == "gpt2" else "")

    def build(self) -> PreTrainedTokenizerFast:
        """The fast tokenizer."""
        tokenizer = self._byte_level() if self._model == "gpt2" else self._pieces()
        default_bos = self._model == "llama" or STYLES[self._pre] == "llama-3"
        return bpe.finish(
            tokenizer, bos=self._token(self.ids.bos), eos=self._token(self.ids.eos), unk=self._token(self.ids.unk),
            pad=self._token(self.ids.pad), context=self._context,
            add_bos=self._metadata.get("tokenizer.ggml.add_bos_token", bool, default_bos),
            chat_template=self._metadata.get("tokenizer.chat_template", str, None),
        )  # fmt: skip

    def check(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Raises ConversionError unless special ids are as in the file and text survives encoding and decoding."""
        found = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id)
        wanted = (self.ids.bos, self.ids.eos, self.ids.unk, self.ids.pad)
        if found != wanted:
            raise ConversionError(
                f"special token ids are {found} after conversion (bos, eos, unk, pad), expected {wanted}"
            )
        for text in bpe.SAMPLES:
            again = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False))
            if again != text:
                raise ConversionError(f"the converted tokenizer turns {text!r} into {again!r}")

    def _byte_level(self) -> Tokenizer:
        from tokenizers import AddedToken

        merges = [tuple(merge.split(" ")) for merge in self._metadata.get("tokenizer.ggml.merges", list)]
        if bad := next((merge for merge in merges if len(merge) != 2), None):
            raise ConversionError(
                f"{self._metadata.path.name}: tokenizer.ggml.merges has {' '.join(bad)!r}, which is no pair"
            )
        vocab = {token: index for index, token in enumerate(self.tokens)}
        try:
            tokenizer = bpe.byte_level_tokenizer(vocab, [(left, right) for left, right in merges], STYLES[self._pre])
        except Exception as error:  # tokenizers raises bare Exception, e.g. for a merge outside the vocabulary
            raise ConversionError(
                f"{self._metadata.path.name}: the tokenizer's merges do not fit its tokens: {error}"
            ) from None
        kinds = zip(self.tokens, self._kinds, strict=True)
        added = [(token, kind) for token, kind in kinds if kind in (bpe.PieceKind.CONTROL, bpe.PieceKind.USER_DEFINED)]
        tokenizer.add_special_tokens(
            [AddedToken(t, normalized=False, special=True) for t, k in added if k == bpe.PieceKind.CONTROL]
        )
        tokenizer.add_tokens([AddedToken(t, normalized=False) for t, k in added if k == bpe.PieceKind.USER_DEFINED])
        return tokenizer

    def _pieces(self) -> Tokenizer:
        scores = self._metadata.get("tokenizer.ggml.scores", list)
        if len(scores) != len(self.tokens):
            raise ConversionError(f"{self._metadata.path.name}: {len(self.tokens)} tokens, but {len(scores)} scores")
        pieces = [bpe.Piece(*parts) for parts in zip(self.tokens, scores, self._kinds, strict=True)]
        prefix = self._metadata.get("tokenizer.ggml.add_space_prefix", bool, True)
        return bpe.tokenizer_from_pieces(pieces, add_prefix=prefix)

    def _read_kinds(self) -> list[bpe.PieceKind]:
        kinds = self._metadata.get("tokenizer.ggml.token_type", list, [])
        if len(kinds) != len(self.tokens):
            raise ConversionError(
                f"{self._metadata.path.name}: {len(self.tokens)} tokens, but {len(kinds)} token types"
            )
        try:
            return [bpe.PieceKind(kind) for kind in kinds]
        except ValueError as error:
            raise ConversionError(f"{self._metadata.path.name}: tokenizer.ggml.token_type: {error}") from None

    def _special_ids(self) -> SpecialIds:
        bos, eos, unk, pad = (self._id(name) for name in ("bos", "eos", "unknown", "padding"))
        if eos is None:
            raise ConversionError(
                f"{self._metadata.path.name} names no end-of-text token (tokenizer.ggml.eos_token_id)"
            )
        if unk is None and self._model == "llama":
            unk = self._kinds.index(bpe.PieceKind.UNKNOWN) if bpe.PieceKind.UNKNOWN in self._kinds else None
        if pad is None or pad == eos:
            where = {token: index for index, token in enumerate(self.tokens)}
            pad = next((where[token] for token in _PADS if where.get(token, eos) != eos), None)
        others = (self._id(name) for name in _ENDS)
        return SpecialIds(bos, eos, unk, pad, tuple(dict.fromkeys([eos, *(i for i in others if i is not None)])))

    def _id(self, name: str) -> int | None:
        value = self._metadata.get(f"tokenizer.ggml.{name}_token_id", int, None)
        if value is not None and not 0 <= value < len(self.tokens):
            raise ConversionError(
                f"{self._metadata.path.name}: {name}_token_id {value} is outside the {len(self.tokens)} tokens"
            )
        return value

    def _token(self, index: int | None) -> str | None:
        return None if index is None else self.tokens[index]
