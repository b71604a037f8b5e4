"""Whatever a stranger names as an adapter: refused with its code, at once, and nothing is left of it."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alpaca.adapter.folder import load_tensors
from alpaca.base.load import load_tokenizer
from alpaca.errors import AlpacaError
from alpaca.serving.adapters import AdapterStore
from alpaca.serving.download import ALLOWED_HOSTS, Limits
from tests.serving.hostile.archives import ARCHIVES
from tests.serving.hostile.cards import CARDS
from tests.serving.hostile.case import MEMORY, Case, memory, open_files, refused
from tests.serving.hostile.configs import CONFIGS
from tests.serving.hostile.hosts import ANSWERS, URLS, Host, running_host
from tests.serving.hostile.tensors import TENSORS
from tests.serving.peft_adapters import make_adapter

FOLDERS = [*CONFIGS, *TENSORS, *CARDS]
SHORT = Limits(max_bytes=1_000_000, seconds=1.0, idle_seconds=0.3, least_bytes=10_000)


@pytest.fixture(scope="module")
def good(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tiny_base, tmp_path_factory.mktemp("good") / "good", template="alpaca")


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Any:
    return load_tokenizer(tiny_base)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def store(tiny_base: Path, tokenizer: Any, good: Path, root: Path, tmp_path: Path) -> AdapterStore:
    """A store that has served a good adapter before, so that what it reads once is read."""
    store = AdapterStore(tiny_base, tokenizer, roots=[root], cache_dir=tmp_path / "cache", limits=SHORT, say=str)
    load_tensors(store.find(str(good), trusted=True).files)
    return store


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with running_host() as host:
        yield host


def everything_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


Put = Callable[[Case], None]


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where archives are kept once they are made: some take their time."""
    return tmp_path_factory.mktemp("archives")


@pytest.fixture
def put(good: Path, root: Path, archives: Path) -> Put:
    """Puts what a case makes into the root, under the name `it`."""

    def put(case: Case) -> None:
        if case in FOLDERS:
            shutil.copytree(good, root / "it")
            case.make(root / "it")
            return
        kept = archives / str(ARCHIVES.index(case))
        if not kept.exists():
            case.make(kept)
        shutil.copy(kept, root / "it")

    return put


@pytest.mark.parametrize("case", FOLDERS, ids=str)
def test_a_hostile_folder(case: Case, put: Put, root: Path, store: AdapterStore) -> None:
    put(case)
    there = everything_in(root)
    with refused(case.code, case.said):
        load_tensors(store.find("it").files)
    assert everything_in(root) == there


@pytest.mark.parametrize("case", ARCHIVES, ids=str)
def test_a_hostile_archive(case: Case, put: Put, store: AdapterStore, tmp_path: Path) -> None:
    put(case)
    there = everything_in(tmp_path)
    with refused(case.code, case.said):
        store.find("it")
    assert everything_in(tmp_path) - {"cache"} == there
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize(("path", "said", "code"), ANSWERS, ids=lambda value: str(value)[:30])
def test_a_hostile_answer(
    path: str, said: str, code: str, host: Host, store: AdapterStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ALLOWED_HOSTS, f"models.example, 127.0.0.1:{host.port}")
    with refused(code, said) as caught:
        store.find(host.url(path))
    assert "secret" not in str(caught)
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize(("url", "said", "code"), URLS, ids=lambda value: ascii(value)[:40])
def test_a_hostile_url(url: str, said: str, code: str, store: AdapterStore, tmp_path: Path) -> None:
    with refused(code, said) as caught:
        store.find(url)
    assert "secret" not in str(caught)
    assert not list(tmp_path.glob("cache/*"))


def test_plain_http_behind_https(host: Host, store: AdapterStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOWED_HOSTS, "127.0.0.1")
    with refused("E4005", "can't be fetched"):
        store.find(host.url("ok").replace("http:", "https:"))


# --- paths --------------------------------------------------------------------------------------------------------
PATHS = ["/etc/passwd", "/etc", "../outside", "../outside/", "x/../../outside", "out", "out/../../outside", "weights",
         "loop", "~root", "~", "no-such", "/no/such", "a" * 300, "b/" * 900, "outside", "\ud800", "a\0b", " ", "",
         "\\\\host\\share", "//host/share", "\\\\?\\C:\\x", "x" * 2049, "pipe", "C:\\Windows", "https:foo",
         "."]  # fmt: skip


@pytest.mark.parametrize("path", PATHS, ids=lambda value: ascii(value)[:30])
def test_a_path_that_is_none_of_ours(path: str, good: Path, root: Path, store: AdapterStore, tmp_path: Path) -> None:
    """Links out of the root, ways up, home folders, network paths, pipes: none of it is an adapter."""
    shutil.copytree(good, tmp_path / "outside")
    (root / "out").symlink_to(tmp_path / "outside")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe")
    shutil.copytree(good, root / "weights")
    (root / "weights" / "adapter_model.safetensors").unlink()
    (root / "weights" / "adapter_model.safetensors").symlink_to(tmp_path / "outside" / "adapter_model.safetensors")
    with refused("E4001", ""):
        store.find(path)


def test_what_is_outside_looks_like_what_is_not_there(good: Path, root: Path, store: AdapterStore) -> None:
    answers = set()
    for path in (good, good.parent, good / "adapter_config.json", good / "no-such", Path("/etc/passwd")):
        with pytest.raises(AlpacaError) as caught:
            store.find(str(path))
        answers.add(str(caught.value).replace(str(path), "PATH"))
    assert len(answers) == 1


# --- all of it ----------------------------------------------------------------------------------------------------
def test_the_whole_table_again_and_again_leaves_nothing(
    put: Put, root: Path, store: AdapterStore, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ALLOWED_HOSTS, f"127.0.0.1:{host.port}")
    quick = [path for path, _, _ in ANSWERS if path in ("loop", "short", "long", "endless", "rubbish", "headers")]

    def once() -> None:
        for case in [*FOLDERS, *ARCHIVES]:
            put(case)
            with pytest.raises(AlpacaError):
                load_tensors(store.find("it").files)
            shutil.rmtree(root / "it") if (root / "it").is_dir() else (root / "it").unlink()
        for path in quick:
            with pytest.raises(AlpacaError):
                store.find(host.url(path))
        gc.collect()

    once()
    before, files = memory("VmRSS"), open_files()
    once()
    assert memory("VmRSS") - before < MEMORY
    assert open_files() <= files + 4  # the host's own connections may linger
    assert everything_in(tmp_path) == {"root", "cache"}


def test_the_table_is_long() -> None:
    for names in ([str(case) for case in [*FOLDERS, *ARCHIVES]], [row[0] for row in [*ANSWERS, *URLS]], PATHS):
        assert len(set(names)) == len(names) >= 25
