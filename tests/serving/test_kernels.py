"""The kernels against what torch computes in fp32, in every form that they are compiled in."""

from __future__ import annotations

import copy
import ctypes
import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen2Config, Qwen3Config

from alpaca.errors import BadSetting
from alpaca.serving.cache import CachePlan, KeyValueCache
from alpaca.serving.decoder import Decoder, rotate
from alpaca.serving.kernels import FEW, FLAGS, Kernels, Matrix, NoKernels, compile_into, find_compiler, open_kernels
from alpaca.serving.limits import EngineLimits
from alpaca.serving.lora import Place
from alpaca.serving.quantized import QUANTIZED
from alpaca.serving.slots import BLOCK
from alpaca.serving.step import build_step
from tests.serving.by_hand import COLUMNS, decoding, place

COMPILER = find_compiler() or "c++"
CPU = torch.device("cpu")
PLAIN = tuple(flag for flag in FLAGS if flag != "-march=native")
"""For any processor of this kind: no tiles, and vectors of whatever size there always is."""
SHAPES = [(16, 32), (48, 64), (50, 96), (960, 576), (100, 160)]
ROWS = [0, 1, 2, 5, 15, 16, 17, 32, 33, 70]


@pytest.fixture(scope="module", params=["for this processor", "for any"])
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    place = tmp_path_factory.mktemp("kernels") / "kernels.so"
    compile_into(place, COMPILER, FLAGS if request.param == "for this processor" else PLAIN)
    return Kernels(ctypes.CDLL(str(place)))


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    torch.manual_seed(7)
    with torch.inference_mode():
        yield


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape).bfloat16()


def close(found: Tensor, expected: Tensor, error: float = 2**-8) -> None:
    """Equal but for rounding to bf16, measured against the largest number."""
    assert found.shape == expected.shape
    largest = float(expected.abs().max()) if len(expected) else 0.0
    torch.testing.assert_close(found.float(), expected.float(), rtol=error, atol=error * largest)


# --- products -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_torchs(kernels: Kernels, shape: tuple[int, int], rows: int) -> None:
    weight, x, bias = numbers(*shape), numbers(rows, shape[1]), numbers(shape[0])
    expected = x.float() @ weight.float().T
    close(kernels.product(x, Matrix.dense(weight)), expected)
    close(kernels.product(x, Matrix.dense(weight), bias), expected + bias.float())
    wide = kernels.product(x, Matrix.dense(weight), wide=True)
    assert wide.dtype == torch.float32
    close(wide, expected, 1e-2 if rows > FEW and not kernels.tiles else 1e-5)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("bits", "shape"), itertools.product(("int8", "int4"), SHAPES))
def test_quantised_products_are_those_of_the_widened_weights(
    kernels: Kernels, bits: str, shape: tuple[int, int], rows: int
) -> None:
    weight, x = numbers(*shape), numbers(rows, shape[1])
    matrix = QUANTIZED[bits](weight, for_kernels=True).matrix
    assert matrix is not None
    widened = kernels.product(torch.eye(shape[1]).bfloat16(), matrix, wide=True).T
    assert float((widened - weight.float()).abs().max()) < {"int8": 0.05, "int4": 0.5}[bits]
    close(kernels.product(x, matrix), x.float() @ widened.T)


def test_a_row_of_zeros_or_of_one_large_number_is_multiplied_in_bytes(kernels: Kernels) -> None:
    weight, x = numbers(64, 128), torch.zeros(3, 128).bfloat16()
    x[1, 5], x[2] = 1e30, 1e-30
    matrix = QUANTIZED["int8"](weight, for_kernels=True).matrix
    assert matrix is not None
    found = kernels.product(x, matrix, wide=True)
    assert not found[0].any()
    close(found[1] / 1e30, weight[:, 5], 2e-2)
    close(found[2] * 1e30, weight.float().sum(1), 2e-2)


