"""The documents: options, inputs, commands, links and error codes in them exist, with the defaults they state."""

from __future__ import annotations

import ast
import dataclasses
import functools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alpaca import errors
from alpaca.prompts.alpaca import AlpacaTemplate
from alpaca.training.cli import ENVIRONMENT
from alpaca.training.cli import parser as finetune_parser
from alpaca.training.config import FinetuneConfig
from tests.conftest import ROOT, project_files

FOLDERS = ("data", "weights", "unconverted-weights")
DOCUMENTS = sorted(
    [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / folder / "README.md" for folder in FOLDERS)]
)
EACH_DOCUMENT = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
# Words that stand between a module and its options.
WORDS = "serve|train|predict|merged|gguf-lora|gguf|meta|vllm|check|instruct|translate"
COG_COMMANDS = {"build", "exec", "login", "predict", "push", "run", "serve", "train"}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def table_rows(text: str, first_cell: str) -> dict[str, list[str]]:
    """Table rows whose first cell matches, by what stands in its backticks. No name may have two rows."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| ") and (match := re.fullmatch(first_cell, cells[0])):
            assert match[1] not in found, f"{match[1]} stands in two rows"
            found[match[1]] = cells[1:]
    return found


MOST_CHANGED = "## The ones most often changed"


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next one of its level."""
    level = re.match("#+", heading)
    assert level and f"\n{heading}\n" in text, heading
    return re.split(rf"\n{level[0]} ", text.split(f"\n{heading}\n")[1])[0]


