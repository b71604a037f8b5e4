"""What the forward pass reads of a base's config.json, in one spelling, whatever version of transformers wrote it.

Versions differ in names (`rope_theta` and `rope_scaling` became `rope_parameters`), in whether defaults are written
out, and mirrors add notes and other token ids. What the tensors' shapes say is not repeated here.
"""

from __future__ import annotations

from typing import Any

from alpaca.errors import BadBase

# The fields that each family reads, with what transformers takes where one is missing.
COMMON: dict[str, Any] = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
    "head_dim": None, "hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": COMMON | {"num_key_value_heads": None, "attention_bias": False, "mlp_bias": False},
    "mistral": COMMON | {"num_key_value_heads": 8},
    "qwen2": COMMON,
    "qwen3": COMMON | {"head_dim": 128, "attention_bias": False},
}
# Of a family that is not known here, all is kept but what no forward pass reads.
NEVER_READ = {
    "architectures", "attention_dropout", "bos_token_id", "dtype", "eos_token_id", "initializer_range", "pad_token_id",
    "pretraining_tp", "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip
ROPE = {"rope_parameters", "rope_scaling", "rope_theta"}
FIXED_ROPE = ("default", "linear", "llama3")  # these don't read how many positions the base has


def forward_config(config: dict[str, Any]) -> dict[str, Any]:
    """The fields that change what the base computes. Raises BadBase where one can't be right."""
    try:
        fields = FAMILIES.get(config.get("model_type", ""))
        if fields is None:
            read = {k: v for k, v in config.items() if k not in NEVER_READ | ROPE and not k.startswith("_")}
        else:
            read = {"model_type": config["model_type"], "sliding": _sliding(config)}
            read |= {name: config.get(name, default) for name, default in fields.items()}
            read["num_key_value_heads"] = read["num_key_value_heads"] or read["num_attention_heads"]
            read["head_dim"] = read["head_dim"] or read["hidden_size"] // read["num_attention_heads"]
        spelled = _spelled(read | {"rope": _rope(config)})
    except (TypeError, ValueError, AttributeError, ZeroDivisionError, OverflowError) as error:
        raise BadBase(f"config.json has sizes or rotary settings that can't be right: {error}") from None
    assert isinstance(spelled, dict)
    return spelled


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10_000.0
    if kind == "default":
        return {"kind": kind, "theta": theta}
    others = {k: v for k, v in rope.items() if k not in ("rope_type", "type", "rope_theta") and v is not None}
    if kind not in FIXED_ROPE:
        longest = config.get("max_position_embeddings")
        others["max_position_embeddings"] = longest
        others.setdefault("original_max_position_embeddings", config.get("original_max_position_embeddings") or longest)
    return {"kind": kind, "theta": theta} | others


def _sliding(config: dict[str, Any]) -> list[Any] | None:
    """[tokens that are attended to, the layers that attend to no more]; None where all attend to everything."""
    window = config.get("sliding_window", 4096)
    layers = range(config.get("num_hidden_layers", COMMON["num_hidden_layers"]))
    if config["model_type"] == "mistral":
        return [window, list(layers)] if window else None
    if config["model_type"] == "llama" or not window or not config.get("use_sliding_window"):
        return None
    kinds = config.get("layer_types")
    first = config.get("max_window_layers", 28)
    sliding = [n for n in layers if (kinds[n] == "sliding_attention" if kinds else n >= first)]
    return [window, sliding] if sliding else None


def _spelled(value: Any) -> Any:
    """Numbers as floats: some writers say 10000, others 10000.0."""
    if isinstance(value, dict):
        return {key: _spelled(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_spelled(inner) for inner in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
