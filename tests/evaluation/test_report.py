"""The whole report on a tiny base: made, kept when a new one fails, and refused with a code where it can't be made."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from alpaca.adapter.card import Card
from alpaca.base.headers import fingerprint
from alpaca.base.load import load_tokenizer
from alpaca.data.reader import read_examples
from alpaca.errors import AdapterNotFound, BadAdapter, DataNotFound, NoRowsLeft, WrongBase
from alpaca.evaluation.probes import KINDS
from alpaca.evaluation.report import write_report
from alpaca.prompts.find import load_template
from tests.conftest import ROOT
from tests.serving.peft_adapters import make_adapter
from tests.training.runs import environment, make_rows, tree, write_rows

FILES = {
    "index.html",
    "report.json",
    "loss.png",
    "rate.png",
    "speed.png",
    "scale.png",
    "probes.png",
    "lengths.png",
    "training.json",
}
HISTORY = {"history": [{"step": n, "loss": 4 - n, "learning_rate": 1e-3, "tokens_per_second": 9} for n in (1, 2, 3)]}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A small general set and a few probes of every kind, so that a report takes seconds."""
    folder = tmp_path_factory.mktemp("sets")
    general = [{"instruction": f"say {n}", "input": "", "output": "river stone house " * 8} for n in range(30)]
    probe = {"instruction": "What is 1 + 1?", "check": {"number": 2}, "answer": "2"}
    probes = [{**probe, "id": f"{kind}-{n}", "kind": kind} for kind in KINDS for n in range(2)]
    return {
        "general_path": write_rows(folder / "general.jsonl", general),
        "probes_path": write_rows(folder / "probes.jsonl", probes),
    }


