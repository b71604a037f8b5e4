"""Many ask for adapters from good, slow and bad hosts, and most of them leave early: nobody else notices.

Downloads, redirects, unpacking and evictions go on meanwhile. What each client does follows from a fixed seed.
"""

from __future__ import annotations

import gc
import io
import random
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from alpaca.adapter.archive import pack
from alpaca.cancellation import Cancellation, Cancelled
from alpaca.errors import AlpacaError, CacheFull, DownloadRefused, DownloadsBusy, PromptTooLong
from alpaca.serving.cache_folder import CACHE_GB
from alpaca.serving.download import ALLOWED_HOSTS
from alpaca.serving.engine import Engine
from alpaca.serving.inputs import request_from_inputs
from alpaca.serving.limits import EngineLimits
from alpaca.serving.loading import load_base, open_engine
from tests.serving.hostile.case import open_files
from tests.serving.hostile.hosts import Host, running_host
from tests.serving.peft_adapters import make_adapter

CLIENTS, TURNS = 12, 30
GOOD = ["a", "b", "c", "d", "large", "ok-by-redirect"]
ENDLESS = ["held", "drips", "drips-headers", "continues"]
BAD = ["loop", "missing", "to-rubbish", "short", "endless"]
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def tar_with_ballast(folder: Path) -> bytes:
    """An archive that takes a while to go through: what lies before the adapter is skipped."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as tar:
        ballast = tarfile.TarInfo("ballast.bin")
        ballast.size = 500_000
        tar.addfile(ballast, io.BytesIO(random.Random(1).randbytes(ballast.size)))
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    return packed.getvalue()


@pytest.fixture(scope="module")
def folders(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter for each good name, which answers in its own way."""
    root = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(GOOD):
        make_adapter(tiny_base, root / name, seed=seed, r=16, target_modules=LINEAR)
    return root


@pytest.fixture
def host(folders: Path, tmp_path: Path) -> Iterator[Host]:
    served = {name: pack(folders / name, tmp_path / f"{name}.zip").read_bytes() for name in GOOD}
    served["large"], served["ok"] = tar_with_ballast(folders / "large"), served.pop("ok-by-redirect")
    with running_host(**served) as host:
        yield host


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "adapters"


@pytest.fixture
def engine(tiny_base: Path, folders: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """With room for four adapters of six on disk."""
    size = sum(path.stat().st_size for path in (folders / "a").iterdir())
    monkeypatch.setenv(ALLOWED_HOSTS, "127.0.0.1")
    monkeypatch.setenv("ALPACA_CACHE", str(cache.parent))
    monkeypatch.setenv(CACHE_GB, str(4.5 * size / 1e9))
    base = load_base(str(tiny_base), "fp32", say=lambda line: None)
    engine = open_engine(base, limits=EngineLimits(roots=(folders,)), say=lambda line: None)
    yield engine
    engine.close()


def answer(engine: Engine, adapter: str, cancellation: Cancellation) -> str:
    """The whole text, as predict.py asks for it; less where the stream was closed."""
    request = request_from_inputs(prompt="hay", max_tokens=12, temperature=0.0, adapter=adapter)
    with engine.submit(request, cancellation) as stream, cancellation.calls(stream.close):
        return "".join(chunk.text for chunk in stream)


class Client:
    def __init__(self, number: int, engine: Engine, host: Host, expected: dict[str, str]) -> None:
        self.random = random.Random(number)
        self.engine, self.host, self.expected = engine, host, expected
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []

    def run(self) -> None:
        for _ in range(TURNS):
            kind = self.random.choice(["good", "good", "endless", "bad"])
            name = self.random.choice({"good": GOOD, "endless": ENDLESS, "bad": BAD}[kind])
            leaves = kind == "endless" or self.random.random() < 0.5
            query = self.random.choice(["", "?other"])
            self.ask(kind, name, query, self.random.random() * 0.08 if leaves else None)

    def ask(self, kind: str, name: str, query: str, leaves_after: float | None) -> None:
        cancellation = Cancellation()
        timer = threading.Timer(leaves_after or 0.0, cancellation.request)
        if leaves_after is not None:
            timer.start()
        try:
            text = answer(self.engine, self.host.url(name + query), cancellation)
            ended = "left" if cancellation.requested else kind
            if kind != "good" or (ended == "good" and text != self.expected[name]):
                self.wrong.append(f"{name}: {text!r}")
        except Cancelled:
            ended = "cancelled"
            if leaves_after is None:
                self.wrong.append(f"{name}: cancelled by somebody else")
        except (DownloadsBusy, CacheFull) as error:
            ended = error.code
        except AlpacaError as error:
            ended = error.code
            if kind != "bad" or not isinstance(error, DownloadRefused):
                self.wrong.append(f"{name}: {error}")
        if leaves_after is not None:
            timer.join()
        self.done[ended] += 1


def wait_until(true: Callable[[], bool]) -> None:
    """For what other threads are about to do."""
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_storm_of_cancellations_harms_nobody_and_leaves_nothing(
    engine: Engine, host: Host, folders: Path, cache: Path
) -> None:
    expected = {name: answer(engine, name, Cancellation()) for name in GOOD}
    assert len(set(expected.values())) > 1
    files, threads = open_files(), threading.active_count()
    clients = [Client(number, engine, host, expected) for number in range(CLIENTS)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(Client.run, clients))
    done = sum((client.done for client in clients), Counter[str]())
    assert [fault for client in clients for fault in client.wrong] == []
    assert all(done[kind] for kind in ("good", "left", "cancelled", "E4009", "E4005")), done

    store, stats = engine._admission.adapters, engine.stats
    wait_until(lambda: not (store._downloads.threads or store._downloads.waiting or store._reads.threads))
    wait_until(lambda: not (stats().running or stats().waiting or stats().pinned or len(engine._reader)))
    assert not [path for path in cache.iterdir() if path.name.startswith(".")]
    wait_until(lambda: threading.active_count() <= threads and open_files() <= files)
    for name in GOOD:  # none is in use any more, so there is room for each
        assert answer(engine, host.url(name), Cancellation()) == expected[name]


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Nothing goes but what nothing refers to: a big process may not look for circles for hours."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("ends", ["answered", "closed", "refused"])
def test_an_adapter_on_disk_is_in_use_for_as_long_as_its_request_and_no_longer(
    engine: Engine, host: Host, ends: str
) -> None:
    """Six are asked for one after the other, and four have room."""
    for name in GOOD:
        inputs = {"prompt": "hay " * (5000 if ends == "refused" else 1), "adapter": host.url(name), "max_tokens": 400}
        try:
            with engine.submit(request_from_inputs(**inputs)) as stream:
                for _ in stream:
                    if ends == "closed":
                        break
        except PromptTooLong:
            assert ends == "refused"
        wait_until(lambda: not (engine.stats().running or engine.stats().waiting))
