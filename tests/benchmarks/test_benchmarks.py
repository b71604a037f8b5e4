"""Every script in benchmarks/ still runs on what the project is today: one step, one round, a tiny base."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from alpaca.training.cli import parser
from benchmarks import forgetting, gpu, learning_rates, misfits, serve, train
from tests.conftest import ROOT
from tests.serving.peft_adapters import make_adapter

TINY_LLAMA = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


def run(script: str, *arguments: object) -> str:
    """What `python benchmarks/SCRIPT` prints. It must end well."""
    command = [sys.executable, f"benchmarks/{script}", *map(str, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def long_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base with room for the benchmark's longest prompt."""
    folder = shutil.copytree(tiny_base, tmp_path_factory.mktemp("bases") / "tiny-long")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    return folder


def test_every_script_is_tried_here() -> None:
    tried = Path(__file__).read_text(encoding="utf-8")
    scripts = [path.name for path in (ROOT / "benchmarks").glob("*.py")]
    assert len(scripts) >= 5
    assert not [name for name in scripts if f'run("{name}"' not in tried]


# --- training -----------------------------------------------------------------------------------------------------
def test_the_table_of_training_measures_each_contender_in_a_process_of_its_own(tiny_base: Path) -> None:
    said = run("train.py", "--base_model", tiny_base, "--steps", 1, "--budgets", 512).splitlines()
    assert said[2].startswith("packed, bf16, 512 tokens a micro-batch ") and len(said) == 3
    rate, ratio, _, loss = map(float, said[2].split()[-4:])
    assert rate > 0 and ratio == 1.0 and loss > 0


