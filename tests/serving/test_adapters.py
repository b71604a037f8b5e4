"""An adapter from a folder, an archive or a URL is found, verified, kept and let go again.

What strangers may try is in test_hostile.py.
"""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from alpaca.adapter.archive import pack
from alpaca.adapter.folder import load_tensors
from alpaca.base.load import load_tokenizer
from alpaca.cancellation import Cancellation, Cancelled
from alpaca.errors import (
    AdapterError,
    AdapterNotFound,
    AlpacaError,
    BadAdapter,
    CacheFull,
    CacheUnusable,
    DownloadRefused,
    DownloadsBusy,
)
from alpaca.serving.adapters import DOWNLOADS, Adapter, AdapterStore, check_given, tuned_here
from alpaca.serving.cache_folder import CACHE_GB, CacheFolder, default_bytes
from alpaca.serving.download import ALLOWED_HOSTS, Limits
from tests.serving.hostile.hosts import Host, running_host
from tests.serving.peft_adapters import edit_config, make_adapter, write_card

FILES = ("adapter_config.json", "adapter_model.safetensors")


@pytest.fixture(scope="module")
def folder(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tiny_base, tmp_path_factory.mktemp("adapters") / "a")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


Fetch = Callable[[str], Path]


@pytest.fixture
def fetch(tiny_base: Path, cache: Path) -> Fetch:
    """The folder that the operator's word for an adapter leads to."""
    store = AdapterStore(tiny_base, load_tokenizer(tiny_base), cache_dir=cache, say=lambda line: None)
    return lambda source: store.find(source, trusted=True).files.folder


def zip_of(folder: Path, archive: Path) -> Path:
    return pack(folder, archive)