@pytest.fixture(scope="module")
def trained(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter as a fine-tune leaves it: with a card that names its rows, and the record of its steps."""
    folder = tmp_path_factory.mktemp("runs") / "lora"
    rows = write_rows(folder.parent / "rows.jsonl", make_rows(24))
    make_adapter(tiny_base, folder)
    (folder / "report").mkdir()
    (folder / "report" / "training.json").write_text(json.dumps(HISTORY), encoding="utf-8")
    write_card(tiny_base, folder, rows)
    return folder


def write_card(base: Path, folder: Path, rows: Path, **settings: Any) -> None:
    data = {"source": rows.name, "sha256": read_examples(str(rows)).sha256, "train": 20, "tokens_trained_on": 900}
    Card(
        base.name, fingerprint(base), load_template("auto", load_tokenizer(base)).card(), {}, data,
        {"val_set_size": 4, "seed": 42, "cutoff_len": 256, **settings}, {"torch": "2"}, {},
        {"seconds": 3.0, "steps": 3},
    ).write(folder)  # fmt: skip


def copied(trained: Path, folder: Path) -> Path:
    shutil.copytree(trained, folder)
    return folder


def make(adapter: Path, base: Path, sets: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Write the report and return its numbers."""
    given: dict[str, Any] = {"precision": "fp32", "budget_seconds": None, "say": lambda line: None}
    write_report(adapter, base, **(given | sets | changes))
    numbers: dict[str, Any] = json.loads((adapter / "report" / "report.json").read_text(encoding="utf-8"))
    return numbers


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """python -m alpaca.evaluation with `arguments`."""
    return subprocess.run(
        [sys.executable, "-m", "alpaca.evaluation", *map(str, arguments)],
        capture_output=True, text=True, timeout=180, env=environment(), cwd=ROOT,
    )  # fmt: skip


def test_a_report_is_written_beside_the_adapter_and_nothing_else_is_touched(
    trained: Path, tiny_base: Path, tmp_path: Path, sets: dict[str, Any]
) -> None:
    adapter = copied(trained, tmp_path / "lora")
    before = {name: data for name, data in tree(adapter).items() if not name.startswith("report/")}
    done = command(
        "--adapter", adapter, "--base_model", tiny_base, "--data_path", trained.parent / "rows.jsonl",
        "--general_path", sets["general_path"], "--probes_path", sets["probes_path"], "--precision", "fp32",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (adapter / "report").iterdir()} == FILES
    assert {name: data for name, data in tree(adapter).items() if not name.startswith("report/")} == before
    page = (adapter / "report" / "index.html").read_text(encoding="utf-8")
    assert str(adapter / "report" / "index.html") in done.stdout
    assert page.count("<img") == 6 and "4 rows of your data" in page
    assert "http" not in done.stdout and "Traceback" not in done.stderr


def test_the_numbers_say_on_how_many_rows_they_rest(
    trained: Path, tiny_base: Path, tmp_path: Path, sets: dict[str, Any]
) -> None:
    numbers = make(copied(trained, tmp_path / "lora"), tiny_base, sets, data_path=str(trained.parent / "rows.jsonl"))
    assert numbers["domain"]["rows"] == 4
    assert 5 <= numbers["general"]["rows"] <= 15
    assert [point["scale"] for point in numbers["sweep"]["points"]] == [0, 0.25, 0.5, 0.75, 1]
    assert sum(kind["asked"] for kind in numbers["probing"]["kinds"]) == 10
    assert len(numbers["samples"]) == 4
    assert numbers["drift"]["asked"] == numbers["general"]["rows"] + 10
    assert numbers["run"]["tokens"] == 900 and numbers["run"]["flop"] > 0
    assert numbers["data"]["counts"]["train"] == 20 and numbers["data"]["replay_ratio"] == 0
    gain = numbers["gain"]
    assert (gain["rows"], gain["others"]) == (4, 3)
    whole = numbers["domain"]["before"] - numbers["domain"]["after"]
    assert gain["manner"]["value"] + gain["matter"]["value"] == pytest.approx(whole)
    assert numbers["notes"]["gain"] == []
    assert numbers["learnt"] is None and "it takes 8 held-out rows" in numbers["notes"]["learnt"][0]
    sweep = {point["scale"]: point for point in numbers["sweep"]["points"]}
    assert sweep[0]["manner"] == sweep[0]["matter"] == 0
    assert sweep[1]["manner"] + sweep[1]["matter"] == pytest.approx(whole)
    assert sweep[0]["domain"] == pytest.approx(numbers["domain"]["before"])
    assert sweep[1]["general"] == pytest.approx(numbers["general"]["after"])


def test_rows_that_were_trained_on_are_looked_at_where_enough_are_held_out(
    tiny_base: Path, tmp_path: Path, sets: dict[str, Any]
) -> None:
    long = [{**row, "output": f"{row['output']}, which is why row {n} says it"} for n, row in enumerate(make_rows(44))]
    adapter, rows = tmp_path / "lora", write_rows(tmp_path / "rows.jsonl", long)
    make_adapter(tiny_base, adapter)
    write_card(tiny_base, adapter, rows, val_set_size=10)
    numbers = make(adapter, tiny_base, sets, data_path=str(rows))
    learnt = numbers["learnt"]
    assert numbers["notes"]["learnt"] == [] and learnt["held_out"] == 10
    assert 0 < learnt["rows"] == learnt["of"] <= 34
    assert learnt["by_heart"] == [], "an adapter of random weights has learnt nothing"
    page = (adapter / "report" / "index.html").read_text(encoding="utf-8")
    assert f"Looked at: {learnt['rows']} rows that the adapter was trained on." in page


def test_an_adapter_that_changes_nothing_shows_no_difference(
    tiny_base: Path, tmp_path: Path, sets: dict[str, Any]
) -> None:
    from safetensors.torch import load_file, save_file

    adapter = make_adapter(tiny_base, tmp_path / "zero", template="auto")
    tensors = load_file(adapter / "adapter_model.safetensors")
    zero = {name: tensor * 0 if "lora_B" in name else tensor for name, tensor in tensors.items()}
    save_file(zero, str(adapter / "adapter_model.safetensors"), metadata={"format": "pt"})
    numbers = make(adapter, tiny_base, sets)
    assert numbers["general"]["difference"]["value"] == pytest.approx(0, abs=1e-6)
    assert numbers["probing"]["lost"] == numbers["probing"]["won"] == 0


@pytest.mark.long
def test_an_adapter_without_a_card_is_measured_on_the_rows_that_are_given(
    tiny_base: Path, tmp_path: Path, sets: dict[str, Any]
) -> None:
    adapter = make_adapter(tiny_base, tmp_path / "theirs")
    bare = make(adapter, tiny_base, sets)
    assert bare["domain"] is None and "--data_path" in bare["notes"]["domain"][0]
    assert bare["drift"] is None and bare["sweep"]["recommended"] is None
    rows = write_rows(tmp_path / "mine.jsonl", make_rows(20))
    given = make(adapter, tiny_base, sets, data_path=str(rows))
    assert given["domain"]["rows"] == 20 and "count as held out" in given["notes"]["domain"][0]
    assert not (adapter / "report" / "loss.png").exists()


def test_rows_that_changed_since_the_run_are_not_taken_for_its_own(
    trained: Path, tiny_base: Path, tmp_path: Path, sets: dict[str, Any]
) -> None:
    changed = write_rows(tmp_path / "rows.jsonl", make_rows(25))
    numbers = make(copied(trained, tmp_path / "lora"), tiny_base, sets, data_path=str(changed))
    assert numbers["domain"]["rows"] == 25 and "not the data that was trained on" in numbers["notes"]["domain"][0]


def test_general_rows_that_were_trained_on_do_not_measure(
    tiny_base: Path, tmp_path: Path, sets: dict[str, Any]
) -> None:
    adapter = make_adapter(tiny_base, tmp_path / "lora")
    write_card(tiny_base, adapter, sets["general_path"], val_set_size=0)
    with pytest.raises(NoRowsLeft, match="none of its 30 rows can measure"):
        make(adapter, tiny_base, sets, data_path=str(sets["general_path"]))


def test_dora_has_no_sweep_and_says_why(trained: Path, tiny_base: Path, tmp_path: Path, sets: dict[str, Any]) -> None:
    adapter = make_adapter(tiny_base, tmp_path / "dora", use_dora=True)
    write_card(tiny_base, adapter, trained.parent / "rows.jsonl")
    numbers = make(adapter, tiny_base, sets, data_path=str(trained.parent / "rows.jsonl"))
    assert numbers["sweep"] is None and "DoRA" in numbers["notes"]["sweep"][0]
    assert numbers["domain"]["rows"] == 4 and numbers["probing"]["kinds"]


def test_a_budget_leaves_rows_out_and_keeps_a_floor(
    trained: Path, tiny_base: Path, tmp_path: Path, sets: dict[str, Any]
) -> None:
    rows = write_rows(tmp_path / "many.jsonl", make_rows(150))
    numbers = make(copied(trained, tmp_path / "lora"), tiny_base, sets, data_path=str(rows), budget_seconds=0.001)
    assert numbers["domain"]["rows"] == 16
    assert [point["scale"] for point in numbers["sweep"]["points"]] == [0, 0.5, 1]
    assert len(numbers["samples"]) == 8
    assert (numbers["gain"]["rows"], numbers["gain"]["others"]) == (16, 1)
    assert "after 1 other question, not 4" in numbers["notes"]["gain"][0]


ANOTHER = {"messages": [{"role": "user", "content": "and hay"}, {"role": "assistant", "content": "in the field"},
                        {"role": "user", "content": "why"}, {"role": "assistant", "content": "grass"}]}  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "parts", "note"),
    [
        (make_rows(1), None, "there is only one held-out row"),
        ([{"text": "the alpaca eats hay"}, {"text": "the herd eats"}], None, "the held-out rows have no questions"),
        ([{**row, "output": "hay"} for row in make_rows(3)], None, "another question beside it, with another answer"),
        ([{**row, "system": "Be brief."} for row in make_rows(2)], (2, 1), None),
        ([*make_rows(2), {"text": "the alpaca eats hay"}], (2, 1), "1 held-out row without a question"),
        ([*make_rows(2), ANOTHER], (3, 2), "Of conversations, the last answer"),
    ],
    ids=["one", "raw", "one answer", "system", "some raw", "conversation"],
)
def test_rows_that_allow_no_split_of_the_gain_are_named_with_the_reason(
    tiny_base: Path,
    tmp_path: Path,
    sets: dict[str, Any],
    rows: list[Any],
    parts: tuple[int, int] | None,
    note: str | None,
) -> None:
    adapter = make_adapter(tiny_base, tmp_path / "theirs")
    numbers = make(adapter, tiny_base, sets, data_path=str(write_rows(tmp_path / "rows.jsonl", rows)))
    gain = numbers["gain"]
    assert (gain and (gain["rows"], gain["others"])) == parts
    assert [note in said for said in numbers["notes"]["gain"]] == [True] if note else not numbers["notes"]["gain"]


