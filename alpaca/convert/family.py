"""Which release a checkpoint belongs to, with the reason; what follows from that: name, context, rope scaling."""

from __future__ import annotations

import re
from dataclasses import dataclass

from alpaca.convert.params import Params
from alpaca.errors import ConversionError


@dataclass(frozen=True)
class Family:
    """A line of releases: name, context length in tokens, kind of tokenizer, whether instruct versions exist."""

    name: str
    context: int
    tokenizer: str
    instruct_suffix: str | None

    @property
    def has_new_specials(self) -> bool:
        """Llama 3.1 gave names to some of Llama 3's reserved tokens, a padding token among them."""
        return self.tokenizer == "tiktoken" and self.name != "llama-3"


FAMILIES = {
    family.name: family
    for family in (
        Family("llama", 2_048, "sentencepiece", None),
        Family("llama-2", 4_096, "sentencepiece", "chat"),
        Family("codellama", 16_384, "sentencepiece", "instruct"),
        Family("llama-3", 8_192, "tiktoken", "instruct"),
        Family("llama-3.1", 131_072, "tiktoken", "instruct"),
        Family("llama-3.2", 131_072, "tiktoken", "instruct"),
    )
}


def detect_family(params: Params, tokenizer: str, *, tied: bool, folder_name: str) -> tuple[Family, str]:
    """The family and why. `tokenizer` is "sentencepiece" or "tiktoken"; `tied` says that the head is the embedding."""
    if tokenizer == "tiktoken":
        if not params.use_scaled_rope:
            return FAMILIES["llama-3"], "tiktoken tokenizer, rope not scaled"
        if tied:
            return FAMILIES["llama-3.2"], "tiktoken tokenizer, scaled rope, head tied to the embedding"
        return FAMILIES["llama-3.1"], "tiktoken tokenizer, scaled rope, head of its own"
    if params.rope_theta != 10_000:
        return FAMILIES["codellama"], f"sentencepiece tokenizer, rope_theta {params.rope_theta:g}"
    if re.search(r"llama[-_ ]?2", folder_name, re.IGNORECASE):
        return FAMILIES["llama-2"], f"sentencepiece tokenizer, the folder is called {folder_name}"
    if params.n_kv_heads is not None or params.ffn_dim_multiplier is not None:
        return FAMILIES["llama-2"], "sentencepiece tokenizer, n_kv_heads or ffn_dim_multiplier in params.json"
    if params.dim > 5_120:
        return FAMILIES["llama"], f"sentencepiece tokenizer, dim {params.dim} without grouped-query attention"
    if params.norm_eps >= 1e-5:
        return FAMILIES[
            "llama-2"
        ], f"sentencepiece tokenizer, norm_eps {params.norm_eps:g} (LLaMA 1 has 1e-06 at this size)"
    return FAMILIES["llama"], f"sentencepiece tokenizer, norm_eps {params.norm_eps:g} (Llama 2 has 1e-05 at this size)"


def chosen_family(name: str, tokenizer: str) -> tuple[Family, str]:
    """The family given by hand. Raises ConversionError if the tokenizer is of another kind."""
    family = FAMILIES[name]
    if family.tokenizer != tokenizer:
        raise ConversionError(
            f"--family {name} has a {family.tokenizer} tokenizer, but tokenizer.model is {tokenizer}; "
            "omit --family, or put the right tokenizer.model there"
        )
    return family, "given with --family"


def base_name(folder_name: str, family: Family, *, instruct: bool) -> str:
    """`7B` becomes family and size (`llama-7b`, `llama-3-8b`); other folders keep theirs, in small letters."""
    plain = re.sub(r"[^a-z0-9.]+", "-", folder_name.lower()).strip("-.")
    if re.fullmatch(r"\d+(\.\d+)?[bm](-[a-z]+)?", plain):
        plain = f"{family.name}-{plain}"
    if not plain:
        raise ConversionError(
            f"the folder name {folder_name!r} can't become a base's name; rename the folder, e.g. to 7B"
        )
    if instruct and not re.search(r"chat|instruct", plain):
        plain += f"-{family.instruct_suffix}"
    return plain


def rope_parameters(family: Family, params: Params) -> tuple[dict[str, object], str]:
    """Rope settings as transformers' config has them, and a word on scaling for people.

    The factor of Llama 3.1 is 8, that of Llama 3.2 is 32; only later params.json files state it.
    """
    if not params.use_scaled_rope:
        return {"rope_type": "default", "rope_theta": params.rope_theta}, "not scaled"
    factor = params.rope_scaling_factor or (32.0 if family.name == "llama-3.2" else 8.0)
    why = "params.json" if params.rope_scaling_factor else family.name
    return scaled_rope(params.rope_theta, factor), f"scaled, factor {factor:g} ({why})"


def scaled_rope(theta: float, factor: float) -> dict[str, object]:
    """Llama 3.1's scaling: wavelengths over 8,192 tokens are stretched by `factor`, those under 2,048 are not."""
    return {
        "rope_type": "llama3", "rope_theta": theta, "factor": float(factor), "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8_192,
    }  # fmt: skip
