"""Weights in 8 and 4 bits: how near their products are, for few rows and many, and what an engine makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alpaca.base.load import load_model, load_tokenizer
from alpaca.base.precision import choose_precision
from alpaca.errors import PrecisionUnavailable
from alpaca.serving.composition import BASE_ALONE
from alpaca.serving.decoder import Decoder
from alpaca.serving.inputs import request_from_inputs
from alpaca.serving.limits import EngineLimits
from alpaca.serving.loading import LoadedBase, load_base, open_engine
from alpaca.serving.quantized import FEW, GROUP, QUANTIZED, Int4Weight, Int8Weight, halves_lie_apart
from alpaca.serving.together import answers
from tests.serving.peft_adapters import make_adapter

CPU = torch.device("cpu")
ERROR = {"int8": 0.012, "int4": 0.12}
"""Relative error of a product of random numbers, from above."""


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


@given(st.sampled_from(["int8", "int4"]), st.integers(1, 200), st.integers(1, 150), st.integers(1, 90))
@settings(deadline=None, max_examples=60)
def test_products_are_near_those_of_the_weight_whatever_its_shape(
    bits: str, outputs: int, inputs: int, rows: int
) -> None:
    generator = torch.Generator().manual_seed(outputs * 1000 + inputs)
    weight = torch.randn(outputs, inputs, generator=generator).bfloat16()
    x = torch.randn(rows, inputs, generator=generator).bfloat16()
    y = QUANTIZED[bits](weight).product(x)
    wanted = x.float() @ weight.float().T
    assert y.shape == (rows, outputs) and y.dtype == torch.bfloat16
    limit = ERROR[bits] * x.float().norm() * weight.float().norm() / max(inputs, 1) ** 0.5 * 3
    assert (y.float() - wanted).norm() <= limit


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_few_rows_and_many_see_the_same_weight(bits: str) -> None:
    torch.manual_seed(0)
    weight = QUANTIZED[bits](torch.randn(192, 160).bfloat16())
    x = torch.randn(FEW[bits] + 8, 160).bfloat16()
    many, few = weight.product(x), torch.cat([weight.product(x[n : n + 1]) for n in range(len(x))])
    assert off(many, few) < 0.01


def test_numbers_on_a_grid_of_16_survive_in_4_bits() -> None:
    """So a base that was converted from such a file loses nothing."""
    torch.manual_seed(0)
    numbers = torch.randint(0, 16, (64, 2, GROUP))
    numbers[..., 0], numbers[..., 1] = 0, 15
    weight = (numbers * 0.25 - 2.0).view(64, 2 * GROUP).bfloat16()
    assert torch.equal(Int4Weight(weight).product(torch.eye(2 * GROUP).bfloat16()).t(), weight)


@pytest.mark.parametrize("make", [Int8Weight, Int4Weight])
def test_zeros_and_constants_stay_what_they_are(make: type[Int8Weight | Int4Weight]) -> None:
    for value in (0.0, 1.0, -3.0):
        weight = torch.full((64, 64), value).bfloat16()
        assert torch.allclose(make(weight).product(torch.ones(2, 64).bfloat16()), weight.sum(1), rtol=0.01)


def test_what_is_held_takes_the_bytes_that_are_reckoned_with() -> None:
    weight = torch.randn(512, 1024).bfloat16()
    assert Int8Weight(weight).nbytes == pytest.approx(1.01 * weight.numel(), rel=0.01)
    assert Int4Weight(weight).nbytes == pytest.approx(0.63 * weight.numel(), rel=0.01)


def test_the_order_of_4_bits_is_known_where_there_is_avx512() -> None:
    if "AVX512" in torch.backends.cpu.get_cpu_capability():
        assert halves_lie_apart()
    else:
        assert isinstance(halves_lie_apart(), bool)


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_the_linear_layers_are_empty_once_they_are_taken_over(tiny_mha_base: Path, bits: str) -> None:
    decoder = Decoder(load_model(tiny_mha_base, "bf16", CPU), 16, 64, bits)
    assert all(layer.weight.numel() == 0 for layer in decoder.model.modules() if isinstance(layer, torch.nn.Linear))
    assert len(decoder.embedding)


@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("base", ["tiny_base", "tiny_mha_base"])
def test_an_engine_answers_with_and_without_adapters(
    bits: str, base: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(base)
    adapter = make_adapter(folder, tmp_path / "lora-a", r=4)
    said: list[str] = []
    loaded = load_base(str(folder), bits, say=said.append)
    assert loaded.bits == bits and f"in {bits} on cpu (as asked)" in said[0]
    engine = open_engine(loaded, limits=EngineLimits(roots=(tmp_path,)), say=said.append)
    try:
        requests = [
            request_from_inputs(prompt="hay " * length, adapter=name, temperature=0.0, max_tokens=5, min_tokens=5)
            for length in (3, 90)
            for name in (BASE_ALONE, str(adapter))
        ]
        assert [a.usage.output_tokens for a in answers(engine, requests) if a.usage] == [5, 5, 5, 5]
    finally:
        engine.close()


def test_an_adapter_changes_what_8_bits_say_as_it_changes_bf16(tiny_base: Path, tmp_path: Path) -> None:
    """The logits of both stay near those of bf16, while the adapter moves them further than that."""
    tokenizer = load_tokenizer(tiny_base)
    adapter = make_adapter(tiny_base, tmp_path / "lora-a", r=4)
    texts = {}
    for bits in (None, "int8"):
        loaded = LoadedBase(tiny_base, load_model(tiny_base, "bf16", CPU), tokenizer, bits)
        engine = open_engine(loaded, limits=EngineLimits(roots=(tmp_path,)), say=lambda line: None)
        asked = [
            request_from_inputs(prompt="hay", adapter=name, temperature=0.0, max_tokens=1, min_tokens=1)
            for name in (BASE_ALONE, str(adapter))
        ]
        texts[bits] = [answer.text for answer in answers(engine, asked)]
        engine.close()
    assert texts["int8"] == texts[None]


def test_4_bits_are_for_serving_on_a_cpu(tiny_base: Path) -> None:
    assert choose_precision(tiny_base, "int4", CPU, serving=True).precision == "int4"
    with pytest.raises(PrecisionUnavailable, match=r"'int4' is not known: choose auto, bf16, fp32, int8, nf4"):
        choose_precision(tiny_base, "int4", CPU)
    with pytest.raises(PrecisionUnavailable, match="int4 is for serving on a CPU; on a GPU choose nf4"):
        choose_precision(tiny_base, "int4", torch.device("cuda"), serving=True)
