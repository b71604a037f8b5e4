"""A tiny base with adapters of every kind, and exports of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alpaca.export.exporting import Order, export
from alpaca.export.leaving import Leaving, leaving
from alpaca.export.proof import Proof
from tests.convert.conftest import sentencepiece_file, tiktoken_file  # noqa: F401 - fixtures
from tests.serving.peft_adapters import EVERY_KIND, make_adapter, make_adapters

RSLORA = {"r": 8, "lora_alpha": 16, "use_rslora": True, "target_modules": ["q_proj", "v_proj", "down_proj"]}
Export = Callable[..., tuple[Path, list[Proof]]]


@pytest.fixture(scope="session")
def adapters(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an adapter of every kind, `rslora` and `carded` (which has a card with the template alpaca)."""
    root = make_adapters(tiny_base, tmp_path_factory.mktemp("adapters"), EVERY_KIND | {"rslora": RSLORA})
    make_adapter(tiny_base, root / "carded", seed=9, template="alpaca")
    return root


@pytest.fixture
def out(tiny_base: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Export:
    """Export the tiny base into a folder of this test; only those marked so start the tools that exports are for."""
    marks = {mark.name for mark in request.node.iter_markers()}
    if not marks & {"llamacpp", "judges"}:
        monkeypatch.setattr("alpaca.export.judges.llamacpp_python", lambda: None)
        monkeypatch.setattr("alpaca.export.judges.vllm_command", lambda: None)

    def run(what: str, *names: str | Path, **options: Any) -> tuple[Path, list[Proof]]:
        order = Order(
            what, tmp_path / "out", base_model=options.pop("base", str(tiny_base)),
            adapters=tuple(map(str, names)), **options,
        )  # fmt: skip
        return export(order, lambda line: None)

    return run


def of(base: Path, adapter: str | Path = "", scale: float = 1.0, template: str = "") -> Leaving:
    """A model on its way out."""
    return leaving(str(base), str(adapter), scale, template, lambda line: None)
