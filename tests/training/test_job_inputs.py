"""What a client may ask of a training job, and what it may not reach with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cog import Secret

from alpaca.errors import AlpacaError, BadSetting, BaseNotFound, TemplateNotFound
from alpaca.training.job_inputs import ALLOWED_BASES, prepare, secrets
from tests.conftest import make_base

TOKEN = "hf_notARealToken"


class Upload(type(Path())):  # type: ignore[misc]
    """What Cog makes of an uploaded file: a path that is no text."""


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The least that a client sends, to a server in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(ALLOWED_BASES, raising=False)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"instruction": "Say hay.", "output": "hay"}))
    return {"train_data": Upload(rows)}


# --- templates ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["auto", "chat", "alpaca", "alpaca_de"])
def test_a_template_that_ships_may_be_named(inputs: dict[str, Any], name: str) -> None:
    assert prepare({**inputs, "train_template": name})["prompt_template_name"] == name


def test_no_other_template_is_opened_and_the_refusal_is_the_same_for_what_is_there(
    inputs: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "there.json").write_text('{"db_password": "hunter2"}')
    said = []
    for name in ("there", "gone"):
        for folder in (f"{tmp_path}/", "", "./", f"../{tmp_path.name}/"):
            with pytest.raises(TemplateNotFound) as caught:
                prepare({**inputs, "train_template": f"{folder}{name}.json"})
            said.append(caught.value.message.replace(name, "NAME"))
    assert said[:4] == said[4:]
    assert "db_password" not in str(said)
    assert "There are: alpaca, " in said[0]


# --- bases --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("spelling", ["mine", "weights/mine"])
def test_a_base_in_weights_may_be_named(inputs: dict[str, Any], tmp_path: Path, spelling: str) -> None:
    make_base(tmp_path / "weights" / "mine")
    assert prepare({**inputs, "base_model": spelling})["base_model"] == "weights/mine"


@pytest.mark.parametrize(
    "value",
    ["{tmp}/elsewhere", "elsewhere", "./elsewhere", "weights/../elsewhere", "weights", "~", "a\0b", "owner/name"],
)  # fmt: skip
def test_no_other_folder_or_hub_id_is_looked_at(inputs: dict[str, Any], tmp_path: Path, value: str) -> None:
    make_base(tmp_path / "elsewhere")
    make_base(tmp_path / "weights" / "mine")
    with pytest.raises(BaseNotFound, match="This server has: mine, none from the hub"):
        prepare({**inputs, "base_model": value.format(tmp=tmp_path)})


def test_the_operators_own_base_may_be_named(inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BASE_MODEL", "/anywhere/base")
    assert prepare({**inputs, "base_model": "/anywhere/base"})["base_model"] == "/anywhere/base"
    assert prepare(inputs)["base_model"] == ""


@pytest.mark.parametrize(
    ("allowed", "value", "taken"),
    [
        ("owner/name", "owner/name", True),
        ("owner/name", "owner/other", False),
        ("one/*, two/small-*", "two/small-1B", True),
        ("one/*, two/small-*", "two/large", False),
        ("*", "any/thing", True),
        ("*", "elsewhere/inner", False),  # a folder of the server
        ("*", "../elsewhere", False),
        ("*", "/etc/ssl", False),
    ],
)
def test_hub_ids_are_those_that_the_operator_allows(
    inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: str, value: str, taken: bool
) -> None:
    (tmp_path / "elsewhere" / "inner").mkdir(parents=True)
    monkeypatch.setenv(ALLOWED_BASES, allowed)
    if taken:
        assert prepare({**inputs, "base_model": value})["base_model"] == value
    else:
        with pytest.raises(BaseNotFound):
            prepare({**inputs, "base_model": value})


# --- the names of Replicate's trainers ----------------------------------------------------------------------------
def test_replicates_names_are_taken_for_ours(inputs: dict[str, Any]) -> None:
    older = {"num_train_epochs": 2.0, "train_batch_size": 8, "lora_rank": 4, "num_validation_samples": 5}
    ours = {"num_epochs": 3.0, "batch_size": 16, "lora_r": 16, "val_set_size": None}  # what Cog fills in
    values = prepare({**inputs, **ours, **older, "validation_prompt": "Say hay."})
    assert values["num_epochs"] == 2 and values["batch_size"] == 8 and values["lora_r"] == 4
    assert values["val_set_size"] == 5
    assert not older.keys() & values.keys() and "validation_prompt" not in values


def test_two_names_for_one_setting_must_agree(inputs: dict[str, Any]) -> None:
    assert prepare({**inputs, "lora_r": 8, "lora_rank": 8})["lora_r"] == 8
    with pytest.raises(BadSetting, match="lora_r is 8 and lora_rank, its other name, is 4: give one of them"):
        prepare({**inputs, "lora_r": 8, "lora_rank": 4})


def test_an_input_that_was_not_given_leaves_no_trace_in_the_settings(inputs: dict[str, Any]) -> None:
    """A job's kept folder is named after its settings: new inputs must not give finished jobs another name."""
    unused = ("validation_data", "hf_token", "num_train_epochs", "train_batch_size", "lora_rank",
              "num_validation_samples", "validation_prompt")  # fmt: skip
    assert prepare({**inputs, **dict.fromkeys(unused)}) == prepare(inputs)