@pytest.mark.parametrize("contender", [*train.CONTENDERS, *train.ALL_WEIGHTS[:2]], ids=lambda contender: contender.name)
def test_each_contender_trains_the_steps_of_the_plan(
    contender: train.Contender, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the library's Trainer makes its folder, though nothing is saved
    data = ROOT / "data" / "alpacas.jsonl"
    options = argparse.Namespace(base_model=str(tiny_base), data_path=str(data), steps=2, budgets="")
    measured = train.run_one(contender, options)
    assert measured["examples"] == 32
    assert all(measured[figure] > 0 for figure in ("seconds", "tokens", "loss", "peak"))


# --- the gateway ---------------------------------------------------------------------------------------------------
@pytest.mark.long
def test_the_gateway_is_measured_against_the_server_behind_it(tiny_base: Path) -> None:
    said = run("gateway.py", "--base_model", tiny_base, "--rounds", 1, "--people", 2, "--tokens", 4, "--crowd", 2)
    assert re.search(r"added within a round, median: -?[\d.]+ ms", said)
    assert re.search(r"kept within a round, median: [\d.]+ %", said) and said.splitlines()[-1].startswith("| 2 | ")


# --- serving ------------------------------------------------------------------------------------------------------
@pytest.mark.long
def test_the_table_of_serving_has_every_contender(long_base: Path) -> None:
    said = run("serve.py", "--base_model", long_base, "--rounds", 1, "--tokens", 4, "--skip", "larger", "ready")
    table = re.findall(r"^(\w.*?)  +([\d.]+) +[\d.]+$", said, re.MULTILINE)
    assert len(table) == 11 and all(float(speed) > 0 for _, speed in table)
    assert "first token of a 64-token prompt: idle" in said


def test_the_larger_base_of_the_benchmark_is_one_that_the_engine_serves(
    long_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = serve.LARGER | TINY_LLAMA | {"num_key_value_heads": 1}
    bench = serve.open_bench(serve.make_larger(tmp_path / "larger", long_base, sizes), tmp_path, "bf16", tokens=2)
    try:
        serve.show("larger", serve.measure(bench, 1, larger=True))
    finally:
        bench.engine.close()
    assert "8 mixed against transformers' continuous batching" in capsys.readouterr().out


@pytest.mark.server
def test_the_time_to_ready_is_measured_on_cogs_server(tiny_base: Path) -> None:
    assert serve.ready_seconds(tiny_base) > 0


def test_products_are_measured_in_every_form() -> None:
    said = run("products.py", "--rows", 1, "--rounds", 1, "--copies", 1).splitlines()
    assert len(said) == 5 and all(re.search(r"linear .*W·xᵀ .*fp32 .*int8 .*int4", line) for line in said)


@pytest.mark.long
def test_what_few_bits_cost_is_told_for_each_precision(tiny_base: Path) -> None:
    said = run("quantization.py", "--base_model", tiny_base, "--rows", 2, "--tokens", 1).splitlines()
    assert [line.split()[0] for line in said[1:]] == ["bf16", "int8", "int4", "nf4"]


@pytest.mark.long
def test_guesses_are_measured_against_none(long_base: Path) -> None:
    said = run("drafts.py", "--base_model", long_base, "--rounds", 1, "--tokens", 4).splitlines()
    assert len(said) == 9 and all(float(line.split()[-3]) > 0 for line in said[2:])


# --- on a GPU; here the same on a CPU, with tiny bases -----------------------------------------------------------
@pytest.mark.long
def test_the_report_on_a_device_has_a_table_and_the_same_in_json(tmp_path: Path) -> None:
    said = run("gpu.py", "--quick", "--output_dir", tmp_path / "results")
    table = (tmp_path / "results" / "gpu.md").read_text(encoding="utf-8")
    assert table in said
    written = json.loads((tmp_path / "results" / "gpu.json").read_text(encoding="utf-8"))
    assert {"device", "torch", "bitsandbytes"} <= written["about"].keys()
    rows = {row["what"]: row for row in written["rows"]}
    trained, served = rows["training, tiny, bf16"], rows["serving, tiny, nf4"]
    assert trained["speed"] > 0 and trained["peak"] > 0 and trained["expected"] > 0
    assert served["peak"] > served["expected"] > 0 and re.fullmatch(r"graphs: [1-9]\d* of \d+ steps", served["note"])
    cases = ["alone", "alone, an adapter", "2", "2, three adapters mixed", "4", "4, three adapters mixed"]
    assert all(rows[f"… {case}"]["speed"] > 0 and rows[f"… {case}"]["plain_speed"] > 0 for case in cases)
    assert [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines() if line.startswith("| ")] == [
        "what", "---", *rows
    ]  # fmt: skip


@pytest.mark.long
def test_what_does_not_fit_into_the_time_is_named(tmp_path: Path) -> None:
    run("gpu.py", "--quick", "--minutes", 0, "--output_dir", tmp_path)
    notes = [row["note"] for row in json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))["rows"]]
    assert notes[-3:] == ["skipped: no time left"] + ["skipped: the base is not there"] * 2


