"""Adapters from strangers: what a configuration or a weights file may not do, and what a good one does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel

from alpaca.adapter.card import Card, check_special_tokens, read_card
from alpaca.adapter.folder import BaseShape, changed_modules, load_adapter, load_tensors, verify_files
from alpaca.adapter.lora_config import parse_config
from alpaca.base.headers import fingerprint
from alpaca.base.load import load_model, load_tokenizer
from alpaca.errors import AdapterChanged, AdapterError, AdapterNotFound, BadAdapter, WrongBase
from tests.serving.hostile.tensors import edit_weights
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


# --- the configuration --------------------------------------------------------------------------------------------
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
        "auto_mapping": {"base_model_class": "X", "parent_library": "transformers.models.llama.modeling_llama"},
    }  # fmt: skip
    spec = parse_config({**GOOD, **harmless})
    assert (spec.r, spec.lora_alpha, spec.target_modules) == (4, 8, ("q_proj",))


def test_an_adapter_that_eva_began_is_plain_lora(tiny_base: Path, tmp_path: Path) -> None:
    """How A was chosen from the data is noted in its configuration, and changes nothing in what is there now."""
    folder = make_adapter(tiny_base, tmp_path / "eva", init_lora_weights="eva")
    assert json.loads((folder / "adapter_config.json").read_text())["eva_config"]
    assert verify_files(folder, tiny_base).spec.r == 4


def test_an_adapter_with_whole_layers_of_its_own_says_what_to_do(tiny_mha_base: Path, tmp_path: Path) -> None:
    folder = make_adapter(tiny_mha_base, tmp_path / "whole", modules_to_save=["lm_head"])
    with pytest.raises(BadAdapter, match=r"modules_to_save is .*'lm_head'.* only LoRA is served. Merge it"):
        verify_files(folder, tiny_mha_base)


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


def test_tensors_are_read_only_from_the_files_that_were_checked(folder: Path, tiny_base: Path) -> None:
    files = verify_files(folder, tiny_base)
    tensors = load_tensors(files)
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    weights = bytearray(files.weights.read_bytes())
    weights[-1000:] = bytes(1000)
    files.weights.write_bytes(weights)
    assert files.changed()
    assert all(torch.equal(tensors[name], copies[name]) for name in copies)  # they were read, not mapped
    with pytest.raises(AdapterChanged, match=r"^E4007 .*was changed after it was checked"):
        load_tensors(files)
    shutil.rmtree(folder)
    with pytest.raises(AdapterChanged, match="can't be read any more"):
        load_tensors(files)


def test_a_changed_card_or_configuration_counts_as_well(folder: Path, tiny_base: Path) -> None:
    files = verify_files(folder, tiny_base)
    assert not files.changed()
    write_card(tiny_base, folder, "alpaca")
    assert files.changed()
    files = verify_files(folder, tiny_base)
    edit_config(folder, lora_alpha=16, revision="x")
    assert files.changed()


def test_patterns_that_name_no_module_of_it_are_dropped(folder: Path, tiny_base: Path) -> None:
    edit_config(folder, rank_pattern={"k_proj": 9, "v_proj": 4}, alpha_pattern={"layers.7.self_attn.q_proj": 1})
    spec = verify_files(folder, tiny_base).spec
    assert (spec.rank_pattern, spec.alpha_pattern) == ({"v_proj": 4}, {})


def test_a_base_is_read_once_for_many_adapters(folder: Path, tiny_base: Path, tmp_path: Path) -> None:
    write_card(tiny_base, folder, "alpaca")
    shutil.copytree(tiny_base, tmp_path / "base")
    shape = BaseShape(tmp_path / "base")
    first = verify_files(folder, shape)
    shutil.rmtree(tmp_path / "base")
    assert verify_files(folder, shape) == first


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


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ({"eos": 2, "bos": 1, "pad": 77}, ""),
        ({}, ""),
        ({"eos": 3}, "EOS 3, .* EOS 2"),
        ({"bos": None}, "BOS None, .* BOS 1"),
    ],
    ids=str,
)
def test_an_adapter_with_other_special_tokens_belongs_elsewhere(
    tiny_base: Path, tokens: dict[str, int | None], said: str
) -> None:
    """Which pad was used is of no concern to who uses the adapter."""
    card, tokenizer = Card("b", "f", {}, tokens), load_tokenizer(tiny_base)
    if said:
        with pytest.raises(WrongBase, match=said):
            check_special_tokens(card, tokenizer)
    else:
        check_special_tokens(card, tokenizer)


def test_without_a_card_the_shapes_decide(folder: Path, tiny_mha_base: Path) -> None:
    with pytest.raises(BadAdapter, match="the base needs"):
        verify_files(folder, tiny_mha_base)


def test_a_target_that_the_base_lacks(folder: Path, tiny_base: Path) -> None:
    said = {
        "c_attn": "names 'c_attn', which tiny does not have", "norm": "names 'norm', which tiny does not have",
        "embed_tokens": "names 'embed_tokens': LoRA on the embeddings is not served",
        "lm_head": "names 'lm_head': the head of tiny is tied to its embeddings and can't be adapted alone",
    }  # fmt: skip
    for target, reason in said.items():
        edit_config(folder, target_modules=["q_proj", "v_proj", target])
        with pytest.raises(BadAdapter, match=reason):
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
    folder = make_adapter(tiny_mha_base, tmp_path / "a", target_modules=["lm_head"])
    assert_logits_equal_peft(folder, tiny_mha_base)


COPY = "base_model.model.lm_head.base_layer.weight"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_copy_of_the_head_that_peft_saves_by_default_is_passed_over(
    tiny_mha_base: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    """An adapter may have been trained in another precision than the base is kept in."""
    folder = make_adapter(tiny_mha_base, tmp_path / "a", target_modules=["lm_head"], copy_of_head=True)
    edit_weights(folder, lambda tensors: tensors.update({COPY: tensors[COPY].to(dtype)}))
    files = verify_files(folder, tiny_mha_base)
    assert files.modules == ("lm_head",)
    assert sorted(load_tensors(files)) == [f"base_model.model.lm_head.lora_{side}.weight" for side in "AB"]
    if dtype is torch.float32:
        assert_logits_equal_peft(folder, tiny_mha_base)


HEADS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "of another shape": (lambda head: head[:4, :4].clone(), r"has shape \(4, 4\), the base needs"),
    "with other values": (lambda head: head + 0.1, r"brings a head that is not this base's .* differs in row 0"),
    "whose last rows are others": (
        lambda head: torch.cat([head[:-8], -head[-8:]]), r"not this base's .*differs in row"
    ),
    "that is not finite": (lambda head: head * float("nan"), "not this base's"),
    "in whole numbers": (lambda head: head.to(torch.int8), "is I8; F32, F16 or BF16 is expected"),
}  # fmt: skip


@pytest.mark.parametrize("fault", HEADS)
def test_a_head_that_is_not_the_base_s_own_is_refused(tiny_mha_base: Path, tmp_path: Path, fault: str) -> None:
    """Served on the base's own head, such an adapter would answer otherwise than where it was trained."""
    change, said = HEADS[fault]
    folder = make_adapter(tiny_mha_base, tmp_path / "a", target_modules=["lm_head"], copy_of_head=True)
    edit_weights(folder, lambda tensors: tensors.update({COPY: change(tensors[COPY])}))
    with pytest.raises(BadAdapter, match=said):
        verify_files(folder, tiny_mha_base)


def test_a_head_s_copy_beside_lora_on_other_layers_is_refused(
    folder: Path, tiny_mha_base: Path, tmp_path: Path
) -> None:
    for base, extra in ((tiny_mha_base, COPY), (tiny_mha_base, "base_model.model.model.embed_tokens.weight")):
        adapter = make_adapter(base, tmp_path / extra)
        edit_weights(adapter, lambda tensors, extra=extra: tensors.update({extra: torch.zeros(4, 4)}))
        with pytest.raises(BadAdapter, match=f"has a tensor '{extra}' that its configuration does not name"):
            verify_files(adapter, base)


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
