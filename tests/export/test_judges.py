"""The real base, exported and asked in the tools that exports are for: `make test-export`."""

from __future__ import annotations

from pathlib import Path

import pytest

from alpaca.export import judges
from alpaca.export.checking import check_server
from tests.export.conftest import Export
from tests.serving.peft_adapters import make_adapter

pytestmark = pytest.mark.judges
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def two(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two adapters of the real base, large enough to answer otherwise than it and each other, small enough for answers
    to stay sensible; the second has rsLoRA."""
    root = tmp_path_factory.mktemp("two")
    common = {"template": "chat", "spread": 0.012, "target_modules": LINEAR}
    first = make_adapter(smollm2, root / "first", seed=1, r=16, lora_alpha=32, **common)
    second = make_adapter(smollm2, root / "second", seed=2, r=8, lora_alpha=8, use_rslora=True, **common)
    return first, second


@pytest.fixture(autouse=True)
def installed() -> None:
    for tool, there in (("llama.cpp", judges.llamacpp_python()), ("vLLM", judges.vllm_command())):
        if there is None:
            pytest.fail(f"there is no {tool}: run make test-export")


def test_vllm_started_by_serve_sh_answers_with_two_adapters_mixed(
    out: Export, smollm2: Path, two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "2")
    folder, proofs = out("vllm", *two, base=str(smollm2))
    for proof in proofs:
        peft, vllm = proof.checks
        assert peft["tool"] == "transformers with PEFT" and peft["share"] == 1
        assert vllm["tool"] == f"vLLM on {proof.name}" and vllm["good"], vllm
    first, second = proofs
    with judges.vllm(folder) as url:  # one adapter's answers are not the other's
        ((_, wrong),) = check_server([first], url, second.name, None, print)
    assert not wrong.good


@pytest.mark.parametrize("kind", ["Q8_0", "BF16"])
def test_the_real_base_in_llama_cpp(out: Export, smollm2: Path, two: tuple[Path, Path], kind: str) -> None:
    folder, (proof,) = out("gguf", two[0], base=str(smollm2), outtype=kind)
    assert [check["good"] for check in proof.checks] == [True, True]
    assert "TEMPLATE" in (folder / "Modelfile").read_text(encoding="utf-8")


def test_the_real_base_merged_in_transformers(out: Export, smollm2: Path, two: tuple[Path, Path]) -> None:
    _, (proof,) = out("merged", two[1], base=str(smollm2))
    assert proof.precision == "bf16" and proof.checks[0]["good"]
