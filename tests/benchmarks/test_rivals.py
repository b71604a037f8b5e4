"""The comparison with other engines: how their processes are spoken to, what is measured, and the tables.

The rivals themselves have environments of their own, which tests do without: here our engines take turns with each
other, and a small program speaks the language of a worker.
"""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks import serve
from benchmarks.rivals import contenders, environment, serving
from benchmarks.rivals.protocol import Question
from benchmarks.rivals.worker import Worker
from tests.conftest import ROOT

SHOUTER = """
import time
from benchmarks.rivals.protocol import work

def open_rival(settings):
    print("a library prints as it loads")
    def ask(question):
        print("and as it works")
        time.sleep(float(settings["number"]))
        if not question["texts"]:
            raise ValueError("nothing was asked")
        return [text.upper() for text in question["texts"]]
    return {"version": "shouter " + settings["number"]}, ask

work(open_rival)
"""


@pytest.fixture
def shouter() -> Worker:
    return start("0")


def start(number: str) -> Worker:
    """It takes `number` seconds for an answer."""
    return Worker("shouter", [sys.executable, "-c", SHOUTER, json.dumps({"number": number})])


def question(*texts: str) -> Question:
    return {"texts": list(texts), "prompts": [[1]] * len(texts), "adapters": [None] * len(texts), "tokens": 2}


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = [line.partition("==") for line in lines if re.match(r"[\w.-]+==", line)]
    return {package.lower().replace("_", "-"): version for package, _, version in found}


# --- workers ------------------------------------------------------------------------------------------------------
def test_a_worker_answers_until_it_is_closed_whatever_its_libraries_print(shouter: Worker) -> None:
    assert shouter.ready() == {"version": "shouter 0"}
    for texts in (["a"], ["b", "c"]):
        reply = shouter.ask(question(*texts))
        assert reply["texts"] == [text.upper() for text in texts] and reply["seconds"] >= 0
    shouter.close()
    with pytest.raises(ProcessLookupError):
        os.kill(shouter.pid, 0)


def test_a_worker_that_dies_ends_the_program_with_the_last_of_its_log(shouter: Worker) -> None:
    shouter.ready()
    with pytest.raises(SystemExit, match=r"(?s)shouter ended with status 1.*as it works.*nothing was asked"):
        shouter.ask(question())
    shouter.close()


def test_of_several_settings_the_fastest_takes_part_and_the_others_end() -> None:
    company = contenders.Company([], [])
    with ExitStack() as stack:
        workers = {"slow": start("0.5"), "fast": start("0")}
        openers = {"slow": lambda: workers["slow"], "fast": lambda: workers["fast"]}
        contenders.join(company, stack, "shouter", openers, [question("a")])
        assert company.settings == {"shouter": "fast"} and company.versions == ["shouter 0"]
        assert company.contenders[0].pid == workers["fast"].pid
        assert company.contenders[0].ask(question("a"))["texts"] == ["A"]
        with pytest.raises(ProcessLookupError):
            os.kill(workers["slow"].pid, 0)


def test_a_rival_that_is_not_installed_is_named_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "ENVIRONMENTS", tmp_path)
    with pytest.raises(SystemExit, match=r"vllm is not installed .*: run make rivals"):
        environment.python_of("vllm")


def test_rivals_stand_on_the_same_torch_and_trl_on_the_same_libraries_as_we() -> None:
    ours = pins("requirements-cpu.txt")
    assert pins("benchmarks/rivals/torch.txt") == {"torch": ours["torch"]}
    trl = pins("benchmarks/rivals/trl.txt")
    for package in ("transformers", "peft", "accelerate", "datasets"):
        assert trl[package] == ours[package]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("smollm2-BF16.gguf", "BF16"), ("SmolLM2.Q4_1.gguf", "Q4_1"), ("a.q8_0.gguf", "Q8_0"), ("a.Q4_K_M.gguf", "")],
)
def test_the_storage_of_a_gguf_file_is_read_from_its_name(name: str, kind: str) -> None:
    assert contenders.gguf_kind(Path(name)) == kind


# --- the run ------------------------------------------------------------------------------------------------------
def test_engines_take_turns_in_every_case_and_the_tables_have_every_ratio(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapters = [serve.make_adapter(tiny_base, tmp_path / f"adapter-{n}", n) for n in range(3)]
    with ExitStack() as stack:
        engines = [contenders.ours(stack, tiny_base, precision, tmp_path) for precision in ("bf16", "int8")]
        found, watch = serving.measure(tiny_base, engines, adapters, tokens=2, rounds=1)
    plain = [case for case in serving.CASES if not case.adapters]
    assert found.speeds.keys() == {(case, "ours bf16") for case in serving.CASES} | {(c, "ours int8") for c in plain}
    assert all(len(texts) == case.count for (case, _), texts in found.texts.items())
    assert watch.seconds > 0 and watch.waiting == 0, "all of them are in this process, which worked"

    for case in serving.CASES:  # as if vLLM had been half as fast as ours, and llama.cpp in 8 bits as fast
        own = found.speed(case, "ours bf16") or 0
        found.speeds[case, "vLLM, adapters"] = [own / 2]
    for case in plain:
        found.speeds[case, "llama.cpp Q8_0"] = [found.speed(case, "ours int8") or 0]
    serving.show(tiny_base, contenders.Company(engines, ["vLLM 1"]), found, watch, tokens=2, rounds=1)
    said = capsys.readouterr().out
    assert said.count("**2.00**") == len(serving.CASES) and said.count("**1.00**") == len(plain)
    assert re.search(r"^\| 16, no adapter \| int4 / Q4_1 \| – \| – \| – \| – \|$", said, re.MULTILINE)
    assert re.search(r"ours int8 \d+ of 25\.$", said, re.MULTILINE)


def test_the_fastest_median_of_several_contenders_counts() -> None:
    found, case = serving.Found(), serving.Case(8, 0)
    found.speeds[case, "a"] += [1.0, 9.0, 2.0]
    found.speeds[case, "b"] += [3.0, 3.0, 3.0]
    assert found.speed(case, "a", "b", "c") == 3.0 and found.speed(case, "a") == 2.0
    assert found.speed(case, "c") is None and serving.ratio(None, 3.0) == "–"
