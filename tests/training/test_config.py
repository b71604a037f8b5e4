"""Settings: every value checked by name, every spelling in use understood."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpaca.errors import BadSetting
from alpaca.training.config import FinetuneConfig
from tests.conftest import ROOT


def sourced(**values: Any) -> FinetuneConfig:
    return FinetuneConfig.from_sourced({name: (value, f"--{name}") for name, value in values.items()})


RANGES: list[tuple[str, list[Any], list[Any]]] = [
    ("num_epochs", [0.001, 0.5, 10_000], [0, -1, 10_001, "nan", "inf"]),
    ("batch_size", [1, 65_536], [0, -1, 65_537, 1.5]),
    ("micro_batch_size", [1], [0, 1.5, "four"]),
    ("micro_batch_tokens", [16], [15, 1e12]),
    ("learning_rate", [1e-9, 1, "1e-4"], [0, -1e-4, 1.1, "nan", "fast"]),
    ("warmup_ratio", [0, 1], [-0.1, 1.1, 100]),
    ("cutoff_len", [8, 1_048_576], [7, 0, -256]),
    ("val_set_size", [0, 0.1, 2000], [-1, "nan", "ten"]),
    ("lora_r", [1, 1024], [0, 1025, 8.5]),
    ("lora_alpha", [1e-3, 16, 0.5], [0, -16, "nan", "inf"]),
    ("lora_dropout", [0, 0.99], [-0.1, 1, "nan"]),
    ("eval_steps", [1], [0, -1]),
    ("early_stopping_patience", [1], [0, -1]),
    ("replay_ratio", [0, 0.1, "0.9"], [-0.1, 0.91, 1, "nan", "some"]),
    ("replay_kl", [0, 0.5, "5", 1000], [-0.1, 1001, "nan", "some"]),
    ("report_budget", [0, 0.05, 1], [-0.1, 1.1, "nan"]),
    ("seed", [0, 2**32 - 1], [-1, 2**32, 1.5]),
]


@pytest.mark.parametrize(("name", "good", "bad"), RANGES, ids=[row[0] for row in RANGES])
def test_numbers_are_held_within_their_limits(name: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert getattr(sourced(**{name: value}), name) == pytest.approx(float(value))
    for value in bad:
        with pytest.raises(BadSetting, match=rf"^E5001 BadSetting: (--{name}: )?{name} is ") as refused:
            sourced(**{name: value})
        assert ": from " in str(refused.value) or "not a" in str(refused.value)


def test_the_inputs_of_a_training_through_cog_have_the_ranges_of_the_settings() -> None:
    """Cog reads train.py's literals without running it, so they can't refer to the settings."""
    tree = ast.parse((ROOT / "train.py").read_text(encoding="utf-8"))
    train = next(node for node in tree.body if isinstance(node, ast.AsyncFunctionDef))
    inputs = {}
    for argument, call in zip(train.args.args, train.args.defaults, strict=True):
        assert isinstance(call, ast.Call)
        inputs[argument.arg] = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
    fields = {field.name: field.metadata for field in dataclasses.fields(FinetuneConfig)}
    checked = 0
    for name, said in inputs.items():
        if name in fields:
            limits = (said["ge"], said["le"]) if "ge" in said else None
            assert limits == fields[name].get("within"), name
            assert tuple(said.get("choices", ())) == fields[name].get("choices", ()), name
            checked += 1
    assert checked > 20


@pytest.mark.parametrize("field", dataclasses.fields(FinetuneConfig), ids=lambda field: field.name)
def test_every_setting_is_explained_and_its_default_is_valid_as_text(field: Any) -> None:
    assert len(field.metadata["help"]) > 15
    default = getattr(FinetuneConfig(), field.name)
    text = ",".join(default) if isinstance(default, list) else "none" if default is None else str(default)
    assert getattr(sourced(**{field.name: text}), field.name) == default


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"quantization": "fp8"}, "quantization is 'fp8': choose auto, bf16, fp32, int8 or nf4"),
        ({"report_to": "mlflow"}, "report_to is 'mlflow': choose none, tensorboard or wandb"),
        ({"lora_target_modules": ""}, r"lora_target_modules is \[\]"),
        ({"lora_target_modules": ".*"}, "lora_target_modules is"),
        ({"output_dir": " "}, "output_dir is ' ': name a folder|output_dir is '': name a folder"),
        ({"early_stopping_patience": 2, "val_set_size": 0}, "early_stopping_patience is 2: it needs validation rows"),
        ({"train_on_inputs": "maybe"}, "train_on_inputs is 'maybe', not true or false"),
        ({"lora_target_modules": 5}, "lora_target_modules is 5, not a list of names"),
        ({"data_path": ["a"]}, r"data_path is \['a'\], not text"),
        ({"batch_size": True}, "batch_size is True, not a whole number"),
        ({"batch_size": "1e400"}, "batch_size is '1e400', not a whole number"),
        ({"learningrate": 1}, "--learningrate: there is no setting 'learningrate'; did you mean learning_rate?"),
        ({"zzz": 1}, "there is no setting 'zzz'$"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadSetting, match=said):
        sourced(**changes)


@pytest.mark.parametrize(
    "spelling",
    ["q_proj,v_proj", "[q_proj,v_proj]", "['q_proj', 'v_proj']", '["q_proj","v_proj"]', "q_proj v_proj",
     "(q_proj, v_proj)",     ["q_proj", "v_proj"], " q_proj , v_proj "],
    ids=str,
)  # fmt: skip
def test_every_spelling_of_a_list(spelling: object) -> None:
    assert sourced(lora_target_modules=spelling).lora_target_modules == ["q_proj", "v_proj"]


@pytest.mark.parametrize("text", ["true", "True", "1", "yes", "on", True])
def test_every_spelling_of_yes(text: object) -> None:
    assert sourced(train_on_inputs=text).train_on_inputs is True
    assert (
        sourced(
            train_on_inputs={"true": "false", "True": "False", "1": "0", "yes": "no"}.get(str(text), "off")
        ).train_on_inputs
        is False
    )


@pytest.mark.parametrize("value", ["none", "None", "", None])
def test_nothing_where_nothing_is_meant(value: object) -> None:
    assert sourced(learning_rate=value).learning_rate is None
    with pytest.raises(BadSetting, match="batch_size"):
        sourced(batch_size=value)


def test_a_project_name_turns_its_reporter_on() -> None:
    assert FinetuneConfig(wandb_project="alpacas").report_to == "wandb"
    assert FinetuneConfig(wandb_project="alpacas", report_to="tensorboard").report_to == "tensorboard"


def test_a_micro_batch_is_never_larger_than_the_batch() -> None:
    assert FinetuneConfig(batch_size=4, micro_batch_size=16).micro_batch_size == 4


@pytest.mark.parametrize(
    ("text", "said"),
    [("- a\n- b", "not a list"), ("just words", "not a str"), ("", "not a NoneType"), ("a: [", "can't be read as YAML"),
     ("a: !!python/object/apply:os.system [echo]", "can't be read as YAML")],
)  # fmt: skip
def test_a_file_that_holds_no_settings(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(BadSetting, match=said):
        FinetuneConfig.from_yaml(tmp_path / "c.yaml")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=r"nowhere.yaml can't be read"):
        FinetuneConfig.from_yaml(tmp_path / "nowhere.yaml")


VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.lists(st.text(max_size=5), max_size=3)
)


@given(
    st.dictionaries(
        st.sampled_from([f.name for f in dataclasses.fields(FinetuneConfig)]) | st.text(max_size=9), VALUES, max_size=4
    )
)
def test_no_value_does_more_than_be_refused(values: dict[str, Any]) -> None:
    try:
        sourced(**values)
    except BadSetting as refused:
        assert str(refused).startswith("E5001")