def _measure_for_ever(adapter: Path, base: Path, sets: dict[str, Any]) -> None:
    make(adapter, base, sets)


@pytest.mark.long
@pytest.mark.parametrize("moment", [".saving-report", ".saving-report/index.html"])
def test_a_report_that_is_killed_leaves_the_one_before_whole(
    trained: Path, tiny_base: Path, tmp_path: Path, sets: dict[str, Any], moment: str
) -> None:
    adapter = copied(trained, tmp_path / "lora")
    make(adapter, tiny_base, sets, budget_seconds=0.001)
    before = (adapter / "report" / "report.json").read_text(encoding="utf-8")
    process = multiprocessing.get_context("spawn").Process(target=_measure_for_ever, args=(adapter, tiny_base, sets))
    process.start()
    while process.is_alive() and not (adapter / moment).exists():
        time.sleep(0.0002)
    process.kill()
    process.join()
    page = (adapter / "report" / "index.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and page.endswith("</html>\n")
    after = (adapter / "report" / "report.json").read_text(encoding="utf-8")
    assert after == before or process.exitcode == 0 or json.loads(after)["format"] == 1
    assert (adapter / "report" / "training.json").read_text(encoding="utf-8") == json.dumps(HISTORY)
    make(adapter, tiny_base, sets, budget_seconds=0.001)
    assert not (adapter / ".saving-report").exists()


def test_a_report_that_fails_leaves_the_one_before(
    trained: Path, tiny_base: Path, tmp_path: Path, sets: dict[str, Any]
) -> None:
    adapter = copied(trained, tmp_path / "lora")
    make(adapter, tiny_base, sets, budget_seconds=0.001)
    before = tree(adapter)
    with pytest.raises(DataNotFound):
        make(adapter, tiny_base, sets, probes_path=tmp_path / "none.jsonl")
    assert tree(adapter) == before


# --- what can't be measured -----------------------------------------------------------------------------------------
def test_a_base_that_it_was_not_trained_on_is_refused(
    trained: Path, tiny_mha_base: Path, tmp_path: Path, sets: dict[str, Any]
) -> None:
    with pytest.raises(WrongBase):
        make(copied(trained, tmp_path / "lora"), tiny_mha_base, sets)


def test_a_damaged_adapter_is_refused(trained: Path, tiny_base: Path, tmp_path: Path, sets: dict[str, Any]) -> None:
    adapter = copied(trained, tmp_path / "lora")
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BadAdapter):
        make(adapter, tiny_base, sets)