def shown(value: Any) -> str:
    """A default as the tables write it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(value)
    if isinstance(value, int | float):
        return f"{value:g}"
    return "none" if value is None else str(value) or "empty"


def option_defaults() -> dict[str, str]:
    made = FinetuneConfig()
    return {field.name: shown(getattr(made, field.name)) for field in dataclasses.fields(made)}


def inputs_of(file: str, *names: str) -> dict[str, Any]:
    """Input name → default of an entry point, from its source; `...` where there is none."""
    node: Any = ast.parse(read(file))
    for name in names:
        node = next(inner for inner in node.body if getattr(inner, "name", "") == name)
    plain = [argument.arg for argument in node.args.args if argument.arg != "self"]
    calls = node.args.defaults
    assert len(plain) == len(calls)
    defaults = [{k.arg: k.value for k in call.keywords}.get("default") for call in calls]
    return {n: ... if d is None else ast.literal_eval(d) for n, d in zip(plain, defaults, strict=True)}


# --- tables -------------------------------------------------------------------------------------------------------
def test_the_page_of_options_has_every_option_with_its_default() -> None:
    text = read("docs/options.md")
    rows = table_rows(text.replace(section(text, MOST_CHANGED), ""), r"`--(\w+)`")
    assert {name: cells[0] for name, cells in rows.items()} == option_defaults()
    assert all(cells[2] for cells in rows.values())


def test_the_short_table_of_options_states_the_same_defaults() -> None:
    rows = table_rows(section(read("docs/options.md"), MOST_CHANGED), r"`--(\w+)`")
    defaults = option_defaults()
    assert len(rows) > 10
    assert {name: cells[0] for name, cells in rows.items()} == {name: defaults[name] for name in rows}


def test_the_page_of_predictions_has_every_input_with_its_default() -> None:
    rows = table_rows(section(read("docs/predicting.md"), "## Inputs of a prediction"), r"`(\w+)`")
    inputs = inputs_of("predict.py", "Runner", "run")
    assert {name: cells[0] for name, cells in rows.items()} == {name: shown(value) for name, value in inputs.items()}


def test_the_inputs_of_a_training_are_options_with_the_same_defaults() -> None:
    text = section(read("docs/options.md"), "## Inputs of a training through Cog").strip()
    inputs = inputs_of("train.py", "train")
    options, others = (re.findall(r"`(\w+)`", part) for part in text.split("\n\n")[1:3])
    assert options + others == list(inputs)
    renamed = {"train_template": "prompt_template_name"}
    defaults = option_defaults()
    for name in options:
        if name != "train_data":
            assert shown(inputs[name]) == defaults[renamed.get(name, name)], name
    assert all(inputs[name] is None for name in others), "what is not given must not count"


def test_the_environment_variables_are_those_that_the_code_reads() -> None:
    rows = table_rows(section(read("docs/options.md"), "## Environment variables"), r"`([A-Z_]+)`")
    code = "\n".join(
        path.read_text(encoding="utf-8") for path in [*(ROOT / "alpaca").rglob("*.py"), ROOT / "predict.py"]
    )
    unread = [name for name in rows if name != "COG_WEIGHTS" and f'"{name}"' not in code]
    assert not unread
    assert rows.keys() >= ENVIRONMENT.keys()


def test_every_place_that_a_sampling_option_touches_is_listed() -> None:
    """Whoever adds an option goes through the list; a file that deals with each of them belongs on it."""
    rows = [line for line in read("docs/architecture.md").splitlines() if line.startswith("| a new sampling option |")]
    option, *listed = re.findall(r"`([^`]+)`", rows[0])
    assert option in inputs_of("predict.py", "Runner", "run")
    here = {path.relative_to(ROOT).as_posix() for path in project_files() if option.encode() in path.read_bytes()}
    assert sorted(listed) == sorted(here - {"docs/architecture.md"})


# --- commands -----------------------------------------------------------------------------------------------------
def commands(path: Path) -> list[str]:
    """Shell commands in a document: lines of bash blocks, joined where they continue, and commands in the text."""
    text = path.read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    outside = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [*blocks.splitlines(), *re.findall(r"`([^`\n]+)`", outside)]


@functools.cache
def options_of(program: str) -> frozenset[str]:
    """The options that a program of the project takes, as its --help says."""
    if program == "finetune.py":
        return frozenset(option for action in finetune_parser()._actions for option in action.option_strings)
    command = [sys.executable, "-m", *program.removeprefix("-m ").split(), "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{program}: {done.stderr}"
    return frozenset(re.findall(r"(?<![\w-])--?\w[\w-]*", done.stdout))


@EACH_DOCUMENT
def test_every_python_command_takes_the_options_it_is_shown_with(path: Path) -> None:
    checked = 0
    for command in commands(path):
        found = re.search(rf"(finetune\.py|-m alpaca(?:\.\w+)+(?: (?:{WORDS})\b)?)(.*)", command)
        if not found or not re.search(r"python|torchrun", command):
            continue
        used = set(re.findall(r"(?<![\w-])--?[a-z]\w*", re.sub(r"\"[^\"]*\"|'[^']*'", "", found[2])))
        assert used <= options_of(found[1]), command
        checked += 1
    assert checked or path.parent.name in ("data", "weights", "docs")


@EACH_DOCUMENT
def test_every_cog_command_is_one_and_its_inputs_exist(path: Path) -> None:
    inputs = inputs_of("predict.py", "Runner", "run")
    for command in commands(path):
        if found := re.match(r"cog ([a-z]+)\b", command):
            assert found[1] in COG_COMMANDS, command
            assert set(re.findall(r"-i (\w+)=", command)) <= inputs.keys(), command


@EACH_DOCUMENT
def test_cog_run_makes_a_prediction_and_cog_exec_runs_a_command(path: Path) -> None:
    """The Cogs that know cog.yaml's key `run` take `cog run python …` for a prediction: only the past is told of it."""
    other = {command for command in commands(path) if re.match(r"cog run [^-]", command)}
    assert other == ({"cog run python finetune.py", "cog run python …"} if path.name == "migrating.md" else set())


@EACH_DOCUMENT
def test_every_make_command_names_a_target(path: Path) -> None:
    targets = re.findall(r"^([a-z][a-z-]*):.*## ", read("Makefile"), re.MULTILINE)
    variables = re.findall(r"^(?:export )?([A-Z]+) +\??=", read("Makefile"), re.MULTILINE)
    for command in commands(path):
        if found := re.search(r"(?:^|\s)make ([a-z-]+)(.*)", command):
            assert found[1] in targets, command
            assert set(re.findall(r"\b([A-Z]+)=", found[2])) <= {*variables, "PROMPT"}, command


