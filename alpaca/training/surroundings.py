"""What a run finds where it begins: what would fail once the data is read or the base is loaded is refused at once."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from alpaca.adapter.card import CARD
from alpaca.adapter.folder import ASIDE
from alpaca.adapter.lora_config import CONFIG
from alpaca.errors import BadSetting
from alpaca.progress import is_main_process
from alpaca.training.config import FinetuneConfig
from alpaca.training.lock import refuse_where_busy


def check_surroundings(config: FinetuneConfig) -> None:
    """Raises BadSetting, and TrainingBusy where another run writes into the output folder."""
    if config.report_to != "none" and importlib.util.find_spec(config.report_to) is None:
        raise BadSetting(f"report_to {config.report_to}: the package is not installed (pip install {config.report_to})")
    if is_main_process():  # no other one touches it, and another machine may not even have it
        check_output(config)


def check_output(config: FinetuneConfig) -> None:
    """The folder that the run writes into. Raises BadSetting, and TrainingBusy."""
    output = Path(config.output_dir)
    there = next(path for path in (output, *output.absolute().parents) if path.exists())
    if not there.is_dir():
        raise BadSetting(f"output_dir is {config.output_dir!r}, and {there} is a file, not a folder")
    half_in_place = (output / ASIDE).is_dir()  # a run was killed there
    if (output / "config.json").exists() and not (output / CARD).exists() and not half_in_place:
        raise BadSetting(
            f"output_dir is {config.output_dir!r}, which holds a model that no fine-tune made and that would be moved "
            f"away: give the {'model' if config.finetuning_type == 'full' else 'adapter'} a folder of its own"
        )
    readme = output / "README.md"
    if readme.is_file() and not (output / CONFIG).exists() and not readme.read_bytes().startswith(b"---\nbase_model:"):
        raise BadSetting(
            f"output_dir is {config.output_dir!r}, which holds a README.md that is no adapter's and would be replaced: "
            "give the adapter a folder of its own"
        )
    refuse_where_busy(output)
