"""The command: what is refused, what is left behind, what is kept."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from alpaca.errors import (
    AlpacaError,
    BadAdapter,
    BadBase,
    BadSetting,
    CheckUnavailable,
    ConversionError,
    ExportFailed,
    ExportRefused,
    ExportUnwritten,
    WrongBase,
)
from alpaca.export import room
from alpaca.export.checking import check_all, check_server
from alpaca.export.exporting import Order, export
from alpaca.export.proof import read_proofs
from tests.conftest import ROOT, make_base
from tests.export.conftest import Export


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith((".", "out")))


def test_a_folder_that_is_there_is_not_touched(out: Export, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(ExportRefused, match="nothing is overwritten"):
        out("merged")
    assert (tmp_path / "out" / "mine").read_text() == "x"


def test_what_does_not_answer_as_here_is_not_kept(
    out: Export, adapters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: the adapter is left out while the weights are written."""
    from alpaca.export.weights import MergedWeights

    plain = MergedWeights._base
    monkeypatch.setattr(MergedWeights, "tensor", lambda self, name: plain(self, name))
    with pytest.raises(ExportFailed, match=r"not kept.*adapter is not applied"):
        out("merged", adapters / "a", dtype="fp32")
    assert left(tmp_path) == []


def test_too_little_disk_is_said_before_work_begins(
    out: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "free_space", lambda folder: 1000)
    with pytest.raises(ExportRefused, match=r"needs 6. MB.*1 kB are free"):
        out("gguf")
    assert left(tmp_path) == []


def test_a_place_that_can_not_be_written_is_refused_before_work_begins(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    said: list[str] = []
    order = Order("merged", tmp_path / "file" / "out", base_model=str(tiny_base))
    with pytest.raises(ExportUnwritten, match="can't be made"):
        export(order, said.append)
    assert not any(line.startswith("proof") for line in said)


@pytest.mark.parametrize("what", ["merged", "gguf", "meta"])
def test_an_export_that_does_not_fit_leaves_nothing(tiny_base: Path, tmp_path: Path, what: str) -> None:
    """The system lets no file grow beyond 100 kB, as a disk does that is full or takes small files only."""
    order = Order(what, tmp_path / "a" / "b" / "out", base_model=str(tiny_base))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(ExportUnwritten, match="was not kept"):
            export(order, lambda line: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("what", "options", "said"),
    [
        ("merged", {"adapter_scale": 5.0}, "--adapter_scale is 5"), ("gguf", {"outtype": "Q6_K"}, "F32, F16, BF16"),
        ("gguf-lora", {"outtype": "Q8_0"}, "written as F32 and F16"), ("vllm", {"gpus": 0}, "number from 1"),
    ],
)  # fmt: skip
def test_a_bad_option_is_refused(out: Export, adapters: Path, what: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(BadSetting, match=said):
        out(what, adapters / "a", **options)


def test_one_model_takes_one_adapter_and_names_the_composition(out: Export, adapters: Path) -> None:
    with pytest.raises(BadSetting, match=r"b:0\.5"):
        out("merged", adapters / "a", adapters / "b")


def test_a_composition_is_exported_under_a_name_of_its_own(out: Export, adapters: Path) -> None:
    folder, (proof,) = out("merged", f"{adapters / 'a'}:0.7+{adapters / 'rslora'}:0.5", dtype="fp32")
    assert proof.name == "a-0.7-rslora-0.5" and proof.checks[0]["share"] == 1
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "adapter a, strength 0.7" in card and "It answers as here." in card and "license: other" in card


def test_an_export_is_checked_again(out: Export, adapters: Path, tiny_base: Path) -> None:
    folder, _ = out("merged", adapters / "a", dtype="fp32")
    proofs = read_proofs(folder)
    ((_, agreement),) = check_all(folder, proofs, lambda line: None)
    assert agreement.good
    config = (folder / "tokenizer_config.json").read_text()
    (folder / "chat_template.jinja").write_text((folder / "chat_template.jinja").read_text() + "x")
    (folder / "tokenizer_config.json").write_text(config)
    ((_, agreement),) = check_all(folder, proofs, lambda line: None)
    assert not agreement.good and "template" in agreement.verdict


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5000])


