"""Meta's format: the way there and back gives the same bytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from alpaca.convert.base_folder import convert
from alpaca.convert.find import find_origin
from alpaca.convert.params import read_params
from alpaca.errors import ExportRefused
from alpaca.export.meta import params_of
from tests.conftest import all_but_long
from tests.convert.meta_model import LLAMA_1, LLAMA_3, random_weights, write_checkpoint
from tests.export.conftest import Export


@pytest.mark.parametrize("dtype", all_but_long([torch.bfloat16, torch.float16, torch.float32], torch.bfloat16))
@pytest.mark.parametrize(("params", "vocab", "kind"), [(LLAMA_1, 500, "sentencepiece"), (LLAMA_3, 664, "tiktoken")])
def test_a_converted_checkpoint_comes_back_byte_for_byte(
    params: dict[str, object], vocab: int, kind: str, dtype: torch.dtype, tmp_path: Path, out: Export,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    source = tmp_path / "in" / "7B"
    write_checkpoint(source, params, random_weights(params, vocab), dtype=dtype)
    shutil.copyfile(request.getfixturevalue(f"{kind}_file"), source / "tokenizer.model")
    base = convert(find_origin(source.parent, "7B", family=None, instruct=False), tmp_path / "bases")
    shutil.copyfile(source / "tokenizer.model", base / "tokenizer.model")
    folder, proofs = out("meta", base=str(base))
    before, after = (torch.load(place / "consolidated.00.pth") for place in (source, folder))
    before.pop("rope.freqs")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and torch.equal(tensor, after[name]), name
    assert (folder / "tokenizer.model").read_bytes() == (source / "tokenizer.model").read_bytes()
    ours, theirs = read_params(source / "params.json"), read_params(folder / "params.json")
    assert (ours.hidden, ours.kv_heads, ours.rope_theta) == (theirs.hidden, theirs.kv_heads, theirs.rope_theta)
    assert proofs[0].checks[0]["good"]


def test_metas_own_code_computes_the_same(tiny_base: Path, adapters: Path, out: Export) -> None:
    """The checkpoint in Meta's complex rotary form, written down independently, against the adapter's logits."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from tests.convert.meta_model import forward

    folder, _ = out("meta", adapters / "patterns", dtype="fp32")
    params = json.loads((folder / "params.json").read_text())
    ids = [1, 40, 77, 130, 256, 300, 12, 5]
    theirs = forward(params, torch.load(folder / "consolidated.00.pth"), torch.tensor(ids))
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), adapters / "patterns")
    with torch.no_grad():
        ours = model(input_ids=torch.tensor([ids])).logits[0]
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("dim", "hidden"), [(4096, 11008), (8192, 22016), (8192, 28672), (4096, 14336), (2048, 8192), (576, 1536), (64, 99)]
)
def test_params_lead_to_the_width_of_the_feed_forward_layers(dim: int, hidden: int) -> None:
    config = {
        "model_type": "llama", "hidden_size": dim, "num_attention_heads": 4, "num_hidden_layers": 2,
        "intermediate_size": hidden, "rms_norm_eps": 1e-5, "vocab_size": 100,
    }  # fmt: skip
    params = params_of(config)
    assert params.hidden == hidden
    assert params.ffn_dim_multiplier is None or hidden not in (11008, 22016, 1536)


def test_what_metas_format_has_no_place_for_is_refused() -> None:
    config = {"model_type": "mistral", "hidden_size": 64, "num_attention_heads": 4}
    with pytest.raises(ExportRefused, match="mistral"):
        params_of(config)
    with pytest.raises(ExportRefused, match="heads are 32 wide"):
        params_of(config | {"model_type": "llama", "head_dim": 32})
