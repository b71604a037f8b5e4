"""The base: found or refused with what there is, known again by its fingerprint, held in a precision with a reason."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from alpaca.base import precision as precision_module
from alpaca.base.find import bases_in, resolve_base
from alpaca.base.headers import count_weights, fingerprint
from alpaca.base.load import load_model, load_tokenizer
from alpaca.base.precision import choose_precision, weight_bytes
from alpaca.errors import BadBase, BaseNotFound, PrecisionUnavailable, SeveralBases
from tests.conftest import make_base, make_tokenizer

CPU = torch.device("cpu")


@pytest.fixture
def copy(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "weights" / "tiny"))


@pytest.fixture(autouse=True)
def no_base_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BASE_MODEL", raising=False)


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(str(folder / "model.safetensors"))
    change(tensors)
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})


# --- find ---------------------------------------------------------------------------------------------------------
def test_the_only_base_is_found(copy: Path) -> None:
    (copy.parent / "README.md").write_text("not a base")
    (copy.parent / "tokenizer").mkdir()
    assert resolve_base(None, copy.parent) == copy
    assert resolve_base("", copy.parent) == copy


def test_a_base_by_folder_by_name_and_by_variable(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(copy, copy.parent / "other")
    assert resolve_base(str(copy), copy.parent / "nowhere") == copy
    assert resolve_base("tiny", copy.parent) == copy
    monkeypatch.setenv("BASE_MODEL", "other")
    assert resolve_base(None, copy.parent) == copy.parent / "other"
    assert resolve_base("tiny", copy.parent) == copy


def test_what_cog_train_writes_into_weights_is_never_taken_for_a_base(copy: Path) -> None:
    shutil.copytree(copy, copy.parent / "output")
    assert bases_in(copy.parent) == [copy]
    assert resolve_base(None, copy.parent) == copy


def test_several_bases_are_listed_with_what_to_type(copy: Path) -> None:
    shutil.copytree(copy, copy.parent / "other")
    with pytest.raises(SeveralBases, match=r"^E3002 SeveralBases: .*holds several bases: other, tiny") as refused:
        resolve_base(None, copy.parent)
    assert f"--base_model {copy.parent / 'other'}" in str(refused.value)


@pytest.mark.parametrize("exists", [True, False])
def test_no_base_says_how_to_get_one(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "weights"
    if exists:
        folder.mkdir()
    with pytest.raises(BaseNotFound, match=r"^E3001 BaseNotFound: there is no base in") as refused:
        resolve_base(None, folder)
    assert "alpaca.convert" in str(refused.value) and "make " in str(refused.value)


@pytest.mark.parametrize("name", ["no-such-base", "no/such/base", "./nowhere", "../up", "/nowhere/at/all"])
def test_an_unknown_name_lists_what_there_is(copy: Path, name: str) -> None:
    with pytest.raises(BaseNotFound, match=f"no base '{name}'") as refused:
        resolve_base(name, copy.parent)
    assert f"There is: {copy}." in str(refused.value)


def test_a_hub_id_that_cannot_be_fetched(copy: Path) -> None:
    with pytest.raises(BaseNotFound, match="'nobody/nothing' is no local folder and could not be fetched") as refused:
        resolve_base("nobody/nothing", copy.parent)
    assert "\n" not in str(refused.value)


def test_a_name_that_is_nearly_right_is_answered_with_the_right_one(copy: Path) -> None:
    smol = copy.rename(copy.with_name("smollm2-135m-instruct"))
    for asked in ("smollm2", "SmolLM2", "smolm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"):
        with pytest.raises(BaseNotFound, match=rf"\. Did you mean {re.escape(str(smol))}\? There is: "):
            resolve_base(asked, copy.parent)
    with pytest.raises(BaseNotFound) as refused:
        resolve_base("mistral", copy.parent)
    assert "Did you mean" not in str(refused.value)


def test_an_id_of_alpaca_lora_s_times_is_answered_with_what_it_is_called_now(copy: Path) -> None:
    with pytest.raises(BaseNotFound, match="the same weights are there as huggyllama/llama-7b") as refused:
        resolve_base("decapoda-research/llama-7b-hf", copy.parent)
    assert "can't be reached from here (no network, or HF_HUB_OFFLINE is set)" in str(refused.value)


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def index(content: str) -> Callable[[Path], object]:
    def shard(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
        (folder / "model.safetensors.index.json").write_text(content)

    return shard


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no configuration": (remove("config.json"), "has no config.json"),
    "configuration cut": (lambda f: (f / "config.json").write_text("{"), "config.json is not valid JSON"),
    "configuration a list": (lambda f: (f / "config.json").write_text("[]"), "holds a list, not an object"),
    "configuration deep": (lambda f: (f / "config.json").write_text("[" * 100_000), "config.json is not valid JSON"),
    "configuration not text": (lambda f: (f / "config.json").write_bytes(b"\xff"), "config.json is not valid JSON"),
    "no weights": (remove("model.safetensors"), "has no *.safetensors weights"),
    "pickled only": (pickle_only, "pytorch_model.bin is pickled, which can run code: convert it first"),
    "no tokenizer": (remove("tokenizer.json"), "has no tokenizer"),
    "a shard missing": (
        index('{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}'),
        "lacks 1 of 2 shards: model-2.safetensors",
    ),
    "index cut": (index("{"), "index.json"),
    "index without a map": (index("{}"), "index.json"),
    "index a list": (index("[]"), "index.json"),
    "index of nothing": (index('{"weight_map": {}}'), "index.json is no index of shards"),
    "index that leads elsewhere": (index('{"weight_map": {"a": "../m.safetensors"}}'), "not safetensors files beside"),
    "weights of another layout": (
        lambda f: (f / "model.safetensors").rename(f / "consolidated.safetensors"),
        "neither model.safetensors nor model.safetensors.index.json (consolidated.safetensors is a file that",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_folder_that_is_no_usable_base(copy: Path, fault: str) -> None:
    spoil, said = BROKEN[fault]
    spoil(copy)
    with pytest.raises(BadBase, match=r"^E3003 BadBase") as refused:
        resolve_base(str(copy), copy.parent)
    assert said in str(refused.value)


HEADERS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut in the header": lambda data: data[:50],
    "cut in the data": lambda data: data[:-100],
    "a header of 2**62 bytes": lambda data: (2**62).to_bytes(8, "little") + data[8:],
    "no JSON": lambda data: data[:8] + b"x" + data[9:],
    "not safetensors": lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
}


@pytest.mark.parametrize("fault", HEADERS)
def test_damaged_weights_are_found_by_their_header(copy: Path, fault: str) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(HEADERS[fault](path.read_bytes()))
    for look in (fingerprint, count_weights):
        with pytest.raises(BadBase, match="is not a whole safetensors file"):
            look(copy)


# --- weights that are there twice ---------------------------------------------------------------------------------
def consolidated(folder: Path) -> None:
    """A second copy under the names of the original release."""
    tensors = load_file(str(folder / "model.safetensors"))
    save_file({f"layers.{name}": tensor for name, tensor in tensors.items()}, folder / "consolidated.safetensors")


def left_over_shards(folder: Path) -> None:
    """transformers takes model.safetensors and never looks at an index beside it."""
    save_file({"model.norm.weight": torch.zeros(64)}, folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}'
    )


@pytest.mark.parametrize("second", [consolidated, left_over_shards])
def test_only_the_weights_that_are_loaded_count(copy: Path, tiny_base: Path, second: Callable[[Path], object]) -> None:
    second(copy)
    assert resolve_base(str(copy)) == copy
    assert fingerprint(copy) == fingerprint(tiny_base)
    assert count_weights(copy) == count_weights(tiny_base)
    assert weight_bytes(copy, "bf16") == weight_bytes(tiny_base, "bf16")
    loaded = load_model(copy, "fp32", CPU).state_dict()
    for name, tensor in load_model(tiny_base, "fp32", CPU).state_dict().items():
        torch.testing.assert_close(loaded[name], tensor, atol=0, rtol=0)


# --- quantised already --------------------------------------------------------------------------------------------
QUANTISED: dict[str, tuple[dict[str, Any], str]] = {
    "GPTQ": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "(GPTQ)"),
    "AWQ": ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "(AWQ)"),
    "bitsandbytes 4-bit": (
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}},
        "(bitsandbytes 4-bit)",
    ),
    "bitsandbytes 8-bit": (
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "(bitsandbytes 8-bit)"
    ),
    "FP8": ({"quantization_config": {"quant_method": "fp8"}}, "(FP8)"),
    "compressed tensors": ({"quantization_config": {"quant_method": "compressed-tensors"}}, "(compressed-tensors)"),
    "compressed tensors, older": ({"compression_config": {"format": "int"}}, "(an unnamed method)"),
    "MLX": ({"quantization": {"group_size": 64, "bits": 4}}, "(an unnamed method)"),
    "a list": ({"quantization_config": [4]}, "(an unnamed method)"),
}  # fmt: skip


@pytest.mark.parametrize("kind", QUANTISED)
def test_a_base_that_is_quantised_already_is_refused_with_what_to_take(copy: Path, kind: str) -> None:
    changes, said = QUANTISED[kind]
    edit_json(copy / "config.json", **changes)
    with pytest.raises(BadBase, match=r"^E3003 .* is quantised already") as refused:
        resolve_base(str(copy))
    assert said in str(refused.value)
    assert "Take the base that it was made from" in str(refused.value) and "nf4 or int8" in str(refused.value)


def test_a_quantised_base_whose_configuration_does_not_say_so_is_refused_as_well(copy: Path) -> None:
    """GPTQ's first releases keep it in quantize_config.json; their matrices are packed into whole numbers."""
    packed = {"model.layers.0.mlp.up_proj.qweight": torch.zeros(8, 128, dtype=torch.int32)}
    edit_weights(copy, lambda tensors: tensors.update(packed))
    with pytest.raises(BadBase, match=r"quantised already \(model.layers.0.mlp.up_proj.qweight is I32\)"):
        resolve_base(str(copy))


