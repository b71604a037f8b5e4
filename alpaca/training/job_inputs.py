"""What a client may ask of a training job, checked on the server's side; nothing heavy is imported for it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from alpaca.errors import BadSetting
from alpaca.training.config import FinetuneConfig

ADAPTER = "adapter"  # the folder of a job's adapter among its working files
OUTPUT_DIR = "OUTPUT_DIR"


def uploaded(value: Any) -> Path:
    """The file behind a Path input. Raises BadSetting for a path of the server's own disk.

    Cog turns URLs and data URLs into files of its own; a path that a client wrote down arrives as it was written, and
    following it would let anyone read the container's files.
    """
    path = Path(str(value))
    if isinstance(value, str) or not path.resolve().is_relative_to(Path(tempfile.gettempdir()).resolve()):
        raise BadSetting(f"train_data is {str(value)[:200]!r}: give an http(s) URL, or upload the file")
    return path


def named_base(value: str) -> str:
    """The base that a client names. Raises BadSetting for a URL other than the operator's own BASE_MODEL.

    A base is fetched from any address, for the operator; a client's URL would reach into the server's own network.
    """
    if "://" in value and value != os.environ.get("BASE_MODEL"):
        raise BadSetting(f"base_model is {value[:200]!r}: give a folder in weights/ or a hub id; URLs are not followed")
    return value


def prepare(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of train.py as settings of a fine-tune: plain values, the rows on this disk. Raises BadSetting."""
    names = {"train_data": "data_path", "train_template": "prompt_template_name"}
    values = {names.get(name, name): value for name, value in inputs.items()}
    values["data_path"] = str(uploaded(values["data_path"]))
    values["base_model"] = named_base(values.get("base_model", ""))
    settings(values, Path(ADAPTER))
    return values


def settings(values: dict[str, Any], folder: Path, resume: str = "") -> FinetuneConfig:
    """The configuration of a job that writes its adapter into `folder`. Raises BadSetting."""
    given = {**values, "output_dir": str(folder), "resume_from_checkpoint": resume}
    return FinetuneConfig.from_sourced({name: (value, "training input") for name, value in given.items()})
