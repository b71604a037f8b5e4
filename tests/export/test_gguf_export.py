"""GGUF files: read back by the converter, in every type; tokenizers of every kind; what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from alpaca.convert import bpe
from alpaca.convert.base_folder import convert
from alpaca.convert.family import FAMILIES
from alpaca.convert.gguf_model import GgufOrigin
from alpaca.convert.sentencepiece_model import SentencepieceModel
from alpaca.convert.tiktoken_model import TiktokenModel
from alpaca.errors import BadSetting, ExportRefused
from alpaca.export.base_gguf import write_gguf
from alpaca.export.gguf_tensors import TYPES
from alpaca.export.gguf_vocabulary import vocabulary
from alpaca.export.read_back import read_adapter
from tests.export.conftest import Export, of

# How far a weight may be from what was written, as a share of the largest of its row.
NEAR = {"F32": 0, "F16": 1e-3, "BF16": 4e-3, "Q8_0": 5e-3, "Q5_1": 0.04, "Q5_0": 0.07, "Q4_1": 0.08, "Q4_0": 0.13}


@pytest.mark.parametrize("kind", TYPES)
def test_a_file_read_back_holds_the_merged_weights(tiny_mha_base: Path, tmp_path: Path, kind: str) -> None:
    model = of(tiny_mha_base)
    write_gguf(model, tmp_path / f"tiny-{kind}.gguf", kind)
    origin = GgufOrigin(tmp_path / f"tiny-{kind}.gguf", "F32")
    for plan, tensor in zip(origin.plans, origin.tensors(origin.plans), strict=True):
        expected = model.weights.tensor(plan.name)
        largest = expected.abs().amax(-1, keepdim=True)
        assert ((tensor - expected).abs() <= NEAR[kind] * largest).all(), plan.name
    assert origin.config().rms_norm_eps == 1e-6


def test_what_is_read_back_is_the_same_base(tiny_base: Path, tmp_path: Path) -> None:
    write_gguf(of(tiny_base), tmp_path / "tiny.gguf", "F32")
    folder = convert(GgufOrigin(tmp_path / "tiny.gguf", "F32"), tmp_path)
    before, after = (AutoTokenizer.from_pretrained(place) for place in (tiny_base, folder))
    assert after.get_chat_template() == before.get_chat_template()
    assert (after.bos_token_id, after.eos_token_id, after.pad_token_id) == (1, 2, 3)
    for text in bpe.SAMPLES:
        assert after.encode(text) == before.encode(text)


def tokenizers_of(kind: str, request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    if kind == "sentencepiece":
        model = SentencepieceModel(request.getfixturevalue("sentencepiece_file"))
        return model.convert(FAMILIES["llama-2"], instruct=True)
    tiktoken = TiktokenModel(request.getfixturevalue("tiktoken_file"))
    return tiktoken.convert(FAMILIES["llama-3.1"], instruct=True)


@pytest.mark.parametrize("kind", ["sentencepiece", "tiktoken"])
def test_tokenizers_of_metas_releases_arrive(
    kind: str, tiny_mha_base: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    from tests.conftest import make_base

    tokenizer = tokenizers_of(kind, request)
    base = make_base(tmp_path / "base")
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(base)
    config.vocab_size = len(tokenizer)
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    LlamaForCausalLM(config).save_pretrained(base)
    (base / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(base)
    model = of(base)
    write_gguf(model, tmp_path / "tiny.gguf", "F32")
    folder = convert(GgufOrigin(tmp_path / "tiny.gguf", "F32"), tmp_path)
    after = AutoTokenizer.from_pretrained(folder)
    for text in bpe.SAMPLES:
        assert after.encode(text) == tokenizer.encode(text)
    assert after.encode("a")[0] == tokenizer.bos_token_id


def test_every_turn_end_is_in_the_file(tiny_base: Path) -> None:
    model = of(tiny_base)
    found = vocabulary(model.tokenizer, 512, (2, 0))
    assert found.ends == (2, 0) and found.pre == "gpt-2"


def test_a_tokenizer_that_cuts_text_in_another_way_is_refused(tiny_base: Path) -> None:
    from tokenizers import pre_tokenizers

    model = of(tiny_base)
    model.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    with pytest.raises(ExportRefused, match="cuts text in a way"):
        vocabulary(model.tokenizer, 512, (2,))


def test_llama_3s_rotary_scaling_arrives(tiny_base: Path, tmp_path: Path) -> None:
    import json

    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    config = json.loads((base / "config.json").read_text())
    scaling = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    (base / "config.json").write_text(json.dumps(config | {"rope_parameters": scaling}))
    write_gguf(of(base), tmp_path / "tiny.gguf", "F32")
    assert GgufOrigin(tmp_path / "tiny.gguf").config().rope_parameters == scaling


def test_other_families_and_types_are_refused_with_what_to_do(tiny_base: Path, tmp_path: Path, out: Export) -> None:
    import json

    base = tmp_path / "qwen"
    shutil.copytree(tiny_base, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"model_type": "qwen2"}))
    with pytest.raises(ExportRefused, match="Export `merged`"):
        out("gguf", base=str(base))
    with pytest.raises(BadSetting, match="llama-quantize makes K-quants"):
        out("gguf", outtype="Q4_K_M")


@pytest.mark.parametrize("kind", ["a", "b", "rslora", "patterns"])
def test_an_adapters_file_read_back_is_the_adapter(tiny_base: Path, adapters: Path, tmp_path: Path, kind: str) -> None:
    from alpaca.base.headers import read_config
    from alpaca.export.gguf_lora import write_adapter
    from alpaca.export.portable import portable

    adapter = portable(of(tiny_base, adapters / kind).strengths)
    config = read_config(tiny_base)
    write_adapter(tmp_path / "a.gguf", adapter, config, "a", "F32")
    again = read_adapter(tmp_path / "a.gguf", config)
    assert again.modules.keys() == adapter.modules.keys()
    assert again.rank == adapter.rank and again.alpha == pytest.approx(adapter.alpha)
    for module, pair in adapter.modules.items():
        for ours, theirs in zip(pair, again.modules[module], strict=True):
            assert torch.equal(ours, theirs)
