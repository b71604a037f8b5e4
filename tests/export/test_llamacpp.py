"""Exports asked in the real llama.cpp, which make installs into .venv-judges."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from alpaca.errors import CheckUnavailable, ExportFailed
from alpaca.export import judges
from alpaca.export.agreement import check
from alpaca.export.base_gguf import write_gguf
from alpaca.export.here import prove
from alpaca.export.ollama import find_affixes
from alpaca.export.openai_server import OpenAIServer
from alpaca.export.proof import Proof
from tests.export.conftest import Export, of
from tests.export.test_export_templates import go_template

pytestmark = pytest.mark.llamacpp


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    if judges.llamacpp_python() is None:
        pytest.fail("there is no llama.cpp: run make test-export once, or pip install xllamacpp")


@pytest.fixture(scope="module")
def proof(tiny_base: Path, adapters: Path) -> Proof:
    model = of(tiny_base, adapters / "carded")
    return prove(model, "gguf", {"model": "x.gguf"}, "F32", lambda line: None)


def test_a_merged_file_answers_as_here(out: Export, adapters: Path) -> None:
    _, (found,) = out("gguf", adapters / "rslora", outtype="F32")
    here, there = found.checks
    assert here["tool"] == "read back here" and here["share"] == 1
    assert there["tool"].startswith("llama.cpp on rslora-F32.gguf") and there["good"]


def test_adapters_beside_a_file_answer_as_here(out: Export, adapters: Path) -> None:
    """An adapter whose rsLoRA was rewritten and one whose ranks and alphas differ by layer, at half their strength."""
    folder, proofs = out("gguf-lora", adapters / "rslora", adapters / "patterns", adapter_scale=0.5)
    assert {path.name for path in folder.glob("*.gguf")} == {"rslora-0.5-F32.gguf", "patterns-0.5-F32.gguf"}
    for found in proofs:
        assert [check["good"] for check in found.checks] == [True, True]


@pytest.fixture(scope="module")
def server(tiny_base: Path, adapters: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAIServer]:
    path = tmp_path_factory.mktemp("gguf") / "x.gguf"
    write_gguf(of(tiny_base, adapters / "carded"), path, "F32")
    with judges.llamacpp(path) as asked:
        yield asked


def test_the_prompts_of_llama_cpp_and_of_ollama_are_those_of_training(
    tiny_base: Path, adapters: Path, proof: Proof, server: OpenAIServer
) -> None:
    """llama.cpp fills in the template in the file; Ollama fills in its own and tokenises by llama.cpp."""
    model = of(tiny_base, adapters / "carded")
    root = str(server._client.base_url).removesuffix("/v1/")

    def render(messages: list[dict[str, str]]) -> str:
        return str(
            model.tokenizer.apply_chat_template(
                messages, chat_template=model.jinja, tokenize=False, add_generation_prompt=True
            )
        )

    affixes = find_affixes(render)
    assert affixes is not None
    for ours in proof.answers:
        filled = httpx.post(f"{root}/apply-template", json={"messages": ours.messages}).json()["prompt"]
        assert filled == render(ours.messages) == go_template(affixes.go(), ours.messages)
        body = {"content": filled, "add_special": True, "parse_special": True}
        assert httpx.post(f"{root}/tokenize", json=body).json()["tokens"] == ours.prompt


def test_a_server_that_has_another_model_is_found_out(
    tiny_base: Path, adapters: Path, proof: Proof, server: OpenAIServer
) -> None:
    assert check(proof, server).good
    base = prove(of(tiny_base, template="alpaca"), "gguf", {"model": "x.gguf"}, "F32", lambda line: None)
    assert not check(base, server).good
    chat = dataclasses.replace(of(tiny_base, adapters / "carded", template="chat"))
    other = check(prove(chat, "gguf", {"model": "x.gguf"}, "F32", lambda line: None), server)
    assert not other.good and "template" in other.verdict


def test_a_turn_end_that_is_missing_in_the_file_is_found(
    tiny_base: Path, adapters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: Export
) -> None:
    """Planted: the file names another token as the end. A model whose answers end is needed to see it."""
    from alpaca.export import base_gguf
    from tests.export.test_planted_faults import make_speaker

    base = make_speaker(tmp_path)
    real = base_gguf.vocabulary

    def without_end(tokenizer: object, rows: int, ends: tuple[int, ...]) -> object:
        found = real(tokenizer, rows, ends)  # type: ignore[arg-type]
        kinds = [1 if token == 2 else kind for token, kind in enumerate(found.kinds)]
        tokens = ["end" if token == 2 else text for token, text in enumerate(found.tokens)]
        return dataclasses.replace(found, ends=(3,), kinds=kinds, tokens=tokens)

    monkeypatch.setattr(base_gguf, "vocabulary", without_end)
    with pytest.raises(ExportFailed, match="not kept"):
        out("gguf", base / "rs", base=str(base), outtype="F32")
    assert not (tmp_path / "out").exists()


def test_a_server_that_is_not_there_or_lists_several_is_named(server: OpenAIServer) -> None:
    with pytest.raises(CheckUnavailable, match="does not answer"):
        OpenAIServer("http://127.0.0.1:9")
    assert server.model.endswith("x.gguf")


def test_a_file_that_llama_cpp_can_not_read_is_said_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(CheckUnavailable, match=r"did not start on bad\.gguf"), judges.llamacpp(tmp_path / "bad.gguf"):
        pass