@pytest.mark.parametrize("bits", ["bf16", "int8", "int4"])
def test_a_row_does_not_depend_on_the_others(kernels: Kernels, bits: str) -> None:
    """Up to where another way of multiplying begins: torch's without tiles, and that of many rows in 4 bits."""
    weight, x = numbers(80, 128), numbers(40, 128)
    matrix = Matrix.dense(weight) if bits == "bf16" else QUANTIZED[bits](weight, for_kernels=True).matrix
    assert matrix is not None
    few = [1, 2, 3, 4] if bits != "int4" and not kernels.tiles else [1, 3, 5, 16]
    many = few if bits != "int4" and not kernels.tiles else [17, 40]
    for counts in (few, many) if bits == "int4" else ([*few, *many],):
        whole = kernels.product(x[: counts[-1]], matrix, wide=True)
        for count in counts:
            assert torch.equal(kernels.product(x[:count], matrix, wide=True), whole[:count])


def test_threads_that_compute_at_the_same_time_do_not_disturb_each_other(kernels: Kernels) -> None:
    weight = Matrix.dense(numbers(960, 576))
    inputs = [numbers(rows, 576) for rows in (1, 4, 17, 33) * 20]
    expected = [kernels.product(x, weight) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for found, right in zip(pool.map(lambda x: kernels.product(x, weight), inputs), expected, strict=True):
            assert torch.equal(found, right)


def test_a_process_that_is_forked_off_has_threads_of_its_own(kernels: Kernels) -> None:
    weight, x = Matrix.dense(numbers(960, 576)), numbers(3, 576)
    expected = kernels.product(x, weight)
    child = os.fork()
    if not child:
        os._exit(0 if torch.equal(kernels.product(x, weight), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("bits", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("rows", [3, 20])
def test_what_is_no_number_stays_in_its_row(kernels: Kernels, rows: int, bits: str, number: float) -> None:
    x, weight = numbers(rows, 64), numbers(48, 64)
    x[1, 7] = number
    matrix = Matrix.dense(weight) if bits == "bf16" else QUANTIZED[bits](weight, for_kernels=True).matrix
    assert matrix is not None
    found = kernels.product(x, matrix)
    others = [row for row in range(rows) if row != 1]
    assert found[others].isfinite().all() and not found[1].isfinite().any()
    assert kernels.norm(x, numbers(64), 1e-5)[1].isnan().any()


# --- norms and the gate -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(1, 64), (3, 576), (70, 576), (5, 9, 64)])
def test_norms_are_torchs(kernels: Kernels, shape: tuple[int, ...]) -> None:
    x, weight = numbers(*shape), numbers(shape[-1])
    close(kernels.norm(x, weight, 1e-5), functional.rms_norm(x.float(), shape[-1:], weight.float(), 1e-5))


@pytest.mark.parametrize("rows", [1, 3, 70])
def test_the_gate_is_silu(kernels: Kernels, rows: int) -> None:
    both = numbers(rows, 1024) * 8
    both[0, :4] = torch.tensor([-300.0, 300.0, -90.0, 0.0])
    gate, up = both.float().chunk(2, -1)
    close(kernels.gated(both), functional.silu(gate) * up, 2**-7)


# --- attention ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [32, 64, 96, 128, 256])
@pytest.mark.parametrize(("queries", "keys"), [(4, 4), (9, 3), (8, 1)])
def test_attention_is_that_of_each_row_alone(kernels: Kernels, queries: int, keys: int, size: int) -> None:
    lengths, starts = torch.tensor([1, 40, 17, 0, 3, 4]), torch.tensor([0, 64, 128, 0, 192, 192])
    where, positions = starts + (lengths - 1).clamp(min=0), (lengths - 1).clamp(min=0)
    where[3], positions[3] = 250, 9  # one that others attend for, and after it two of the same answer
    memory, heads = numbers(2 * keys, 256, size), numbers(7, queries + 2 * keys, size)
    positions = torch.cat((positions, torch.tensor([5])))  # the last row is not written
    tables = numbers(64, size), numbers(64, size)
    turned = rotate(heads, *(table[positions, None] for table in tables))
    turned[:, queries + keys :] = heads[:, queries + keys :]
    expected_memory = memory.clone()
    expected_memory[:, where] = turned[:6, queries:].transpose(0, 1)

    found = kernels.attention(heads, queries, tables, positions, where, memory, starts, lengths, size**-0.5)

    close(heads, turned, 2**-7)
    close(memory, expected_memory, 2**-7)
    assert not found[[3, 6]].any()
    for row in (0, 1, 2, 4, 5):
        span = slice(int(starts[row]), int(starts[row] + lengths[row]))
        k, v = (part.repeat_interleave(queries // keys, 0)[:, span].float() for part in memory.split(keys))
        query = heads[row, :queries, None].float()
        close(found[row], functional.scaled_dot_product_attention(query, k, v)[:, 0], 2**-6)


# --- adapters -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rows", [1, 2, 9, 40])
@pytest.mark.parametrize("sizes", [[64], [576, 192, 192], [96, 96]])
def test_adapters_are_added_to_the_rows_that_use_them(kernels: Kernels, sizes: list[int], rows: int) -> None:
    columns, inputs, members, width = 64, 96, len(sizes), 48
    down, up = numbers(columns * members, inputs), torch.zeros(columns * members, sum(sizes)).bfloat16()
    ends = torch.tensor(sizes).cumsum(0)
    for member, end in enumerate(ends.tolist()):
        up[member::members, end - sizes[member] : end] = numbers(columns, sizes[member])
    strengths = torch.zeros(rows, width).bfloat16()
    strengths[0::3, :16] = 0.75
    strengths[1::3, 8:48] = 2.0
    x, y = numbers(rows, inputs), numbers(rows, sum(sizes))
    low = x.float() @ down[: width * members].float().T * strengths.float().repeat_interleave(members, 1)
    expected = y.float() + low @ up[: width * members].float()
    untouched = y[2::3].clone()
    found = kernels.add_adapters(y, x, down, up, strengths, ends)
    assert found is y and torch.equal(y[2::3], untouched)
    close(y, expected)


# --- whole steps --------------------------------------------------------------------------------------------------
SHAPE: dict[str, Any] = {
    "vocab_size": 304, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 1024,
}  # fmt: skip
BASES: dict[str, PretrainedConfig] = {
    "llama, tied": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "qwen2, biases, untied": Qwen2Config(**SHAPE, tie_word_embeddings=False),
    "qwen3, norms of heads": Qwen3Config(**SHAPE, tie_word_embeddings=True),
}
A, B = place(0, 16), place(48, 80)
STEPS: dict[str, list[tuple[int, int, list[tuple[Place, float]], int]]] = {
    "one": [(0, 9, [], 1)],
    "one with an adapter": [(2, 64, [(B, 0.5)], 1)],
    "many of all lengths": [(4 * n, 1 + 37 * n % 200, [(A, 1.0)] if n % 3 else [], 1) for n in range(19)],
    "a short prompt among them": [(0, 40, [(A, 1.0), (B, 0.5)], 1), (8, 12, [], 12), (16, 5, [(B, 1.0)], 3)],
    "a long prompt among them": [(0, 40, [(A, 1.0)], 1), (8, 300, [(B, 1.0)], 60), (16, 5, [], 1)],
}


class Bench:
    """A base in bf16 by kernels, by torch, and in fp32, with the same adapters and the same things in the cache."""

    def __init__(self, config: PretrainedConfig, kernels: Kernels, bits: str | None = None) -> None:
        torch.manual_seed(5)
        model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False).to(torch.bfloat16)
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
        self.exact = Decoder(copy.deepcopy(model).float(), COLUMNS, 1024)
        self.torchs = Decoder(copy.deepcopy(model), COLUMNS, 1024, bits)
        self.kernels = Decoder(model, COLUMNS, 1024, bits, kernels)
        self.caches: dict[int, KeyValueCache] = {}
        for decoder in (self.exact, self.torchs, self.kernels):
            for number, projection in enumerate({id(p): p for p, _ in decoder.projections.values()}.values()):
                generator = torch.Generator().manual_seed(number)
                for columns in (torch.arange(16), torch.arange(48, 80)):
                    for member, size in enumerate(projection.sizes):
                        a = torch.randn(len(columns), projection.weight.shape[1], generator=generator) * 0.05
                        projection.load(member, columns, a, torch.randn(len(columns), size, generator=generator) * 0.05)
            cache = KeyValueCache(config, CachePlan(80 * BLOCK, 1024, 20, 0, ""), decoder.dtype, CPU)
            for number, memory in enumerate(cache.memory):
                memory.copy_(torch.randn(memory.shape, generator=torch.Generator().manual_seed(number)).bfloat16())
            self.caches[id(decoder)] = cache

    def logits(self, decoder: Decoder, rows: list[tuple[int, int, list[tuple[Place, float]], int]]) -> Tensor:
        parts = [(decoding(block * BLOCK, length, used, fresh), fresh) for block, length, used, fresh in rows]
        step, ordered = build_step(parts, decoder)
        return decoder.forward(step, self.caches[id(decoder)])[[ordered.index(part) for part in parts]]


@pytest.mark.parametrize("rows", list(STEPS))
@pytest.mark.parametrize("base", list(BASES))
def test_a_step_comes_as_near_to_fp32_as_torch_does(kernels: Kernels, base: str, rows: str) -> None:
    bench = Bench(BASES[base], kernels)
    exact, by_torch, by_kernels = (
        bench.logits(decoder, STEPS[rows]) for decoder in (bench.exact, bench.torchs, bench.kernels)
    )
    assert by_kernels.dtype == torch.float32 and by_kernels.shape == exact.shape
    assert float((by_kernels - exact).norm()) <= 2 * float((by_torch - exact).norm())
    for ours, truth in zip(bench.caches[id(bench.kernels)].memory, bench.caches[id(bench.exact)].memory, strict=True):
        close(ours, truth, 0.05)


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_fewer_bits_cost_no_more_than_by_torch(kernels: Kernels, bits: str) -> None:
    bench = Bench(BASES["llama, tied"], kernels, bits)
    for rows in STEPS.values():
        exact, by_torch, by_kernels = (
            bench.logits(decoder, rows) for decoder in (bench.exact, bench.torchs, bench.kernels)
        )
        assert float((by_kernels - exact).norm()) <= 1.3 * float((by_torch - exact).norm())


def test_an_answer_does_not_depend_on_its_company(kernels: Kernels) -> None:
    bench = Bench(BASES["qwen3, norms of heads"], kernels)
    rows = STEPS["many of all lengths"][: None if kernels.tiles else FEW]
    together = bench.logits(bench.kernels, rows)
    alone = torch.cat([bench.logits(bench.kernels, [row]) for row in rows])
    assert torch.equal(together, alone)


# --- where there are none -----------------------------------------------------------------------------------------
def opened(config: PretrainedConfig, dtype: torch.dtype = torch.bfloat16, wanted: bool = True) -> tuple[bool, str]:
    said: list[str] = []
    found = open_kernels(config, dtype, CPU, wanted, said.append)
    return found is not None, " ".join(said)


def test_what_is_computed_how_is_said() -> None:
    there, said = opened(BASES["llama, tied"])
    assert there and said.startswith("kernels: ")
    assert opened(BASES["llama, tied"], torch.float32) == (False, "")
    assert opened(BASES["llama, tied"], wanted=False) == (False, "kernels: none (KERNELS=0), torch computes everything")
    odd = LlamaConfig(**{**SHAPE, "intermediate_size": 100})
    assert opened(odd) == (
        False, "kernels: none (the base's MLP's size is 100, no multiple of 32), torch computes everything",
    )  # fmt: skip


def test_a_compiler_that_fails_is_named_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(NoKernels, match=r"c\+\+ did not compile them: .*error.*unrecognized.*-no-such-option"):
        compile_into(tmp_path / "k.so", "c++", (*FLAGS, "-no-such-option"))
    with pytest.raises(NoKernels, match=r"could not be compiled: .*no-such-compiler"):
        compile_into(tmp_path / "k.so", "no-such-compiler")
    assert list(tmp_path.iterdir()) == []


def test_the_operator_can_do_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert EngineLimits.from_environment(Path.cwd()).kernels
    monkeypatch.setenv("KERNELS", "0")
    assert not EngineLimits.from_environment(Path.cwd()).kernels
    monkeypatch.setenv("KERNELS", "2")
    with pytest.raises(BadSetting, match="KERNELS"):
        EngineLimits.from_environment(Path.cwd())
