"""Adapters from strangers: what a configuration or a weights file may not do, and what a good one does."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file, save_file

from alpaca.adapter import Card, changed_modules, load_adapter, load_tensors, parse_config, read_card, verify_files
from alpaca.base import fingerprint, load_model
from alpaca.errors import AdapterError, AdapterNotFound, BadAdapter, WrongBase
from tests.serving.peft_adapters import edit_config, make_adapter, write_card

CPU = torch.device("cpu")
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
GOOD: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}


@pytest.fixture(scope="module")
def original(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tiny_base, tmp_path_factory.mktemp("adapters") / "original")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "adapter"))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(str(path))
    change(tensors)
    save_file(tensors, str(path))


def some(tensors: dict[str, torch.Tensor], part: str = "lora_A") -> str:
    return next(name for name in sorted(tensors) if part in name)


# --- the configuration --------------------------------------------------------------------------------------------
HOSTILE: list[tuple[dict[str, Any], str]] = [
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
    ({"eva_config": {"rho": 2}}, "eva_config"),
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
]  # fmt: skip


@pytest.mark.parametrize(("changes", "said"), HOSTILE, ids=lambda value: str(value)[:40])
def test_a_hostile_configuration_is_refused_by_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadAdapter) as refused:
        parse_config(json.loads(json.dumps({**GOOD, **changes})))
    assert str(refused.value).startswith("E4002 BadAdapter: ")
    assert said.replace("'", "") in str(refused.value).replace("'", "")
    assert len(str(refused.value)) < 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*GOOD, "rank_pattern", "alpha_pattern", "use_dora", "bias", "x"]), JSON))
def test_no_configuration_does_more_than_be_refused(changes: dict[str, Any]) -> None:
    try:
        spec = parse_config({**GOOD, **changes})
    except BadAdapter as refused:
        assert len(str(refused)) < 400
    else:
        assert 1 <= spec.r <= 1024


def test_what_changes_nothing_is_let_pass() -> None:
    harmless = {
        "base_model_name_or_path": "../../etc/passwd", "revision": "x", "lora_dropout": 0.3, "inference_mode": False,
        "init_lora_weights": "gaussian", "task_type": "CAUSAL_LM", "modules_to_save": None, "layer_replication": [],
        "auto_mapping": {"a": "b"},
    }  # fmt: skip
    spec = parse_config({**GOOD, **harmless})
    assert (spec.r, spec.lora_alpha, spec.target_modules) == (4, 8, ("q_proj",))


def test_ranks_and_alphas_of_single_modules(tiny_base: Path, tmp_path: Path) -> None:
    """Patterns as PEFT writes them are kept, and PEFT computes the same with them."""
    pattern = {"rank_pattern": {"q_proj": 2, "layers.1.self_attn.v_proj": 8}, "alpha_pattern": {"v_proj": 3.5}}
    folder = make_adapter(tiny_base, tmp_path / "a", use_rslora=True, **pattern)
    files = verify_files(folder, tiny_base)
    assert files.spec.rank("model.layers.0.self_attn.q_proj") == 2
    assert files.spec.rank("model.layers.1.self_attn.v_proj") == 8
    assert files.spec.scaling("model.layers.1.self_attn.v_proj") == pytest.approx(3.5 / 8**0.5)
    assert_logits_equal_peft(folder, tiny_base)


# --- the files ----------------------------------------------------------------------------------------------------
def test_a_good_folder_is_verified_without_loading_a_tensor(folder: Path, tiny_base: Path) -> None:
    files = verify_files(folder, tiny_base)
    assert files.card is None
    assert files.modules == tuple(f"model.layers.{n}.self_attn.{p}_proj" for n in (0, 1) for p in "qv")
    assert changed_modules(load_tensors(files)) == 4


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named(folder: Path, tiny_base: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(AdapterNotFound, match=f"^E4001 .*has no {name}"):
        verify_files(folder, tiny_base)


def test_pickled_weights_are_not_looked_at(folder: Path, tiny_base: Path, tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "harmed"),))

    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(AdapterNotFound):
        verify_files(folder, tiny_base)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not valid JSON"), ("{", "is not valid JSON"), ("[]", "holds a list"), ('"x"', "holds a str"),
        ('{"r": ' + "9" * 5000 + "}", "is not valid JSON"), ("[" * 100_000, "is not valid JSON"),
        ('{"a":' * 100_000, "is not valid JSON"), (" " * (2 << 20), "at most 1048576 are read"),
    ],
    ids=["empty", "cut", "list", "text", "digits", "deep list", "deep object", "2 MB"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["adapter_config.json", "alpaca.json"])
def test_json_that_is_none_too_deep_or_too_long(folder: Path, tiny_base: Path, name: str, text: str, said: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(BadAdapter, match=rf"E4002 .*{name} {said}" if said[0] != "a" else said):
        verify_files(folder, tiny_base)


def test_json_that_is_not_utf_8(folder: Path, tiny_base: Path) -> None:
    (folder / "adapter_config.json").write_bytes(b'{"r": "\xff"}')
    with pytest.raises(BadAdapter, match="not valid JSON"):
        verify_files(folder, tiny_base)


def test_a_nan_in_the_file_s_own_spelling(folder: Path, tiny_base: Path) -> None:
    edit_config(folder, lora_alpha=float("nan"))
    with pytest.raises(BadAdapter, match="lora_alpha is 'nan'"):
        verify_files(folder, tiny_base)


WEIGHTS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "a tensor missing": (lambda t: t.pop(some(t)), "lacks 1 of 8 tensors"),
    "no tensors": (lambda t: t.clear(), "lacks 8 of 8 tensors"),
    "a tensor too many": (lambda t: t.update(extra=torch.zeros(1)), "has a tensor 'extra'"),
    "embeddings": (lambda t: t.update({"base_model.model.embed_tokens.weight": torch.zeros(2, 2)}), "has a tensor"),
    "another rank": (lambda t: t.update({some(t): torch.zeros(5, 64)}), "has shape (5, 64), the base needs (4, 64)"),
    "another width": (lambda t: t.update({some(t): torch.zeros(4, 65)}), "the base needs (4, 64)"),
    "transposed": (lambda t: t.update({some(t): torch.zeros(64, 4)}), "the base needs (4, 64)"),
    "whole numbers": (lambda t: t.update({some(t): torch.zeros(4, 64, dtype=torch.int64)}), "is I64"),
    "doubles": (lambda t: t.update({some(t): torch.zeros(4, 64, dtype=torch.float64)}), "is F64"),
}  # fmt: skip


@pytest.mark.parametrize("fault", WEIGHTS)
def test_tensors_that_do_not_fit_the_base(folder: Path, tiny_base: Path, fault: str) -> None:
    change, said = WEIGHTS[fault]
    edit_weights(folder, change)
    with pytest.raises(BadAdapter) as refused:
        verify_files(folder, tiny_base)
    assert said in str(refused.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite(folder: Path, tiny_base: Path, value: float) -> None:
    edit_weights(folder, lambda t: t[some(t)].view(-1)[7].fill_(value))
    files = verify_files(folder, tiny_base)
    with pytest.raises(BadAdapter, match=r"lora_A\.weight holds values that are not finite"):
        load_tensors(files)


def spoil_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    change(header)
    spoilt = json.dumps(header).encode()
    path.write_bytes(len(spoilt).to_bytes(8, "little") + spoilt + data[8 + size :])


HEADERS: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut in the header": lambda path: path.write_bytes(path.read_bytes()[:40]),
    "cut in the data": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "a byte too many": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "a header of 2**63 bytes": lambda path: path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:]),
    "a list": lambda path: path.write_bytes((2).to_bytes(8, "little") + b"[]"),
    "offsets of another size": lambda path: spoil_header(path, lambda h: h[some(h)].update(data_offsets=[0, 4])),
    "offsets backwards": lambda path: spoil_header(path, lambda h: h[some(h)].update(data_offsets=[64, 0])),
    "negative offsets": lambda path: spoil_header(path, lambda h: h[some(h)].update(data_offsets=[-64, 960])),
    "offsets that overlap": lambda path: spoil_header(
        path, lambda h: h[some(h)].update(data_offsets=h[some(h, "lora_B")]["data_offsets"])
    ),
    "offsets that are text": lambda path: spoil_header(path, lambda h: h[some(h)].update(data_offsets=["a", "b"])),
    "no dtype": lambda path: spoil_header(path, lambda h: h[some(h)].pop("dtype")),
    "a shape that is text": lambda path: spoil_header(path, lambda h: h[some(h)].update(shape="ab")),
    "an entry that is a number": lambda path: spoil_header(path, lambda h: h.update({some(h): 5})),
}  # fmt: skip


@pytest.mark.parametrize("fault", HEADERS)
def test_a_damaged_weights_file(folder: Path, tiny_base: Path, fault: str) -> None:
    HEADERS[fault](folder / "adapter_model.safetensors")
    with pytest.raises(BadAdapter, match=r"^E4002"):
        load_tensors(verify_files(folder, tiny_base))


@given(st.integers(0, 10**9), st.integers(0, 255))
def test_one_changed_byte_never_does_more_than_be_refused(
    original: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory, position: int, byte: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "one-byte"
    shutil.copytree(original, folder, dirs_exist_ok=True)
    path = folder / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[position % min(len(data), 1600)] = byte  # the header and a little more
    path.write_bytes(data)
    try:
        load_tensors(verify_files(folder, tiny_base))
    except AdapterError as refused:
        assert refused.code in ("E4001", "E4002")


def test_links_are_followed_as_the_hub_s_cache_has_them(folder: Path, tiny_base: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in folder.iterdir():
        (linked / path.name).symlink_to(path)
    verify_files(linked, tiny_base)
    (linked / "adapter_model.safetensors").unlink()
    (linked / "adapter_model.safetensors").symlink_to(tmp_path / "nowhere")
    with pytest.raises(AdapterNotFound):
        verify_files(linked, tiny_base)


def test_a_folder_in_place_of_a_file(folder: Path, tiny_base: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.safetensors").mkdir()
    with pytest.raises(AdapterNotFound):
        verify_files(folder, tiny_base)


# --- the base it belongs to ---------------------------------------------------------------------------------------
def test_an_adapter_with_a_card_is_tied_to_its_base(folder: Path, tiny_base: Path, tmp_path: Path) -> None:
    write_card(tiny_base, folder, "alpaca")
    card = verify_files(folder, tiny_base).card
    assert card is not None and card.template["name"] == "alpaca"
    from tests.conftest import make_base

    other = make_base(tmp_path / "other", seed=99)
    with pytest.raises(WrongBase, match=r"^E4003 WrongBase") as refused:
        verify_files(folder, other)
    assert fingerprint(tiny_base) in str(refused.value) and fingerprint(other) in str(refused.value)


def test_without_a_card_the_shapes_decide(folder: Path, tiny_mha_base: Path) -> None:
    with pytest.raises(BadAdapter, match="the base needs"):
        verify_files(folder, tiny_mha_base)


def test_a_target_that_the_base_lacks(folder: Path, tiny_base: Path) -> None:
    for target in ("c_attn", "embed_tokens", "lm_head", "norm"):
        edit_config(folder, target_modules=["q_proj", "v_proj", target])
        with pytest.raises(BadAdapter, match=f"names '{target}', which tiny does not have"):
            verify_files(folder, tiny_base)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": 2}, "format '2'; this version reads format 1"),
        ({"template": "alpaca"}, "template must be dict, not str"),
        ({"base_fingerprint": None}, "base_fingerprint must be str"),
        ({"special_tokens": []}, "special_tokens must be dict"),
    ],
)
def test_a_damaged_card(folder: Path, tiny_base: Path, changes: dict[str, Any], said: str) -> None:
    write_card(tiny_base, folder, "alpaca")
    card = json.loads((folder / "alpaca.json").read_text())
    (folder / "alpaca.json").write_text(json.dumps(card | changes))
    with pytest.raises(BadAdapter, match=said):
        verify_files(folder, tiny_base)


def test_a_card_comes_back_as_written(tmp_path: Path) -> None:
    card = Card("b", "f" * 16, {"name": "模板"}, {"bos": None}, losses={"validation_after": 1.5}, created="now")
    card.write(tmp_path)
    assert read_card(tmp_path) == card
    assert read_card(tmp_path / "nowhere") is None
    assert "模板" in (tmp_path / "alpaca.json").read_text(encoding="utf-8")


# --- loading ------------------------------------------------------------------------------------------------------
IDS = torch.arange(5, 45).reshape(2, 20)


@torch.no_grad()
def assert_logits_equal_peft(folder: Path, base: Path) -> None:
    ours = load_adapter(load_model(base, "fp32", CPU), verify_files(folder, base))
    theirs = PeftModel.from_pretrained(load_model(base, "fp32", CPU), str(folder)).eval()
    bare = load_model(base, "fp32", CPU)(input_ids=IDS).logits
    torch.testing.assert_close(ours(input_ids=IDS).logits, theirs(input_ids=IDS).logits, atol=1e-5, rtol=1e-5)
    assert (ours(input_ids=IDS).logits - bare).abs().max() > 0.1
    assert not any(p.requires_grad for p in ours.parameters())


@pytest.mark.parametrize("lora", [{}, {"use_dora": True}, {"use_rslora": True}, {"target_modules": ALL}], ids=str)
def test_a_loaded_adapter_computes_what_peft_does(tiny_base: Path, tmp_path: Path, lora: dict[str, Any]) -> None:
    assert_logits_equal_peft(make_adapter(tiny_base, tmp_path / "a", **lora), tiny_base)


def test_an_untied_head_may_be_adapted(tiny_mha_base: Path, tmp_path: Path) -> None:
    """Without the copy of the base's head that PEFT saves along: what an adapter brings is LoRA and nothing else."""
    folder = make_adapter(tiny_mha_base, tmp_path / "a", target_modules=["lm_head"])
    with pytest.raises(BadAdapter, match=r"lm_head.base_layer.weight"):
        verify_files(folder, tiny_mha_base)
    edit_weights(folder, lambda tensors: tensors.pop("base_model.model.lm_head.base_layer.weight"))
    assert_logits_equal_peft(folder, tiny_mha_base)


@torch.no_grad()
def test_several_adapters_on_one_base(tiny_base: Path, folder: Path, tmp_path: Path) -> None:
    other = make_adapter(tiny_base, tmp_path / "b", seed=5, r=2)
    alone = [load_adapter(load_model(tiny_base, "fp32", CPU), verify_files(f, tiny_base))(input_ids=IDS).logits
             for f in (folder, other)]  # fmt: skip
    both: Any = load_adapter(load_model(tiny_base, "fp32", CPU), verify_files(folder, tiny_base), name="a")
    load_adapter(both, verify_files(other, tiny_base), name="b")
    for name, wanted in zip("ab", alone, strict=True):
        both.set_adapter(name)
        torch.testing.assert_close(both(input_ids=IDS).logits, wanted, atol=1e-5, rtol=1e-5)
