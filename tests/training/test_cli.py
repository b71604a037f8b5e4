"""The command line: alpaca-lora's flags, a YAML file, the environment, and which of them wins."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from alpaca.errors import BadSetting
from alpaca.training.cli import parser, read_settings
from alpaca.training.config import FinetuneConfig


def test_no_arguments_are_the_defaults() -> None:
    assert read_settings([]) == FinetuneConfig()


OLD_COMMAND = """--base_model decapoda-research/llama-7b-hf --data_path yahma/alpaca-cleaned --output_dir ./lora-alpaca
    --batch_size 128 --micro_batch_size 4 --num_epochs 3 --learning_rate 1e-4 --cutoff_len 512 --val_set_size 2000
    --lora_r 8 --lora_alpha 16 --lora_dropout 0.05 --lora_target_modules [q_proj,v_proj] --train_on_inputs
    --add_eos_token False --group_by_length --wandb_project alpacas --wandb_run_name first --wandb_watch gradients
    --wandb_log_model true --resume_from_checkpoint ./lora-alpaca/checkpoint-200 --prompt_template_name alpaca"""


def test_alpaca_lora_s_whole_command_line_is_understood() -> None:
    assert read_settings(OLD_COMMAND.split()) == FinetuneConfig(
        base_model="decapoda-research/llama-7b-hf", data_path="yahma/alpaca-cleaned", output_dir="./lora-alpaca",
        batch_size=128, micro_batch_size=4, num_epochs=3, learning_rate=1e-4, cutoff_len=512, val_set_size=2000,
        lora_r=8, lora_alpha=16, lora_dropout=0.05, lora_target_modules=["q_proj", "v_proj"], train_on_inputs=True,
        add_eos_token=False, group_by_length=True, wandb_project="alpacas", wandb_run_name="first",
        wandb_watch="gradients", wandb_log_model="true", report_to="wandb",
        resume_from_checkpoint="./lora-alpaca/checkpoint-200", prompt_template_name="alpaca",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--lora_target_modules=[q_proj,k_proj,v_proj,o_proj]"], ["q_proj", "k_proj", "v_proj", "o_proj"]),
        (["--lora_target_modules", "['q_proj', 'v_proj']"], ["q_proj", "v_proj"]),
        (["--lora_target_modules", "q_proj", "v_proj"], ["q_proj", "v_proj"]),
        (["--lora_target_modules", "[q_proj,", "v_proj]"], ["q_proj", "v_proj"]),
        (["--lora_target_modules", "q_proj,v_proj"], ["q_proj", "v_proj"]),
        (["--lora_target_modules", "all-linear"], ["all-linear"]),
    ],
)
def test_target_modules_in_every_spelling(arguments: list[str], wanted: list[str]) -> None:
    assert read_settings(arguments).lora_target_modules == wanted


@pytest.mark.parametrize(
    ("arguments", "name", "wanted"),
    [
        (["--dry_run"], "dry_run", True),
        (["--dry_run", "false"], "dry_run", False),
        (["--use_dora=True"], "use_dora", True),
        (["--resume_from_checkpoint"], "resume_from_checkpoint", "true"),
        (["--resume_from_checkpoint", "auto"], "resume_from_checkpoint", "auto"),
        (["--val_set_size", "0"], "val_set_size", 0.0),
        (["--val_set_size", "0.2"], "val_set_size", 0.2),
        (["--learning_rate", "none"], "learning_rate", None),
    ],
)
def test_flags_with_and_without_a_value(arguments: list[str], name: str, wanted: Any) -> None:
    assert getattr(read_settings(arguments), name) == wanted


def test_options_win_over_the_environment_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        "data_path: file.json\nmicro_batch_size: 1\nlora_r: 2\nlora_target_modules: [q_proj]\nlearning_rate: 1e-4\n"
    )
    assert read_settings(["--config", str(config)]) == FinetuneConfig(
        data_path="file.json", micro_batch_size=1, lora_r=2, lora_target_modules=["q_proj"], learning_rate=1e-4
    )
    monkeypatch.setenv("DATA_PATH", "environment.json")
    monkeypatch.setenv("MICRO_BATCH_SIZE", "5")
    assert read_settings([]) == FinetuneConfig(data_path="environment.json", micro_batch_size=5)
    both = read_settings(["--config", str(config), "--data_path", "option.json"])
    assert (both.data_path, both.micro_batch_size, both.lora_r) == ("option.json", 5, 2)
    monkeypatch.setenv("DATA_PATH", "")
    assert read_settings([]).data_path == FinetuneConfig().data_path


def test_a_bad_value_names_where_it_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "c.yaml"
    for text, said in [("learnin_rate: 1", "there is no setting 'learnin_rate'; did you mean learning_rate"),
                       ("lora_r: many", "lora_r is 'many', not a whole number"),
                       ("5: 1", "there is no setting '5'")]:  # fmt: skip
        config.write_text(text)
        with pytest.raises(BadSetting, match=f"^E5001 BadSetting: {config}: {said}"):
            read_settings(["--config", str(config)])
    with pytest.raises(BadSetting, match="--lora_r: lora_r is 'x'"):
        read_settings(["--lora_r", "x"])
    monkeypatch.setenv("MICRO_BATCH_SIZE", "x")
    with pytest.raises(BadSetting, match="the variable MICRO_BATCH_SIZE: micro_batch_size is 'x'"):
        read_settings([])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--learning_rte", "1"], "there is no option --learning_rte; did you mean --learning_rate?"),
        (["--epochs=5"], "there is no option --epochs=5; "),
        (["rows.json"], "'rows.json' is no option; did you mean --data_path rows.json?"),
        (["mine"], "'mine' is no option; --help lists the options"),
    ],
)
def test_an_unknown_option_is_refused(arguments: list[str], said: str) -> None:
    with pytest.raises(BadSetting, match=r"^E5001 BadSetting: ") as refused:
        read_settings(arguments)
    assert said in str(refused.value)


def test_an_option_without_its_value_ends_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        read_settings(["--lora_r"])
    assert ended.value.code == 2
    assert "argument --lora_r: expected one argument" in capsys.readouterr().err


def test_the_help_names_every_option() -> None:
    text = parser().format_help()
    for field in dataclasses.fields(FinetuneConfig):
        assert f"--{field.name} " in text
