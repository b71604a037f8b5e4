"""What an earlier version made is taken as it is: a base's fingerprint, an adapter, a checkpoint to go on from.

tests/made_before/ was written by the version of November 2026, before the rooms of the library were moved: a tiny base,
rows, the adapter trained on them and the checkpoint in the middle of that run.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from alpaca.adapter.folder import load_adapter, load_tensors, verify_files
from alpaca.base.earlier import is_known_as
from alpaca.base.headers import fingerprint
from alpaca.base.load import load_model, load_tokenizer
from alpaca.prompts.find import load_template, template_from_card
from tests.conftest import ROOT
from tests.training.runs import settings, train

MADE_BEFORE = ROOT / "tests" / "made_before"


@pytest.fixture
def made_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = Path(shutil.copytree(MADE_BEFORE, tmp_path / "made_before"))
    monkeypatch.chdir(folder)
    return folder


def test_the_fingerprint_of_a_base_stays() -> None:
    assert fingerprint(MADE_BEFORE / "base") == "26c7663aa76c09af"


def test_the_fingerprint_that_earlier_versions_gave_it_is_known() -> None:
    assert is_known_as(MADE_BEFORE / "base", "8183c4f7438411b6")


def test_an_adapter_is_served_with_its_template() -> None:
    files = verify_files(MADE_BEFORE / "adapter", MADE_BEFORE / "base")
    assert files.card is not None
    tokenizer = load_tokenizer(MADE_BEFORE / "base")
    template = template_from_card(files.card.template, tokenizer)
    assert template.card() == load_template("chat", tokenizer).card()
    base = load_model(MADE_BEFORE / "base", "fp32", torch.device("cpu"))
    with torch.no_grad():
        before = base(torch.tensor([[1, 70, 71, 72]])).logits
        after = load_adapter(base, files)(torch.tensor([[1, 70, 71, 72]])).logits
    assert not torch.allclose(before, after, atol=1e-3)


def test_a_checkpoint_is_resumed_and_ends_where_the_earlier_version_ended(made_before: Path) -> None:
    ended = load_tensors(verify_files(MADE_BEFORE / "adapter", MADE_BEFORE / "base"))
    for name in ("adapter_model.safetensors", "adapter_config.json", "alpaca.json", "README.md"):
        (made_before / "adapter" / name).unlink()
    said = train(settings(Path("base"), Path("rows.jsonl"), Path("adapter"), resume_from_checkpoint="auto"))
    assert any("checkpoint-2" in line for line in said), said
    again = load_tensors(verify_files(made_before / "adapter", made_before / "base"))
    assert again.keys() == ended.keys()
    for name, tensor in ended.items():
        torch.testing.assert_close(again[name], tensor, rtol=1e-4, atol=1e-6)