def zip_in_folders(folder: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w") as zipped:
        for name in (*FILES, "optimizer.pt"):
            zipped.writestr(f"some/where/{name}", (folder / name).read_bytes() if name in FILES else b"pickled")
    return archive


def tar_of(folder: Path, archive: Path, mode: str = "w") -> Path:
    with tarfile.open(archive, mode) as tar:
        for name in FILES:
            tar.add(folder / name, f"./{name}")
    return archive


@pytest.mark.parametrize(
    "make", [zip_of, zip_in_folders, tar_of, partial(tar_of, mode="w:gz")], ids=["zip", "nested", "tar", "tar.gz"]
)
def test_an_archive_of_any_kind_is_unpacked_once(
    folder: Path, tmp_path: Path, cache: Path, fetch: Fetch, make: Callable[[Path, Path], Path]
) -> None:
    archive = make(folder, tmp_path / "archive")
    found = fetch(str(archive))
    for name in FILES:
        assert (found / name).read_bytes() == (folder / name).read_bytes()
    before = (found / FILES[0]).stat().st_mtime_ns
    assert fetch(str(archive)) == found
    assert (found / FILES[0]).stat().st_mtime_ns == before
    assert {path.name for path in cache.iterdir()} == {found.name}
    assert not (found / "optimizer.pt").exists()


def test_a_folder_is_taken_as_it_is(folder: Path, cache: Path, fetch: Fetch) -> None:
    assert fetch(str(folder)) == folder
    assert not cache.exists()


def test_a_url_is_downloaded_and_unpacked(
    folder: Path, tmp_path: Path, cache: Path, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = pack(folder, tmp_path / "adapter.zip")
    with running_host(adapter=archive.read_bytes()) as host:
        with pytest.raises(DownloadRefused, match=ALLOWED_HOSTS):
            fetch(host.url("adapter"))
        monkeypatch.setenv(ALLOWED_HOSTS, "127.0.0.1")
        found = fetch(host.url("adapter"))
    assert {path.name for path in found.iterdir()} == set(FILES)
    assert [path.name for path in cache.iterdir()] == [found.name]
    assert found == fetch(str(archive))


@pytest.mark.parametrize(
    ("source", "error"),
    [("/no/such/thing", AdapterNotFound), ("data:,x", DownloadRefused), ("s3://a/b", DownloadRefused)],
)
def test_what_is_no_adapter_is_refused(source: str, error: type[AlpacaError], fetch: Fetch) -> None:
    with pytest.raises(error):
        fetch(source)


def test_a_folder_without_weights_names_what_is_missing(tmp_path: Path, fetch: Fetch) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(AdapterNotFound, match=r"no adapter_model\.safetensors"):
        fetch(str(tmp_path))


def test_what_finetune_left_is_the_default_unless_something_was_said(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COG_WEIGHTS", raising=False)
    assert tuned_here(tmp_path) is None
    made = make_adapter(tiny_base, tmp_path / "lora-alpaca", template="alpaca")
    assert tuned_here(tmp_path) == made
    monkeypatch.setenv("COG_WEIGHTS", "")
    assert tuned_here(tmp_path) is None


# --- the store ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Any:
    return load_tokenizer(tiny_base)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def said() -> list[str]:
    return []


Opened = Callable[..., AdapterStore]


@pytest.fixture
def opened(tiny_base: Path, tokenizer: Any, root: Path, cache: Path, said: list[str]) -> Opened:
    return partial(AdapterStore, tiny_base, tokenizer, roots=[root], cache_dir=cache, say=said.append)


@pytest.fixture
def host(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """Serves six adapters that differ in a byte of their archive, a to f, and others that come half at first."""
    monkeypatch.setenv(ALLOWED_HOSTS, "127.0.0.1")
    archive = pack(folder, tmp_path / "packed.zip").read_bytes()
    held = {f"held-{number}": archive for number in range(DOWNLOADS)}
    with running_host(**held, **{name: archive[:-2] + b"\1\0" + name.encode() for name in "abcdef"}) as host:
        yield host


def wait_until(true: Callable[[], bool]) -> None:
    """For what another thread is about to do."""
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def names_in(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


def test_a_name_a_path_an_archive_and_a_url_lead_to_the_same_adapter(
    folder: Path, root: Path, opened: Opened, host: Host, said: list[str], tmp_path: Path
) -> None:
    store = opened()
    shutil.copytree(folder, root / "foo")
    pack(folder, root / "foo.zip")
    (root / "link").symlink_to("foo")
    sources = ["foo", str(root / "foo"), "./foo/", "x/../foo", "link", "foo.zip", host.url("a?signature=secret")]
    found = [store.find(source) for source in sources] + [store.find(str(folder), trusted=True)]
    assert len({adapter.digest for adapter in found}) == 1
    assert found[0].name == "foo" and found[6].name == host.url("a")
    assert all(set(load_tensors(adapter.files)) == set(load_tensors(found[0].files)) for adapter in found)
    assert len(said) == len(found) and "secret" not in "".join(said)
    assert all("rank 4 on 4 modules, no card" in line for line in said)


def test_an_adapter_brings_the_template_of_its_card(
    tiny_base: Path, folder: Path, root: Path, opened: Opened, said: list[str]
) -> None:
    shutil.copytree(folder, root / "foo")
    store = opened()
    without = store.find("foo")
    assert without.template is None and without.files.card is None
    write_card(tiny_base, root / "foo", "alpaca")
    found = store.find("foo")
    assert found.template is not None and found.template.name == "alpaca"
    assert found.digest != without.digest
    assert "template alpaca" in said[-1]


def test_a_changed_folder_is_verified_anew(folder: Path, root: Path, opened: Opened, said: list[str]) -> None:
    store = opened()
    shutil.copytree(folder, root / "foo")
    first = store.find("foo")
    assert store.find("foo") == first and len(said) == 1
    edit_config(root / "foo", lora_alpha=32)
    second = store.find("foo")
    assert (first.files.spec.lora_alpha, second.files.spec.lora_alpha) == (8, 32)
    assert first.digest != second.digest
    edit_config(root / "foo", r=5000)
    with pytest.raises(BadAdapter, match=r"^E4002 BadAdapter: foo: r is '?5000"):
        store.find("foo")
    edit_config(root / "foo", r=4)
    assert store.find("foo").digest == second.digest
    shutil.rmtree(root / "foo")
    with pytest.raises(AdapterNotFound):
        store.find("foo")


def test_a_changed_archive_is_unpacked_anew(folder: Path, root: Path, opened: Opened, tmp_path: Path) -> None:
    store = opened()
    first = store.find(str(pack(folder, root / "foo.zip")))
    changed = Path(shutil.copytree(folder, tmp_path / "changed"))
    edit_config(changed, lora_alpha=32)
    assert store.find(str(pack(changed, root / "foo.zip"))).digest != first.digest


def test_a_new_version_of_a_linked_folder_is_noticed(folder: Path, root: Path, opened: Opened) -> None:
    store = opened()
    for number, name in enumerate(("v1", "v2"), 1):
        shutil.copytree(folder, root / name)
        edit_config(root / name, lora_alpha=number)
    for number in (1, 2):
        (root / "now").unlink(missing_ok=True)
        (root / "now").symlink_to(f"v{number}")
        assert store.find("now").files.spec.lora_alpha == number


def test_the_operator_may_name_what_lies_anywhere(folder: Path, opened: Opened) -> None:
    store = opened()
    assert store.find(str(folder), trusted=True).files.folder == folder
    with pytest.raises(AdapterNotFound, match="that may be used here"):
        store.find(str(folder))


def test_a_name_is_one_folder_or_archive_directly_in_a_root(folder: Path, root: Path, opened: Opened) -> None:
    """What is hidden or deeper down is answered as what is not there, whatever it is."""
    store = opened()
    for place in (".hidden", "deep/down", "mine"):
        shutil.copytree(folder, root / place)
    (root / ".env").write_text("TOKEN=1")
    pack(folder, root / "deep" / "packed.zip")

    def said(name: str) -> str:
        with pytest.raises(AdapterNotFound) as caught:
            store.find(name)
        return str(caught.value).replace(name, "NAME")

    refused = (".env", ".hidden", "deep/down", "deep/packed.zip", "mine/adapter_config.json", str(root / ".hidden"))
    assert {said(name) for name in refused} == {said("nothing")}
    assert store.find("mine").digest == store.find(str(root / "mine")).digest


def test_a_root_may_end_in_a_pattern_for_names(folder: Path, root: Path, opened: Opened) -> None:
    for place in ("lora-mine", "weights"):
        shutil.copytree(folder, root / place)
    pack(folder, root / "lora-packed.zip")
    store = opened(roots=[root / "lora-*"])
    assert store.find("lora-mine").digest == store.find("lora-packed.zip").digest
    with pytest.raises(AdapterNotFound):
        store.find("weights")


def test_a_wrong_name_of_the_operator_is_answered_with_what_there_is(folder: Path, root: Path) -> None:
    for name in ("lora-alpaca", "other", ".hidden"):
        shutil.copytree(folder, root / name)
    pack(folder, root / "packed.zip")
    (root / "notes.txt").write_text("")
    (root / "half").mkdir()
    with pytest.raises(AdapterNotFound) as caught:
        check_given("lora-alpacca", [root])
    assert f"There are: lora-alpaca, other, packed.zip (in {root}). Did you mean 'lora-alpaca'?" in caught.value.message
    with pytest.raises(AdapterNotFound, match="half has no adapter_config"):
        check_given("half", [root])
    with pytest.raises(AdapterNotFound, match="There is none"):
        check_given("lora-nowhere", [])
    for there in ("other", "packed.zip", str(root / "other"), "https://example.com/adapter.zip"):
        check_given(there, [root])


def test_an_adapter_that_is_being_replaced_is_no_adapter_until_it_is_whole(
    tiny_base: Path, folder: Path, root: Path, opened: Opened
) -> None:
    """While finetune.py puts a new one in the place of an old one, and after it was killed there."""
    write_card(tiny_base, Path(shutil.copytree(folder, root / "mine")), "alpaca")
    store, aside = opened(), root / "mine" / ".saving-adapter"
    aside.mkdir()
    assert store.find("mine").template is not None
    card = (root / "mine" / "alpaca.json").rename(aside / "alpaca.json")
    with pytest.raises(AdapterError, match=r"^E4007 .*mine is being replaced"):
        store.find("mine")
    card.rename(root / "mine" / "alpaca.json")
    assert store.find("mine").template is not None


def test_the_hub_s_links_within_a_root_are_followed(folder: Path, root: Path, opened: Opened) -> None:
    shutil.copytree(folder, root / "blobs")
    (root / "snapshot").mkdir()
    for name in FILES:
        (root / "snapshot" / name).symlink_to(f"../blobs/{name}")
    assert opened().find("snapshot").digest == opened().find("blobs").digest


# --- many at once -------------------------------------------------------------------------------------------------
def at_once(count: int, ask: Callable[[int], Any]) -> list[Any]:
    """What `ask(0)` … `ask(count - 1)` give or raise, all begun at the same moment."""
    barrier = threading.Barrier(count)

    def one(number: int) -> Any:
        barrier.wait()
        try:
            return ask(number)
        except AlpacaError as error:
            return error

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(one, range(count)))


def test_a_url_is_fetched_once_for_all_who_ask(host: Host, opened: Opened, said: list[str], cache: Path) -> None:
    store = opened()
    for _ in range(2):
        found = at_once(DOWNLOADS, lambda _: store.find(host.url("a")))
        assert len({adapter.digest for adapter in found}) == 1
    assert host.requests["a"] == len(said) == len(names_in(cache)) == 1
    shutil.rmtree(cache)
    assert store.find(host.url("a")).digest == found[0].digest
    assert host.requests["a"] == 2


def test_all_who_ask_at_once_share_an_error_and_the_next_tries_again(host: Host, opened: Opened) -> None:
    store = opened(limits=Limits(seconds=5.0, idle_seconds=0.5))
    failed = at_once(DOWNLOADS, lambda _: store.find(host.url("silent")))
    assert all(isinstance(error, DownloadRefused) for error in failed)
    assert host.requests["silent"] == 1
    with pytest.raises(DownloadRefused):
        store.find(host.url("silent"))
    assert host.requests["silent"] == 2


@pytest.mark.parametrize("urls", [1, DOWNLOADS], ids=["of the same", "of others"])
def test_only_a_few_wait_for_downloads_and_the_rest_is_told_at_once(
    folder: Path, root: Path, host: Host, opened: Opened, urls: int
) -> None:
    """Whatever hosts do, most of those who ask are answered: by what is on disk, or that they may ask again."""
    store = opened()
    shutil.copytree(folder, root / "mine")
    known = store.find(host.url("a"))
    with ThreadPoolExecutor(DOWNLOADS) as pool:
        waiting = [pool.submit(store.find, host.url(f"held-{number % urls}")) for number in range(DOWNLOADS)]
        for _ in range(urls):
            assert host.holding.acquire(timeout=30)
        wait_until(lambda: store._downloads.waiting == DOWNLOADS)
        for name in ("held-0", "b"):
            with pytest.raises(DownloadsBusy, match=f"^E4009 .*{name}: 4 requests wait .* ask again later"):
                store.find(host.url(name))
        assert store.find("mine").digest == store.find(host.url("a")).digest == known.digest
        host.let_go.set()
    assert {future.result().digest for future in waiting} == {known.digest}
    assert store.find(host.url("b")).digest == known.digest


# --- who is cancelled ---------------------------------------------------------------------------------------------
def cancelled_find(store: AdapterStore, source: str, cancellation: Cancellation) -> bool:
    """Whether the search for `source` ended because it was cancelled."""
    try:
        store.find(source, cancellation=cancellation)
    except Cancelled:
        return True
    return False


def test_who_is_cancelled_leaves_at_once_and_the_last_one_ends_the_download(
    host: Host, opened: Opened, cache: Path
) -> None:
    store, asked = opened(), [Cancellation() for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        gone = [pool.submit(cancelled_find, store, host.url("held"), cancellation) for cancellation in asked]
        assert host.holding.acquire(timeout=30)
        wait_until(lambda: store._downloads.waiting == 3)
        for number in range(3):
            assert not host.left.acquire(blocking=False)
            asked[number].request()
            assert gone[number].result(timeout=30)
    assert host.left.acquire(timeout=30) and host.requests["held"] == 1
    wait_until(lambda: names_in(cache) == [] and not store._downloads.threads)


def test_one_who_is_cancelled_does_not_take_the_download_from_the_others(host: Host, opened: Opened) -> None:
    """Be it the first, who began it, or one who came later."""
    for place in (0, 1):
        host.let_go.clear()
        store, asked = opened(), [Cancellation(), Cancellation()]
        with ThreadPoolExecutor(2) as pool:
            gone = pool.submit(cancelled_find, store, host.url(f"held-{place}"), asked[0])
            assert host.holding.acquire(timeout=30)
            other = pool.submit(cancelled_find, store, host.url(f"held-{place}"), asked[1])
            wait_until(lambda store=store: store._downloads.waiting == 2)
            asked[place].request()
            assert (gone, other)[place].result(timeout=30)
            host.let_go.set()
            assert not (gone, other)[1 - place].result(timeout=30)
        assert host.requests[f"held-{place}"] == 1
        store.find(host.url(f"held-{place}"))
        assert host.requests[f"held-{place}"] == 1


def test_who_was_cancelled_before_begins_nothing_that_lasts(host: Host, opened: Opened, cache: Path) -> None:
    store, cancellation = opened(), Cancellation()
    cancellation.request()
    for _ in range(20):
        assert cancelled_find(store, host.url("held"), cancellation)
    wait_until(lambda: not store._downloads.threads)
    assert not cache.exists() or names_in(cache) == []


# --- the cache ----------------------------------------------------------------------------------------------------
def size_of(folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in FILES)


def test_the_cache_keeps_what_was_used_last(folder: Path, host: Host, opened: Opened, cache: Path) -> None:
    store = opened(max_bytes=3 * size_of(folder))
    place = {}
    for name in "abc":
        place[name] = store.find(host.url(name)).files.folder
    store.find(host.url("a"))
    place["d"] = store.find(host.url("d")).files.folder
    assert names_in(cache) == sorted(place[name].name for name in "acd")
    store.find(host.url("b"))
    assert host.requests == {"a": 1, "b": 2, "c": 1, "d": 1}
    assert len(names_in(cache)) == 3


def test_what_is_in_use_stays_and_what_finds_no_room_is_refused(
    folder: Path, host: Host, opened: Opened, cache: Path
) -> None:
    store = opened(max_bytes=2 * size_of(folder))
    used = [store.find(host.url("a")), store.find(host.url("b"))]
    with pytest.raises(CacheFull, match=r"^E4006 .*in use; ask again later"):
        store.find(host.url("c"))
    assert names_in(cache) == sorted(adapter.files.folder.name for adapter in used)
    assert [len(load_tensors(adapter.files)) for adapter in used] == [8, 8]
    used.pop()
    gc.collect()
    third = store.find(host.url("c"))
    assert names_in(cache) == sorted([used[0].files.folder.name, third.files.folder.name])


def test_what_is_larger_than_the_whole_cache_is_refused(folder: Path, root: Path, opened: Opened, cache: Path) -> None:
    pack(folder, root / "foo.zip")
    with pytest.raises(CacheFull, match=f"all adapters together may have 5,000 .{CACHE_GB}"):
        opened(max_bytes=5000).find("foo.zip")
    assert names_in(cache) == []


def test_a_cache_that_cannot_be_written_to_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    archive = pack(folder, tmp_path / "foo.zip")
    with pytest.raises(CacheUnusable, match=r"file/adapters can't be written to .* ALPACA_CACHE names another"):
        CacheFolder(tmp_path / "file" / "adapters").unpack(archive)


def test_nobody_loses_an_adapter_while_others_come_and_go(
    folder: Path, host: Host, opened: Opened, cache: Path
) -> None:
    """Six adapters in room for four, asked for by four threads that read what they got: no read ever fails."""
    store = opened(max_bytes=4 * size_of(folder))

    def reader(number: int) -> int:
        read = 0
        for turn in range(15):
            adapter = store.find(host.url("abcdef"[(number * 2 + turn) % 6]))
            read += len(load_tensors(adapter.files))
            del adapter
        return read

    assert at_once(4, reader) == [15 * 8] * 4
    assert sum(host.requests.values()) > 6
    assert len(names_in(cache)) <= 4 and not [name for name in names_in(cache) if name.startswith(".")]


def test_who_has_a_file_open_reads_on_when_another_process_removes_it(
    folder: Path, root: Path, opened: Opened, cache: Path, tmp_path: Path
) -> None:
    adapter = opened().find(str(pack(folder, root / "foo.zip")))
    other = CacheFolder(cache, max_bytes=size_of(folder) * 3 // 2)  # knows nothing of what is held here
    changed = Path(shutil.copytree(folder, tmp_path / "changed"))
    edit_config(changed, lora_alpha=32)
    with adapter.files.weights.open("rb") as handle:
        start = handle.read(100)
        other.unpack(pack(changed, root / "other.zip"))
        assert not adapter.files.folder.exists()
        assert start + handle.read() == (folder / FILES[1]).read_bytes()
    with pytest.raises(AdapterError, match=r"^E4007"):
        load_tensors(adapter.files)
    assert len(load_tensors(opened().find("foo.zip").files)) == 8


KILLED = """
import os, signal, sys
from pathlib import Path
from alpaca.serving.cache_folder import CacheFolder
with CacheFolder(Path(sys.argv[1]))._aside(".download-") as aside:
    (aside / "half").write_bytes(b"x" * 1000)
    print("there", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_uses_is_not(cache: Path) -> None:
    cache.mkdir()
    (cache / ".gone-x").mkdir()
    (cache / ".of-somebody-else").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(cache)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "there\n"
        CacheFolder(cache)
        left = names_in(cache)
        assert len(left) == 2 and left[0].startswith(".download-")
        process.kill()
    CacheFolder(cache)
    assert names_in(cache) == [".of-somebody-else"]


def test_a_folder_that_was_spoilt_on_disk_is_made_anew(folder: Path, host: Host, opened: Opened, cache: Path) -> None:
    found = opened().find(host.url("a"))
    weights = found.files.weights
    weights.write_bytes(b"")
    with pytest.raises(BadAdapter):
        opened().find(host.url("a"))
    assert names_in(cache) == []
    assert opened().find(host.url("a")).digest == found.digest


def test_several_stores_share_a_cache(folder: Path, root: Path, opened: Opened, cache: Path) -> None:
    pack(folder, root / "foo.zip")
    stores = [opened() for _ in range(4)]
    found: list[Adapter] = at_once(4, lambda number: stores[number].find("foo.zip"))
    assert len({adapter.digest for adapter in found}) == 1
    assert len(names_in(cache)) == 1


def test_the_last_used_is_the_last_to_go_for_other_processes_too(folder: Path, root: Path, opened: Opened) -> None:
    pack(folder, root / "foo.zip")
    store = opened()
    place = store.find("foo.zip").files.folder
    os.utime(place, (0, 0))
    store.find("foo.zip")
    assert time.time() - place.stat().st_mtime < 3600


@pytest.mark.parametrize(("value", "size"), [("", 20_000_000_000), ("0.5", 500_000_000), ("3", 3_000_000_000)])
def test_the_operator_says_how_much_is_kept(value: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_GB, value)
    assert default_bytes() == size


@pytest.mark.parametrize("value", ["much", "0", "-1", "nan", "inf"])
def test_a_size_that_is_none(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_GB, value)
    with pytest.raises(AdapterError, match=f"{CACHE_GB} is '{value}': a number of gigabytes above 0"):
        default_bytes()
