"""Configurations that ask for what no adapter may."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from tests.serving.hostile.case import Case
from tests.serving.peft_adapters import edit_config

CONFIG = "adapter_config.json"
GOOD: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}

CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "IA3"}, "peft_type is 'IA3': only LORA"),
    ({"peft_type": None}, "peft_type is None"),
    ({"target_modules": ".*_proj"}, "target_modules must be a list of module names, not .*_proj"),
    ({"target_modules": "all-linear"}, "target_modules must be a list"),
    ({"target_modules": ["(a+)+$"]}, "target_modules names (a+)+$"),
    ({"target_modules": ["q_proj|v_proj"]}, "no patterns"),
    ({"target_modules": [r".*\.q_proj"]}, "no patterns"),
    ({"target_modules": [""]}, "no patterns"),
    ({"target_modules": ["q_proj\n"]}, "no patterns"),
    ({"target_modules": ["a" * 300]}, "no patterns"),
    ({"target_modules": [5]}, "no patterns"),
    ({"target_modules": []}, "target_modules must be a list"),
    ({"target_modules": {"q_proj": 1}}, "target_modules must be a list"),
    ({"target_modules": None}, "target_modules must be a list"),
    ({"layer_replication": [[0, 1000]]}, "layer_replication"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    ({"layers_to_transform": [0]}, "layers_to_transform"),
    ({"exclude_modules": "q_proj"}, "exclude_modules"),
    ({"target_parameters": ["a"]}, "target_parameters"),
    ({"megatron_config": {"a": 1}}, "megatron_config"),
    ({"loftq_config": {"loftq_bits": 4}}, "loftq_config"),
    ({"lora_bias": True}, "lora_bias"),
    ({"use_qalora": True}, "use_qalora"),
    ({"made_up": "value"}, "made_up = 'value', which is not supported"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights"),
    ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights"),
    ({"init_lora_weights": "olora"}, "init_lora_weights"),
    ({"init_lora_weights": "loftq"}, "init_lora_weights"),
    ({"bias": "all"}, "bias is 'all'"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    ({"r": 10**9}, "r is 1000000000: a whole number from 1 to 1024"),
    ({"r": 0}, "r is 0"),
    ({"r": -4}, "r is -4"),
    ({"r": 4.0}, "r is 4.0"),
    ({"r": True}, "r is True"),
    ({"r": "4"}, "r is 4"),
    ({"r": None}, "r is None"),
    ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
    ({"lora_alpha": float("inf")}, "lora_alpha is inf"),
    ({"lora_alpha": -1}, "lora_alpha is -1"),
    ({"lora_alpha": "8"}, "lora_alpha is 8"),
    ({"lora_alpha": [8]}, "lora_alpha is"),
    ({"use_dora": "yes"}, "use_dora is 'yes': true or false"),
    ({"use_rslora": 1}, "use_rslora is '1'"),
    ({"rank_pattern": {"q_proj": 10**9}}, "q_proj is 1000000000"),
    ({"rank_pattern": {"(a+)+$": 4}}, "rank_pattern names"),
    ({"rank_pattern": [1]}, "rank_pattern must be an object"),
    ({"alpha_pattern": {"q_proj": float("nan")}}, "q_proj is nan"),
    ({"alpha_pattern": {"q_proj": "8"}}, "q_proj is 8"),
    ({"target_modules": [f"m{n}" for n in range(70_000)]}, "which tiny does not have"),
    ({"target_modules": [f"m{n}" for n in range(100_001)]}, "target_modules must be a list"),
    ({"target_modules": ["q_proj", "v_proj", "embed_tokens"]}, "'embed_tokens': LoRA on the embeddings is not served"),
    ({"rank_pattern": {f"m{n}": 4 for n in range(20_001)}}, "at most 20,000"),
    ({"rank_pattern": {"q_proj": 1024}}, "has shape"),
    ({"r": float("nan")}, "r is nan"),
    ({"r": 8}, "has shape (4, 64), the base needs (8, 64)"),
    ({"use_dora": True}, "lacks 4 of 12 tensors"),
    ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
    ({"auto_mapping": {"base_model_class": "Model", "parent_library": "evil"}}, "auto_mapping"),
    ({"auto_mapping": "evil.Model"}, "auto_mapping"),
    ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
    ({"corda_config": {"cache_file": "/etc/passwd"}}, "corda_config"),
    ({"megatron_config": {"a": 1}, "megatron_core": "evil.core"}, "megatron_config"),
    ({"x" * 5000: "\n\x1b[2J"}, "which is not supported"),
]  # fmt: skip


TEXTS: list[tuple[str, bytes, str]] = [
    ("nothing", b"", "is not valid JSON"),
    ("a cut object", b"{", "is not valid JSON"),
    ("a list", b"[]", "holds a list"),
    ("a text", b'"x"', "holds a str"),
    ("5,000 digits", b'{"r": ' + b"9" * 5000 + b"}", "is not valid JSON"),
    ("a list 100,000 deep", b"[" * 100_000, "is not valid JSON"),
    ("an object 100,000 deep", b'{"a":' * 100_000, "is not valid JSON"),
    ("2 MiB of blanks", b" " * (2 << 20), "at most 1048576 are read"),
    ("a million empty lists", b"[" + b"[]," * 349_000 + b"[]]", "over 100,000 lists and objects"),
    ("90,000 empty lists", b"[" + b"[]," * 90_000 + b"[]]", "holds a list"),
    ("bytes that are not UTF-8", b'{"r": "\xff"}', "is not valid JSON"),
    ("UTF-16", '{"r": 4}'.encode("utf-16"), "is not valid JSON"),
    ("a lone surrogate", b'{"peft_type": "\\ud800"}', "only LORA adapters"),
    ("a key that is there twice", b'{"peft_type": "LORA", "r": 1, "r": 4}', "the key 'r' is there twice"),
    ("a bare NaN", b"NaN", "holds a float"),
]


def change(changes: dict[str, Any], folder: Path) -> None:
    edit_config(folder, **changes)


def write(file: str, text: bytes, folder: Path) -> None:
    (folder / file).write_bytes(text)


def short(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 50 else f"{text[:40]} and so on, {len(text)} characters"


CONFIGS = [Case(short(changes), partial(change, changes), said) for changes, said in CHANGES] + [
    Case(f"{file} holds {name}", partial(write, file, text), said if file == CONFIG else "alpaca.json")
    for file in (CONFIG, "alpaca.json")
    for name, text, said in TEXTS
]
