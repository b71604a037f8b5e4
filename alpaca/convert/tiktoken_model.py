"""`tokenizer.model` of Llama 3: a tiktoken rank file, to which 256 special tokens are added."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from alpaca.convert import bpe, chat
from alpaca.convert.family import Family
from alpaca.errors import ConversionError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

N_SPECIAL = 256
BEGIN, END, PAD, END_OF_MESSAGE, END_OF_TURN = 0, 1, 4, 8, 9
_NAMES = {0: "begin_of_text", 1: "end_of_text", 6: "start_header_id", 7: "end_header_id", 9: "eot_id"}
_NEW_NAMES = {4: "finetune_right_pad_id", 8: "eom_id", 10: "python_tag"}


def special_tokens(*, new: bool) -> list[str]:
    """The 256 special tokens in the order of their ids; `new` from Llama 3.1 on. Nameless ones are counted."""
    names = _NAMES | _NEW_NAMES if new else _NAMES
    reserved = iter(range(N_SPECIAL))
    return [f"<|{names.get(i) or f'reserved_special_token_{next(reserved)}'}|>" for i in range(N_SPECIAL)]


def is_tiktoken(path: Path) -> bool:
    """True if the file begins as a rank file does: a base64 token, a blank, a number."""
    with path.open("rb") as file:
        first = file.readline(4_096).split()
    try:
        return len(first) == 2 and bool(base64.b64decode(first[0], validate=True)) and int(first[1]) >= 0
    except (ValueError, binascii.Error):
        return False


def read_ranks(path: Path) -> dict[bytes, int]:
    """Tokens and their ranks, which are their ids. Raises ConversionError for a line that is neither, or a gap."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:
            raise ConversionError(
                f"{path}, line {number}: expected a base64 token and its rank, found {line[:60]!r}"
            ) from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ConversionError(f"{path}: the {len(ranks)} ranks do not count from 0 without a gap; the file is damaged")
    if missing := sum(bytes([value]) not in ranks for value in range(256)):
        raise ConversionError(f"{path}: {missing} of the 256 single bytes are missing; the file is damaged")
    return ranks


class TiktokenModel:
    """The original tokenizer; `size` counts the special tokens too."""

    kind: ClassVar[str] = "tiktoken"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ranks = read_ranks(path)
        self.size = len(self._ranks) + N_SPECIAL
        self.bos_id = len(self._ranks) + BEGIN
        self.eos_id = len(self._ranks) + END

    def convert(self, family: Family, *, instruct: bool) -> PreTrainedTokenizerFast:
        """The fast tokenizer. Llama 3.1 and later bring a padding token; Llama 3 has none, and none is made up."""
        from tokenizers import AddedToken

        vocab, merges = _byte_level(self._ranks)
        tokenizer = bpe.byte_level_tokenizer(vocab, merges, "llama-3")
        special = special_tokens(new=family.has_new_specials)
        tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
        return bpe.finish(
            tokenizer, bos=special[BEGIN], eos=special[END_OF_TURN if instruct else END], unk=None,
            pad=special[PAD] if family.has_new_specials else None, add_bos=True, context=family.context,
            chat_template=chat.LLAMA_3 if instruct else None,
        )  # fmt: skip

    def generation_eos(self, family: Family, *, instruct: bool) -> int | list[int]:
        """Ids that end an answer: an instruct model may end the text, the turn and, from Llama 3.1 on, the message."""
        if not instruct:
            return self.eos_id
        ends = (END, END_OF_MESSAGE, END_OF_TURN) if family.has_new_specials else (END, END_OF_TURN)
        return [len(self._ranks) + offset for offset in ends]

    def pad_id(self, family: Family) -> int | None:
        """Id of the padding token; None for Llama 3, which has none."""
        return len(self._ranks) + PAD if family.has_new_specials else None

    def check(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Raises ConversionError unless `tokenizer` encodes as tiktoken does with these ranks."""
        import tiktoken

        special = {token: len(self._ranks) + i for i, token in enumerate(special_tokens(new=False))}
        original = tiktoken.Encoding(
            self.path.stem, pat_str=bpe.LLAMA_3_SPLIT, mergeable_ranks=self._ranks, special_tokens=special
        )
        bpe.check_encodings(tokenizer, ((text, original.encode_ordinary(text)) for text in bpe.SAMPLES))


def _byte_level(ranks: dict[bytes, int]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges in byte-level spelling: tiktoken merges the neighbours whose union has the lowest rank."""
    letters = _byte_letters()

    def spell(token: bytes) -> str:
        return "".join(letters[value] for value in token)

    merges = [
        (rank, ranks[token[:cut]], ranks[token[cut:]], token[:cut], token[cut:])
        for token, rank in ranks.items()
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
    merges.sort()
    vocab = {spell(token): rank for token, rank in ranks.items()}
    return vocab, [(spell(left), spell(right)) for *_, left, right in merges]


def _byte_letters() -> list[str]:
    """GPT-2's visible letter for each byte: printable Latin-1 stands for itself, the rest follows from U+0100."""
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = iter(range(256, 512))
    return [chr(value if value in visible else next(hidden)) for value in range(256)]
