"""A fine-tune as a training job: inputs come as plain values, the adapter leaves as one archive."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from alpaca.archive import pack
from alpaca.errors import BadSetting
from alpaca.training.config import FinetuneConfig
from alpaca.training.run import finetune

ARCHIVE = "lora-weights.zip"


def uploaded(value: Any) -> Path:
    """The file behind a Path input. Raises BadSetting for a path of the server's own disk.

    Cog turns URLs and data URLs into files of its own; a path that a client wrote down arrives as it was written, and
    following it would let anyone read the container's files.
    """
    path = Path(str(value))
    if isinstance(value, str) or not path.resolve().is_relative_to(Path(tempfile.gettempdir()).resolve()):
        raise BadSetting(f"train_data is {str(value)[:200]!r}: give an http(s) URL, or upload the file")
    return path


def run_job(inputs: dict[str, Any]) -> Path:
    """Fine-tune with the inputs of train.py and return the archive of the adapter.

    The archive stays until this process runs its next job, because Cog reads it after the job has returned; whatever
    else was written is gone, also when the job is cancelled. Raises AlpacaError.
    """
    names = {"train_data": "data_path", "train_template": "prompt_template_name"}
    values = {names.get(name, name): value for name, value in inputs.items()}
    values["data_path"] = str(uploaded(values["data_path"]))
    work = Path(tempfile.gettempdir()) / f"alpaca-job-{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)
    values["output_dir"] = str(work / "adapter")
    config = FinetuneConfig.from_sourced({name: (value, "training input") for name, value in values.items()})
    try:
        finetune(config)
        return pack(work / "adapter", work / ARCHIVE)
    finally:
        shutil.rmtree(work / "adapter", ignore_errors=True)
