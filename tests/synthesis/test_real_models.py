"""Rows by way of real servers and by the engine in this process."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from alpaca.export import judges
from alpaca.export.base_gguf import write_gguf
from alpaca.synthesis.__main__ import main
from alpaca.synthesis.engine import EngineModel
from alpaca.synthesis.question import Question, Reply
from alpaca.synthesis.server import ServerModel
from tests.export.conftest import of
from tests.gateway.conftest import adapter_folder, gateway, server  # noqa: F401 - fixtures
from tests.gateway.running import RunningGateway
from tests.synthesis.running import card_of, rows_of

QUESTIONS = [Question((("user", f"What is {number} and {number}?"),), 12, 0.0) for number in range(6)]


def ask_all(model: ServerModel | EngineModel) -> list[Reply]:
    async def ask() -> list[Reply]:
        try:
            return list(await asyncio.gather(*(model.ask(question) for question in QUESTIONS)))
        finally:
            await model.close()

    return asyncio.run(ask())


def answers_in(journal: Path) -> int:
    return sum("answer" in json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines())


@pytest.mark.server
def test_the_gateway_and_the_engine_here_give_the_same_answers(gateway: RunningGateway, tiny_base: Path) -> None:  # noqa: F811
    there = ask_all(ServerModel(gateway.url, tiny_base.name, say=print))
    here = ask_all(EngineModel(str(tiny_base), 4, "fp32", say=print))
    assert [reply.text.strip() for reply in there] == [reply.text for reply in here]
    assert [reply.tokens_in for reply in there] == [reply.tokens_in for reply in here]
    assert all(0 < reply.tokens_out <= 12 for reply in there)


@pytest.mark.server
def test_what_a_base_of_noise_says_is_listed_and_not_asked_for_again(
    gateway: RunningGateway,  # noqa: F811
    tiny_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, output = tmp_path / "rows.jsonl", tmp_path / "fr.jsonl"
    data.write_text('{"instruction": "Name the 3 grasses.", "output": "Rye."}\n{"instruction": "Why?", "output": ""}\n')
    arguments = ["translate", "--url", gateway.url, "--model", tiny_base.name, "--to", "fr", "--tries", "2",
                 "--data_path", str(data), "--output", str(output)]  # fmt: skip
    main(arguments)
    assert "2 questions asked now" in capsys.readouterr().out
    main(arguments)
    assert "0 questions asked now" in capsys.readouterr().out
    card = card_of(output)
    assert card["answers"] == answers_in(tmp_path / "fr.journal.jsonl") == 2 and card["tokens"]["out"] > 0
    assert card["listed"].keys() == {"1"} and card["rows"] == 0


@pytest.mark.llamacpp
def test_llama_cpp_s_own_server_is_asked_like_any_other(tiny_base: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    write_gguf(of(tiny_base), path, "F32")
    with judges.llamacpp(path) as running:
        url = str(running._client.base_url).removesuffix("/v1/")
        there = ask_all(ServerModel(url, say=print))
    here = ask_all(EngineModel(str(tiny_base), 4, "fp32", say=print))
    assert [reply.tokens_in for reply in there] == [reply.tokens_in for reply in here]
    assert sum(one.text.strip() == other.text for one, other in zip(there, here, strict=True)) >= 4


@pytest.mark.real
def test_the_default_base_makes_rows_in_this_process(
    smollm2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "mine.jsonl"
    arguments = ["instruct", "--base_model", str(smollm2), "--output", str(output), "--max_tokens", "120",
                 "--temperature", "0.7", "--rows"]  # fmt: skip
    main([*arguments, "1"])
    shown = capsys.readouterr().out
    assert "too few to write good rows" in shown and "tasks: 1 in an answer" in shown
    before = answers_in(tmp_path / "mine.journal.jsonl")
    main([*arguments, "1"])
    assert answers_in(tmp_path / "mine.journal.jsonl") == before and "0 questions asked now" in capsys.readouterr().out
    (row,) = rows_of(output)
    assert row["instruction"] and row["output"] and card_of(output)["model"]["fingerprint"]


@pytest.mark.real
def test_the_default_base_translates_or_lists_each_row(smollm2: Path, tmp_path: Path) -> None:
    data, output = tmp_path / "rows.jsonl", tmp_path / "fr.jsonl"
    rows = [{"instruction": f"Name {n} animals.", "input": "", "output": "A horse and a dog."} for n in (2, 3)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    main(["translate", "--to", "fr", "--base_model", str(smollm2), "--data_path", str(data), "--output", str(output),
          "--tries", "1", "--max_tokens", "40"])  # fmt: skip
    card = card_of(output)
    assert len(rows_of(output)) + len(card["listed"]) == 2 and card["tokens"]["out"] > 0