def test_a_quantisation_of_nothing_is_none(copy: Path) -> None:
    edit_json(copy / "config.json", quantization_config=None)
    assert resolve_base(str(copy)) == copy


# --- fingerprint --------------------------------------------------------------------------------------------------
def test_the_same_however_it_is_sharded_and_copied(tiny_mha_base: Path, tmp_path: Path) -> None:
    wanted = fingerprint(tiny_mha_base)
    assert len(wanted) == 16
    model = AutoModelForCausalLM.from_pretrained(tiny_mha_base, dtype=torch.float32)
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    make_tokenizer(chat=False).save_pretrained(tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert fingerprint(tmp_path / "shards") == wanted
    assert resolve_base(str(tmp_path / "shards")) == tmp_path / "shards"


def test_the_same_with_and_without_a_copy_of_the_tied_head(copy: Path, tiny_base: Path) -> None:
    edit_weights(copy, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert fingerprint(copy) == fingerprint(tiny_base)


def test_another_with_a_head_that_is_said_to_be_tied_and_is_not(copy: Path, tiny_base: Path) -> None:
    """As merging an adapter with a head of its own leaves it: transformers computes with the head that lies there."""
    edit_weights(copy, lambda t: t.update({"lm_head.weight": -t["model.embed_tokens.weight"]}))
    model, original = load_model(copy, "fp32", CPU), load_model(tiny_base, "fp32", CPU)
    tokens = torch.arange(5, 9)[None]
    assert torch.equal(model(tokens).logits, -original(tokens).logits)
    assert fingerprint(copy) != fingerprint(tiny_base)


def test_the_same_whatever_wrote_the_configuration(copy: Path, tiny_base: Path) -> None:
    edit_json(copy / "config.json", transformers_version="9.9", _name_or_path="/elsewhere", use_cache=False)
    (copy / "README.md").write_text("a copy")
    assert fingerprint(copy) == fingerprint(tiny_base)


def nudge(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.1.mlp.up_proj.weight"].add_(1e-3)


OTHERS: dict[str, Callable[[Path], object]] = {
    "other weights": lambda f: edit_weights(f, nudge),
    "another dtype": lambda f: edit_weights(f, lambda t: t.update({n: w.bfloat16() for n, w in t.items()})),
    "another rope": lambda f: edit_json(f / "config.json", rope_parameters={"rope_theta": 5.0, "rope_type": "default"}),
    "another token": lambda f: edit_json(
        f / "tokenizer.json",
        added_tokens=[
            {**t, "content": t["content"] + "!"} for t in json.loads((f / "tokenizer.json").read_text())["added_tokens"]
        ],
    ),
}


@pytest.mark.parametrize("change", OTHERS)
def test_another_base_of_the_same_shape_is_another(copy: Path, tiny_base: Path, change: str) -> None:
    OTHERS[change](copy)
    assert fingerprint(copy) != fingerprint(tiny_base)


def test_another_seed_is_another(tiny_base: Path, tmp_path: Path) -> None:
    assert fingerprint(make_base(tmp_path / "other", seed=5)) != fingerprint(tiny_base)
    assert fingerprint(make_base(tmp_path / "same", seed=0)) == fingerprint(tiny_base)


# --- precision ----------------------------------------------------------------------------------------------------
def test_a_precision_asked_for_is_taken(tiny_base: Path) -> None:
    for name in ("bf16", "fp32", "int8", "nf4"):
        assert choose_precision(tiny_base, name, CPU).precision == name
    assert choose_precision(tiny_base, "fp32", CPU).reason == "as asked"
    with pytest.raises(PrecisionUnavailable, match=r"^E3004 .*'fp8' is not known: choose auto, bf16, fp32, int8, nf4"):
        choose_precision(tiny_base, "fp8", CPU)


def test_auto_takes_the_widest_that_fits_and_says_why(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native = precision_module.native_precision(CPU)
    wide, eight = weight_bytes(tiny_base, native), weight_bytes(tiny_base, "int8")
    for free, training, wanted in [
        (wide / 0.6 * 1.01, True, native), (wide / 0.8 * 1.01, False, native), (wide / 0.6 * 0.99, True, "int8"),
        (eight / 0.6 * 0.99, True, "nf4"), (eight / 0.8 * 1.01, False, "int8"),
    ]:  # fmt: skip
        monkeypatch.setattr(precision_module, "free_memory", lambda device, free=free: int(free))
        choice = choose_precision(tiny_base, "auto", CPU, training=training)
        assert choice.precision == wanted
        assert "M weights take" in choice.reason and "GB free on the CPU" in choice.reason
        assert ("a wider precision does not fit" in choice.reason) == (wanted in ("int8", "nf4"))
    monkeypatch.setattr(precision_module, "free_memory", lambda device: int(eight / 10))
    with pytest.raises(PrecisionUnavailable, match=r"even nf4 takes .* Free some memory or take a smaller base"):
        choose_precision(tiny_base, "auto", CPU)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "nf4"])
def test_the_weights_take_what_was_reckoned(tiny_mha_base: Path, precision: str) -> None:
    """Untied head and embeddings are half of this base, and are not quantised."""
    model = load_model(tiny_mha_base, precision, CPU)
    taken = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    tables = 0.15 if precision == "nf4" else 0.03  # of a fixed size: they show on so small a base
    assert weight_bytes(tiny_mha_base, precision) == pytest.approx(taken, rel=tables)


def test_a_name_too_long_for_a_folder_is_no_base(tmp_path: Path) -> None:
    with pytest.raises(BaseNotFound) as caught:
        resolve_base("x" * 5000, tmp_path)
    assert len(str(caught.value)) < 1000


def test_weights_that_were_cut_short_are_found_before_they_are_loaded(tiny_base: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_base, copy)
    with (copy / "model.safetensors").open("r+b") as file:
        file.truncate((copy / "model.safetensors").stat().st_size - 1)
    with pytest.raises(BadBase, match="cut short"):
        resolve_base(str(copy))


# --- load ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "nf4"])
def test_a_base_is_loaded_frozen_and_computes_what_it_should(tiny_base: Path, precision: str) -> None:
    """Against the fp32 model; int8 and nf4 weights of a tiny random base are off by up to 3 and 30 %."""
    model = load_model(tiny_base, precision, CPU)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    ids = torch.arange(4, 40)[None]
    with torch.no_grad():
        wanted = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)(input_ids=ids).logits
        got = model(input_ids=ids).logits.float()
    tolerance = {"fp32": 1e-5, "bf16": 0.03, "int8": 0.06, "nf4": 0.5}[precision]
    assert ((got - wanted).norm() / wanted.norm()).item() < tolerance


def test_a_base_that_lacks_a_tensor_is_no_base(copy: Path) -> None:
    """transformers would fill it with random numbers and go on."""
    edit_weights(copy, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(BadBase, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(copy, "fp32", CPU)


def test_a_tensor_of_another_shape_is_no_base(copy: Path) -> None:
    edit_weights(copy, lambda t: t.update({"model.layers.1.mlp.up_proj.weight": torch.zeros(3, 3)}))
    with pytest.raises(BadBase, match=r"up_proj\.weight has shape \(3, 3\), its config.json says \(128, 64\)"):
        load_model(copy, "fp32", CPU)


def test_an_unknown_architecture_is_no_base(copy: Path) -> None:
    edit_json(copy / "config.json", model_type="no-such-model")
    with pytest.raises(BadBase, match="can't be loaded"):
        load_model(copy, "fp32", CPU)


def test_a_tokenizer_is_checked(copy: Path) -> None:
    assert load_tokenizer(copy).eos_token_id == 2
    edit_json(copy / "config.json", vocab_size=2)
    with pytest.raises(BadBase, match="eos_token_id 2 lies outside the model's 2 embeddings"):
        load_tokenizer(copy)


def test_a_tokenizer_without_eos_is_refused(copy: Path) -> None:
    edit_json(copy / "tokenizer_config.json", eos_token=None)
    with pytest.raises(BadBase, match="has no EOS token: answers could never end"):
        load_tokenizer(copy)


def test_a_damaged_tokenizer_is_refused(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(BadBase, match="can't be loaded"):
        load_tokenizer(copy)
