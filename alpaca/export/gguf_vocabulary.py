"""A base's tokenizer as a GGUF file describes it: tokens with their kinds, merges or scores, special ids."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alpaca.convert import bpe
from alpaca.convert.gguf_tokenizer import STYLES
from alpaca.errors import ExportRefused

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerBase

# How text is cut, as the converter calls it → the name under which llama.cpp knows it.
PRE = {"smollm": "smollm", "llama-3": "llama-bpe", "gpt-2": "gpt-2"}


@dataclass(frozen=True)
class Vocabulary:
    """Everything of a tokenizer that a GGUF file carries; `ends` are all the ids that end an answer, EOS first."""

    model: str
    """"gpt2" for byte-level pairs, "llama" for sentencepiece's pieces."""
    tokens: list[str]
    kinds: list[int]
    pre: str = ""
    merges: list[str] | None = None
    scores: list[float] | None = None
    bos: int | None = None
    unk: int | None = None
    pad: int | None = None
    ends: tuple[int, ...] = ()
    add_bos: bool = False
    space_prefix: bool = False

    def write(self, out: GGUFWriter) -> None:
        """Add the fields `tokenizer.ggml.…` but for the chat template."""
        out.add_tokenizer_model(self.model)
        out.add_tokenizer_pre(self.pre or "default")
        out.add_token_list(self.tokens)
        out.add_token_types(self.kinds)
        if self.merges is not None:
            out.add_token_merges(self.merges)
        if self.scores is not None:
            out.add_token_scores(self.scores)
        out.add_add_bos_token(self.add_bos)
        out.add_add_eos_token(False)
        out.add_add_space_prefix(self.space_prefix)
        out.add_eos_token_id(self.ends[0])
        for add, token in ((out.add_bos_token_id, self.bos), (out.add_unk_token_id, self.unk)):
            if token is not None:
                add(token)
        if self.pad is not None:
            out.add_pad_token_id(self.pad)
        if len(self.ends) > 1:  # the format has two places more: the end of a turn, and of a message to a tool
            out.add_eot_token_id(self.ends[1])
        if len(self.ends) > 2:
            out.add_eom_token_id(self.ends[2])


def vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int, ends: tuple[int, ...]) -> Vocabulary:
    """Describe `tokenizer` for a model with `rows` embeddings. Raises ExportRefused for a tokenizer whose way of
    cutting text llama.cpp would not follow: other ids than the model was trained on would come of it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ExportRefused("the base's tokenizer has no tokenizer.json, and a GGUF file is written from that")
    parts: dict[str, Any] = json.loads(backend.to_str())
    model = parts["model"]
    if model["type"] != "BPE":
        raise ExportRefused(f"the base's tokenizer is a {model['type']} one; byte pairs (BPE) are written to GGUF")
    tokens, kinds = _tokens(parts, rows)
    known = {
        "bos": tokenizer.bos_token_id, "unk": tokenizer.unk_token_id, "pad": tokenizer.pad_token_id, "ends": ends,
        "add_bos": _adds_bos(tokenizer),
    }  # fmt: skip
    merges = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    if model.get("byte_fallback"):
        for index, token in enumerate(tokens):
            if len(token) == 6 and token.startswith("<0x") and kinds[index] == bpe.PieceKind.NORMAL:
                kinds[index] = bpe.PieceKind.BYTE
        unknown = model.get("unk_token")
        if unknown in model["vocab"]:
            kinds[model["vocab"][unknown]] = bpe.PieceKind.UNKNOWN
        return Vocabulary(
            "llama",
            tokens,
            kinds,
            "default",
            scores=_scores(tokens, merges),
            space_prefix=_prefixes(tokenizer),
            **known,
        )
    style = _style(parts)
    return Vocabulary("gpt2", tokens, kinds, PRE[style], merges=[" ".join(merge) for merge in merges], **known)


def _tokens(parts: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Texts and kinds by id; rows of the embedding that no token has are called unused."""
    tokens = [f"[unused{index}]" for index in range(rows)]
    kinds = [int(bpe.PieceKind.UNUSED)] * rows
    for token, index in parts["model"]["vocab"].items():
        if index < rows:
            tokens[index], kinds[index] = token, int(bpe.PieceKind.NORMAL)
    for added in parts.get("added_tokens") or []:
        if added["id"] < rows:
            kind = bpe.PieceKind.CONTROL if added["special"] else bpe.PieceKind.USER_DEFINED
            tokens[added["id"]], kinds[added["id"]] = added["content"], int(kind)
    return tokens, kinds


def _style(parts: dict[str, Any]) -> str:
    """How the tokenizer cuts text before it merges, by comparison with those that the converter can make."""
    if parts.get("normalizer"):
        raise ExportRefused(
            f"the base's tokenizer rewrites text first ({parts['normalizer'].get('type')}), which GGUF can't be told"
        )
    found = _cuts(parts.get("pre_tokenizer"))
    for style in dict.fromkeys(STYLES.values()):
        made = json.loads(bpe.byte_level_tokenizer({}, [], style).to_str())
        if _cuts(made["pre_tokenizer"]) == found:
            return style
    raise ExportRefused(
        f"the base's tokenizer cuts text in a way that is not known here ({str(found)[:200]}); known are "
        f"{', '.join(PRE)}. Export `merged`, and let llama.cpp's own converter make the file"
    )


def _cuts(pre: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer, without what changes offsets only."""
    steps = pre.get("pretokenizers", [pre]) if pre else []
    return [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]


def _scores(tokens: list[str], merges: list[tuple[str, ...]]) -> list[float]:
    """A score for each piece that lets llama.cpp merge in the order of `merges`: sentencepiece merges the neighbours
    whose union scores best, so a piece scores less by one than all that are made before it."""
    made: dict[str, int] = {}
    for left, right in merges:
        made.setdefault(left + right, len(made))
    return [float(-made.get(token, 0)) for token in tokens]


def _prefixes(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether text gets a space in front before it is cut."""
    ids: list[int] = tokenizer.encode("a", add_special_tokens=False)
    return str(tokenizer.convert_ids_to_tokens(ids[0])).startswith("▁")


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    ids: list[int] = tokenizer.encode("a")
    return tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