def test_the_requests_in_the_documents_hold_inputs_that_exist() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    sent = [json.loads(body) for body in re.findall(r"-d '(\{.*?\})'", text)]
    bodies = [body["input"] for body in sent if "messages" not in body]  # which are for the gateway
    known = {*inputs_of("predict.py", "Runner", "run"), *inputs_of("train.py", "train")}
    assert len(bodies) > 4
    assert not [name for body in bodies for name in body if name not in known]


# --- the rest -----------------------------------------------------------------------------------------------------
def test_a_newcomer_reads_the_readme_to_its_end_and_finds_every_page_from_there() -> None:
    text = read("README.md")
    assert len(text.splitlines()) < 275
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert set(re.findall(r"\]\(docs/([\w-]+\.md)\)", section(text, "## Where to go next"))) == pages


@EACH_DOCUMENT
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = path.parent / file if file else path
        assert there.exists(), target
        headings = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not anchor or anchor in slugs, target


@EACH_DOCUMENT
def test_error_codes_are_those_of_the_code(path: Path) -> None:
    for code, name in re.findall(r"\b(E\d{4}) (\w+)", path.read_text(encoding="utf-8")):
        assert getattr(errors, name).code == code


def test_the_page_on_data_names_the_templates_there_are() -> None:
    text = section(read("docs/data.md"), "## Templates")
    shipped = [file.stem for file in project_files(".json") if file.parent.name == "templates"]
    assert shipped and not [name for name in shipped if f"`{name}`" not in text]


def test_the_template_in_the_page_on_data_works() -> None:
    found = re.search(r"```json\n(\{\n.*?)```", section(read("docs/data.md"), "## Templates"), re.DOTALL)
    assert found
    AlpacaTemplate("example", json.loads(found[1]))


def test_the_rows_in_the_readme_can_be_read(tmp_path: Path) -> None:
    from alpaca.data.reader import read_examples

    found = re.search(r"```json\n(\{\"instruction.*?)```", section(read("README.md"), "## Your own data"), re.DOTALL)
    assert found
    (tmp_path / "rows.jsonl").write_text(found[1], encoding="utf-8")
    assert len(read_examples(str(tmp_path / "rows.jsonl")).examples) == 3


def test_the_refusal_in_the_page_on_data_is_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alpaca.data.reader import read_examples

    rows: list[dict[str, Any]] = [
        {"instruction": "What is a cria?", "output": "A young alpaca."},
        {"instruction": " ", "output": "Hay."},
        {"prompt": "What do alpacas eat?", "response": "Hay."},
        {"instruction": "Add.", "input": 3, "output": "4"},
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.BadRows) as refused:
        read_examples("mine.jsonl")
    found = re.search(
        r"```\nerror: (E2002 .*?)\n```", section(read("docs/data.md"), "## What training refuses"), re.DOTALL
    )
    assert found and found[1] == str(refused.value)


def test_the_way_to_convert_a_pickled_adapter_works(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    found = re.search(r"```python\n(.*?)```", read("docs/migrating.md"), re.DOTALL)
    assert found
    tensors = {"base_model.model.x.lora_A.weight": torch.arange(6.0).view(2, 3).t()}  # not contiguous
    torch.save(tensors, tmp_path / "adapter_model.bin")
    done = subprocess.run([sys.executable, "-c", found[1], str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = load_file(str(tmp_path / "adapter_model.safetensors"))
    assert made.keys() == tensors.keys()
    assert all(torch.equal(made[name], tensor) for name, tensor in tensors.items())


def test_an_old_adapters_configuration_is_understood() -> None:
    """What alpaca-lora's PEFT wrote, fields that are long gone included."""
    from alpaca.adapter.lora_config import parse_config

    spec = parse_config(
        {
            "base_model_name_or_path": "owner/llama-7b", "bias": "none", "enable_lora": None, "fan_in_fan_out": False,
            "inference_mode": True, "lora_alpha": 16, "lora_dropout": 0.05, "merge_weights": False,
            "modules_to_save": None, "peft_type": "LORA", "r": 8, "target_modules": ["q_proj", "v_proj"],
            "task_type": "CAUSAL_LM",
        }
    )  # fmt: skip
    assert (spec.r, spec.lora_alpha, spec.target_modules) == (8, 16, ("q_proj", "v_proj"))