def test_validation_data_must_be_uploaded_too(inputs: dict[str, Any]) -> None:
    values = prepare({**inputs, "validation_data": inputs["train_data"]})
    assert values["val_data_path"] == str(inputs["train_data"])
    with pytest.raises(BadSetting, match="validation_data is '/etc/hostname': give an http"):
        prepare({**inputs, "validation_data": "/etc/hostname"})


# --- the token ----------------------------------------------------------------------------------------------------
def test_a_token_goes_into_the_environment_and_never_into_the_settings(inputs: dict[str, Any]) -> None:
    given = {**inputs, "hf_token": Secret(TOKEN)}
    assert secrets(given) == {"HF_TOKEN": TOKEN}
    assert TOKEN not in str(prepare(given))
    assert secrets(inputs) == secrets({**inputs, "hf_token": Secret(" ")}) == {}


@pytest.mark.parametrize("token", [f"{TOKEN} x", f"{TOKEN}\r\nHost: evil", f'"{TOKEN}"', f"{TOKEN}é"])
def test_a_token_that_no_header_may_hold_is_refused_without_being_shown(inputs: dict[str, Any], token: str) -> None:
    with pytest.raises(AlpacaError, match="hf_token holds characters that no token has") as caught:
        secrets({**inputs, "hf_token": Secret(token)})
    assert TOKEN not in str(caught.value)


# --- an adapter to go on with -------------------------------------------------------------------------------------
@pytest.mark.parametrize("value", ["https://example.com/a.zip", "data:application/zip;base64,UEsDBA=="])
def test_an_adapter_comes_by_url_or_in_the_request(inputs: dict[str, Any], value: str) -> None:
    values = prepare({**inputs, "adapter": value, "new_adapter": False})
    assert values["adapter"] == value
    assert "new_adapter" not in values
    assert prepare({**inputs, "adapter": value, "new_adapter": True})["new_adapter"] is True


@pytest.mark.parametrize("value", ["lora-alpaca", "/etc", "file:///etc", "data:,text", "../lora-a", "ftp://a/b.zip"])
def test_no_folder_of_the_server_is_an_adapter(inputs: dict[str, Any], value: str) -> None:
    with pytest.raises(BadSetting, match=r"adapter is .*: give the https URL of an archive"):
        prepare({**inputs, "adapter": value})


def test_a_second_adapter_needs_a_first(inputs: dict[str, Any]) -> None:
    assert "adapter" not in prepare({**inputs, "adapter": None, "new_adapter": False})
    with pytest.raises(BadSetting, match=r"new_adapter is true: .* give that one as adapter"):
        prepare({**inputs, "new_adapter": True})
