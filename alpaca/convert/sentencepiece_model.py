"""`tokenizer.model` of LLaMA 1 and 2: a sentencepiece model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alpaca.convert import bpe, chat
from alpaca.convert.family import Family
from alpaca.errors import ConversionError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class SentencepieceModel:
    """The original tokenizer; `size` is the number of its pieces, `bos_id` and `eos_id` its own."""

    kind = "sentencepiece"

    def __init__(self, path: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        self.path = path
        self._processor = SentencePieceProcessor()
        try:
            self._processor.LoadFromFile(str(path))
            self.pieces = self._read_pieces()
        except (RuntimeError, OSError, IndexError, UnicodeDecodeError) as error:  # the last two for damaged pieces
            raise ConversionError(f"{path} is neither a sentencepiece nor a tiktoken tokenizer: {error}") from None
        self.size: int = self._processor.vocab_size()
        self.bos_id: int = self._processor.bos_id()
        self.eos_id: int = self._processor.eos_id()
        if self.bos_id < 0 or self.eos_id < 0:
            raise ConversionError(f"{path} has no begin-of-text or no end-of-text token; LLaMA's have both")
        if not all(0 <= index < self.size for index in (self._processor.unk_id(), self.bos_id, self.eos_id)):
            raise ConversionError(f"{path} names special tokens beyond its {self.size} pieces; the file is damaged")

    def convert(self, family: Family, *, instruct: bool) -> PreTrainedTokenizerFast:
        """The fast tokenizer. No padding token is made up: these models have none."""
        ids = (self._processor.unk_id(), self.bos_id, self.eos_id)
        unk, bos, eos = (self._processor.id_to_piece(index) for index in ids)
        template = chat.LLAMA_2 if instruct else None
        return bpe.finish(
            bpe.tokenizer_from_pieces(self.pieces), bos=bos, eos=eos, unk=unk, pad=None, add_bos=True,
            context=family.context, chat_template=template,
        )  # fmt: skip

    def generation_eos(self, family: Family, *, instruct: bool) -> int | list[int]:
        """Ids that end an answer."""
        return self.eos_id

    def pad_id(self, family: Family) -> int | None:
        """None: LLaMA 1 and 2 have no padding token."""
        return None

    def check(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Raises ConversionError unless `tokenizer` encodes as the original does."""
        try:
            expected = [(text, self._processor.encode(text)) for text in bpe.SAMPLES]
        except (RuntimeError, IndexError) as error:
            raise ConversionError(f"{self.path} can't encode text; the file is damaged: {error}") from None
        bpe.check_encodings(tokenizer, expected)

    def _read_pieces(self) -> list[bpe.Piece]:
        model = self._processor

        def kind(index: int) -> bpe.PieceKind:
            if model.is_unknown(index):
                return bpe.PieceKind.UNKNOWN
            if model.is_control(index):
                return bpe.PieceKind.CONTROL
            if model.is_byte(index):
                return bpe.PieceKind.BYTE
            return bpe.PieceKind.UNUSED if model.is_unused(index) else bpe.PieceKind.NORMAL

        return [bpe.Piece(model.id_to_piece(i), model.get_score(i), kind(i)) for i in range(model.vocab_size())]