@pytest.mark.long
def test_a_section_that_fails_costs_only_its_own_rows(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text("{}", encoding="utf-8")
    failed = gpu.run_section(gpu.Section("serve", "tiny"), tmp_path, 300.0, True)
    assert [row.note for row in failed] == ["failed with exit status 1; the reason stands in the output"]


# --- exports -------------------------------------------------------------------------------------------------------
@pytest.mark.long
def test_the_table_of_exports_has_a_row_for_each_check(tiny_base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_base, tmp_path / "mine")
    said = run("exports.py", "--base_model", tiny_base, "--adapters", adapter, "--ways", "merged", "meta").splitlines()
    assert said[0].startswith("versions: torch ")
    assert [line.split(" | ")[0] for line in said[3:5]] == ["| merged, mine", "| meta, mine"]
    assert all(line.endswith("| as here |") for line in said[3:5])
    equal, tensors = map(int, re.findall(r"(\d+) of (\d+) tensors", said[-1])[0])
    assert equal == tensors > 10


# --- the others ---------------------------------------------------------------------------------------------------
def test_the_table_of_attention_has_the_lengths_asked_for() -> None:
    rows = run("attention.py", "--lengths", 16, 32).splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["16", "32"]


def test_the_tables_of_sizes_have_the_models_asked_for() -> None:
    said = run("sizes.py", "SmolLM2-135M")
    names = re.findall(r"^\| (\w[\w.-]*)", said, re.MULTILINE)
    assert names == ["GB", "SmolLM2-135M"] * 2
    documented = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8").splitlines()
    assert all(line in documented for line in said.splitlines() if line.startswith("| SmolLM2-135M"))


@pytest.mark.long
def test_the_table_of_misfits_has_a_row_for_each_language_of_a_set(tiny_base: Path) -> None:
    said = run("misfits.py", "--base_model", tiny_base, "--rows", 24, "--sets", "data/alpacas.jsonl").splitlines()
    assert len(said) == 2 and re.match(r"alpacas, English +2\d +\d+ +\d.\d% +0\.\d\d +0\.\d\d ", said[1])


@pytest.mark.long
def test_rows_that_were_learnt_are_looked_for_with_faults_and_without(tiny_base: Path) -> None:
    said = run("learnt.py", "--base_model", tiny_base, "--rows", 40, "--sets", "data/alpacas.jsonl")
    assert re.search(r"^less left +\d\.\d\d ", said, re.MULTILINE) and "listed as not learnt: " in said


def test_planted_scores_below_all_others_are_told_for_certain() -> None:
    scores = np.array([-1.0, 0.5, 2.0, 3.0, 2.0])
    assert misfits.auroc(scores, np.array([0, 1])) == 1.0
    assert misfits.auroc(scores, np.array([3])) == 0.0 and misfits.auroc(scores, np.array([2])) == 0.375


@pytest.mark.long
def test_forgetting_compares_each_way_with_the_unprotected_run_of_its_seed(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--sets", "alpacas", "--ways", "defaults", "--num_epochs", 0.01]
    said = run("forgetting.py", "--base_model", tiny_base, *small, "--keep", tmp_path)
    assert re.search(r"^rise +-?[\d.e-]+$", said, re.MULTILINE)
    folder = tmp_path / "alpacas-defaults-42"
    report, card = (json.loads((folder / name).read_text()) for name in ("report/report.json", "alpaca.json"))
    assert card["settings"]["seed"] == 42 and card["settings"]["batch_size"] == 8
    found = forgetting.figures(report, card)
    plain = [{**found, "rise": factor * found["rise"]} for factor in (2, 4)]
    forgetting.show("alpacas", {forgetting.PLAIN: plain, "defaults": [found, found]})
    table = capsys.readouterr().out
    assert re.search(r"^rise, of the unprotected +– +0.375 ± 1.6$", table, re.MULTILINE)
    assert re.search(r"^gain, of the unprotected +– +1 ± 0$", table, re.MULTILINE)


def test_the_intervals_of_seeds_are_student_s() -> None:
    assert forgetting.mean_and_interval([0.5]) == "0.5"
    assert forgetting.mean_and_interval([1.0, 2.0, 3.0]) == "2 ± 2.5"  # 4.303 / sqrt(3)
    assert forgetting.mean_and_interval([1.0, float("nan")]) == "–"


def test_every_way_against_forgetting_is_made_of_options_there_are() -> None:
    for way in forgetting.WAYS.values():
        assert parser().parse_known_args(way)[1] == []


@pytest.mark.long
def test_each_learning_rate_is_compared_with_the_default_one_of_its_seed(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--rows", 24, "--seeds", 1, "--num_epochs", 0.1, "--factors", 1, "--sets", "data/alpacas.jsonl"]
    said = run("learning_rates.py", "--base_model", tiny_base, *small, "--keep", tmp_path)
    assert re.search(r"^1 x +0\.002 +\d\.\d+ +1$", said, re.MULTILINE)
    card = json.loads((tmp_path / "alpacas-1-42" / "alpaca.json").read_text())
    assert card["data"]["rows_read"] == 24 and card["settings"]["learning_rate"] == 0.002
    learning_rates.show("alpacas", 0.002, {1.0: [(4.0, 3.0), (5.0, 3.0)], 1.5: [(4.0, 3.5), (5.0, 3.5)]})
    assert re.search(r"^1.5 x +0\.003 +3\.5 ± 0 +0\.625 ± 1\.6$", capsys.readouterr().out, re.MULTILINE)