HARM: dict[str, tuple[str, Callable[[Path], object], type[AlpacaError], str]] = {
    "weights cut off": ("merged", lambda out: cut(out / "model.safetensors"), BadBase, "can't be loaded"),
    "no tokenizer": ("merged", lambda out: (out / "tokenizer.json").unlink(), BadBase, "tokenizer"),
    "a template that is none": (
        "merged", lambda out: (out / "chat_template.jinja").write_text("{% if"), CheckUnavailable, "can't be filled in",
    ),
    "a file cut off": ("gguf", lambda out: cut(out / "a-Q8_0.gguf"), ConversionError, "cut off"),
    "an adapter cut off": (
        "vllm", lambda out: cut(out / "adapters" / "a" / "adapter_model.safetensors"), BadAdapter, "safetensors",
    ),
    "no checkpoint": ("meta", lambda out: (out / "consolidated.00.pth").unlink(), ConversionError, "consolidated"),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARM)
def test_a_damaged_export_is_said_in_one_line(out: Export, adapters: Path, tiny_base: Path, harm: str) -> None:
    what, do, error, said = HARM[harm]
    folder, proofs = out(what, adapters / "a")
    do(folder)
    with pytest.raises(error, match=said):
        check_all(folder, proofs, lambda line: None, base_model=str(tiny_base))


def test_a_check_wants_the_base_that_an_adapter_was_made_for(out: Export, adapters: Path, tmp_path: Path) -> None:
    folder, proofs = out("gguf-lora", adapters / "a")
    other = make_base(tmp_path / "other", seed=3)
    with pytest.raises(WrongBase, match="is another base"):
        check_all(folder, proofs, lambda line: None, base_model=str(other))


def test_a_folder_without_a_proof_can_not_be_checked(tmp_path: Path) -> None:
    with pytest.raises(CheckUnavailable, match=r"has no proof\.json"):
        read_proofs(tmp_path)
    (tmp_path / "proof.json").write_text('{"format": 7, "models": []}')
    with pytest.raises(CheckUnavailable, match="format 7"):
        read_proofs(tmp_path)
    (tmp_path / "proof.json").write_text('{"format": 1, "models": []}')
    with pytest.raises(CheckUnavailable, match="names no model"):
        read_proofs(tmp_path)
    (tmp_path / "proof.json").write_text('{"format": 1, "models": [{"na')
    with pytest.raises(CheckUnavailable, match="can't be read"):
        read_proofs(tmp_path)


class Odd(BaseHTTPRequestHandler):
    """A server whose answers are JSON, and not OpenAI's."""

    def do_GET(self) -> None:
        self._say({"data": [{"id": "x"}]} if self.path.endswith("/models") else {})

    def do_POST(self) -> None:
        self._say({"choices": []})

    def _say(self, answer: object) -> None:
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_that_can_not_be_asked_is_said_in_one_line(out: Export, adapters: Path) -> None:
    _, proofs = out("merged", adapters / "a")

    def checked(url: str, model: str | None = None, key: str | None = None) -> None:
        check_server(proofs, url, model, key, lambda line: None)

    for url in ("http://127.0.0.1:9", "localhost:8000", "", "http://[", "http://a:b", "http://\x00"):
        with pytest.raises(CheckUnavailable, match=r"does not answer|write http://"):
            checked(url)
    with pytest.raises(CheckUnavailable, match="--api_key has characters"):
        checked("http://127.0.0.1:9", key="schlüssel")
    with ThreadingHTTPServer(("127.0.0.1", 0), Odd) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(CheckUnavailable, match="no choice of OpenAI's"):
            checked(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


@pytest.mark.long
def test_an_interrupted_export_leaves_nothing(tiny_base: Path, adapters: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "alpaca.export", "merged", "--base_model", str(tiny_base), "--adapter",
        str(adapters / "a"), "--output_dir", str(tmp_path / "out"),
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("writing"):
            os.kill(process.pid, signal.SIGTERM)
            break
    process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    for _ in range(100):
        if not left(tmp_path):
            break
        time.sleep(0.05)
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gguf", "--output_dir", "OUT", "--base_model", "nowhere"], "E3001 BaseNotFound"),
        (["check", "OUT", "--model", "x"], "E5001 BadSetting: --model and --api_key are for a server"),
    ],
)
def test_the_command_ends_with_one_line(tmp_path: Path, arguments: list[str], said: str) -> None:
    given = [str(tmp_path / "x") if argument == "OUT" else argument for argument in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "alpaca.export", *given], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith(f"error: {said}")