def test_a_folder_that_is_no_adapter_is_refused(tiny_base: Path, tmp_path: Path, sets: dict[str, Any]) -> None:
    with pytest.raises(AdapterNotFound):
        make(tmp_path, tiny_base, sets)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--adapter", "/nowhere"], "E4001 AdapterNotFound: /nowhere has no adapter_config.json"),
        (["--adapter", "{adapter}", "--base_model", "/nowhere"], "E3001 BaseNotFound"),
        (["--adapter", "{adapter}", "--base_model", "{base}", "--budget", "-3"], "E5001 BadSetting: --budget is -3"),
        (["--adapter", "{adapter}", "--base_model", "{base}", "--budget", "nan"], "E5001 BadSetting: --budget is nan"),
        (["--adapter", "{adapter}", "--base_model", "{base}", "--data_path", "no.jsonl"], "E2001 DataNotFound"),
        (["--adapter", "{adapter}", "--base_model", "{base}", "--general_path", "no.jsonl"], "E2001 DataNotFound"),
    ],
)
def test_mistakes_in_the_command_end_with_a_code_and_status_2(
    trained: Path, tiny_base: Path, arguments: list[str], says: str
) -> None:
    done = command(*(argument.format(adapter=trained, base=tiny_base) for argument in arguments))
    assert done.returncode == 2
    assert says in done.stderr and "Traceback" not in done.stderr


def test_help_answers_without_torch() -> None:
    program = "import sys; import alpaca.evaluation.__main__; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
    assert "--budget" in command("--help").stdout


@pytest.mark.real
def test_damage_to_a_real_base_is_called_by_its_name(smollm2: Path, tmp_path: Path, sets: dict[str, Any]) -> None:
    adapter = make_adapter(smollm2, tmp_path / "noise", r=4, lora_alpha=32)
    numbers = make(adapter, smollm2, {"probes_path": sets["probes_path"]}, precision="auto", budget_seconds=1.0)
    assert numbers["general"]["rows"] == 16 and numbers["general"]["before"] < 4
    assert numbers["general"]["difference"]["low"] > 0
    assert numbers["verdict"]["forgetting"] == "much" and numbers["verdict"]["learned"] is None
    assert numbers["own_answers"]["after"] > numbers["own_answers"]["before"]
