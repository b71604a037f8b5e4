"""Rows for tiny fine-tunes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from alpaca.paths import CACHE, cache_home
from tests.training.runs import make_rows, write_rows


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 rows of 1 to 7 words."""
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", make_rows(24))


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BASE_MODEL", "DATA_PATH", "MICRO_BATCH_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of the tests' own, with the kernels that were compiled before."""
    folder, kernels = tmp_path_factory.mktemp("cache"), cache_home() / "kernels"
    kernels.mkdir(parents=True, exist_ok=True)
    (folder / "kernels").symlink_to(kernels.resolve())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE, str(folder))
        yield folder
