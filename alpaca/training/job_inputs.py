"""What a client may ask of a training job, checked on the server's side; nothing heavy is imported for it.

A client of a server is not its operator: it names templates that ship, bases in weights/ and hub ids that the operator
allows. What is refused is refused in the same words whether it is on the server's disk or not.
"""

from __future__ import annotations

import fnmatch
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from alpaca.base.find import WEIGHTS, bases_in
from alpaca.errors import BadSetting, BaseNotFound, TemplateNotFound
from alpaca.prompts.find import template_names
from alpaca.training.config import FinetuneConfig

ADAPTER = "adapter"  # the folder of a job's adapter among its working files
ANCESTOR = "ancestor"  # the folder of the adapter that a client brings
OUTPUT_DIR = "OUTPUT_DIR"
ALLOWED_BASES = "ALPACA_ALLOWED_BASES"
RENAMED = {"train_data": "data_path", "train_template": "prompt_template_name", "validation_data": "val_data_path"}
"""Inputs of train.py that are options by another name."""
SHAPE = ("lora_r", "lora_alpha", "lora_target_modules", "use_rslora", "use_dora")
OLDER_NAMES = {"num_train_epochs": "num_epochs", "train_batch_size": "batch_size", "lora_rank": "lora_r"}
"""Names that Replicate's trainers have for inputs of ours; num_validation_samples and validation_prompt stand apart."""


def uploaded(value: Any, name: str = "train_data") -> Path:
    """The file behind a Path input. Raises BadSetting for a path of the server's own disk.

    Cog turns URLs and data URLs into files of its own; a path that a client wrote down arrives as it was written, and
    following it would let anyone read the container's files.
    """
    path = Path(str(value))
    if isinstance(value, str) or not path.resolve().is_relative_to(Path(tempfile.gettempdir()).resolve()):
        raise BadSetting(f"{name} is {str(value)[:200]!r}: give an http(s) URL, or upload the file")
    return path


def named_base(value: str) -> str:
    """The base that a client names, as a path in weights/ or a hub id. Raises BadSetting for a URL, BaseNotFound for
    anything else.

    The operator's own BASE_MODEL may be named, whatever it is. A path of the client's, or a URL that is fetched, would
    reach into the server's disk and network.
    """
    if value in ("", os.environ.get("BASE_MODEL")):
        return value
    if "://" in value:
        raise BadSetting(f"base_model is {value[:200]!r}: give a folder in weights/ or a hub id; URLs are not followed")
    there = {base.name: str(base) for base in bases_in(WEIGHTS)}
    if found := there.get(value.removeprefix(f"{WEIGHTS}/")):
        return found
    allowed = os.environ.get(ALLOWED_BASES, "").replace(",", " ").split()
    is_hub_id = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", value) and not os.path.isdir(value)
    if is_hub_id and any(fnmatch.fnmatchcase(value, pattern) for pattern in allowed):
        return value
    named = f"This server has: {', '.join(there)}" if there else "This server has none to choose from"
    hub = f"from the hub {', '.join(allowed)}" if allowed else f"none from the hub ({ALLOWED_BASES} would allow some)"
    raise BaseNotFound(f"base_model is {value[:200]!r}. {named}, {hub}")


def named_template(value: str) -> str:
    """The template that a client names: one that ships, chat or auto. Raises TemplateNotFound for any other."""
    if value not in (names := template_names()):
        raise TemplateNotFound(f"train_template is {value[:100]!r}. There are: {', '.join(names)}")
    return value


def named_adapter(value: str) -> str:
    """The adapter that a client brings, as the URL that the job fetches. Raises BadSetting for anything else: a path of
    the client's would reach into the server's disk."""
    if re.match(r"https?://", value) or re.match(r"data:[^,]*;base64,", value):
        return value
    shown = value[:40] if value.startswith("data:") else value[:200]
    raise BadSetting(f"adapter is {shown!r}: give the https URL of an archive, or upload it as data:…;base64,…")


def secrets(inputs: dict[str, Any]) -> dict[str, str]:
    """What a job's process is told by its environment only, and is never written down: the client's token for gated
    bases, as the variable that the hub's client reads.

    Raises BadSetting, without the token, for what no header may hold: the hub's client would quote it in its error.
    """
    value = inputs.get("hf_token")
    text = str("" if value is None else value.get_secret_value() or "").strip()
    if not re.fullmatch(r"[\w.-]*", text, re.ASCII):
        raise BadSetting("hf_token holds characters that no token has: give it alone, without quotes or spaces")
    return {"HF_TOKEN": text} if text else {}


def prepare(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of train.py as settings of a fine-tune: plain values, the files on this disk. Raises AlpacaError."""
    values = todays_names({name: value for name, value in inputs.items() if name != "hf_token"})
    values["data_path"] = str(uploaded(values["data_path"]))
    if (second := values.pop("val_data_path", None)) is not None:
        values["val_data_path"] = str(uploaded(second, "validation_data"))
    for name in ("columns", "replay_self", "replay_kl"):
        if values.get(name) in (None, ""):
            values.pop(name, None)  # what is left out keeps the name that a job of these inputs had before
    if (adapter := values.pop("adapter", None)) not in (None, ""):
        values["adapter"] = named_adapter(str(adapter))
    elif values.get("new_adapter"):
        raise BadSetting("new_adapter is true: it goes beside another adapter: give that one as adapter")
    if not values.get("new_adapter"):
        values.pop("new_adapter", None)
    values["base_model"] = named_base(values.get("base_model", ""))
    values["prompt_template_name"] = named_template(values.get("prompt_template_name", "auto"))
    settings(values, Path(ADAPTER))
    return values


def todays_names(inputs: dict[str, Any]) -> dict[str, Any]:
    """Settings by the names of options; what a client gave by Replicate's names wins, because it has no default."""
    values = {RENAMED.get(name, name): value for name, value in inputs.items()}
    for older, name in OLDER_NAMES.items():
        if (value := values.pop(older, None)) is None:
            continue
        if values.get(name, value) not in (value, getattr(FinetuneConfig, name)):
            raise BadSetting(f"{name} is {values[name]:g} and {older}, its other name, is {value:g}: give one of them")
        values[name] = value
    samples = values.pop("num_validation_samples", None)
    if samples is not None and values.get("val_set_size") is None and values.get("val_data_path") is None:
        values["val_set_size"] = samples
    if values.pop("validation_prompt", None):
        print("validation_prompt has no effect: the report asks the base and the adapter the same questions")
    return values


def settings(values: dict[str, Any], folder: Path, resume: str = "") -> FinetuneConfig:
    """The configuration of a job that writes its adapter into `folder`. Raises BadSetting."""
    given = {**values, "output_dir": str(folder), "resume_from_checkpoint": resume}
    if "adapter" in given:  # before it is fetched
        given["adapter_path"] = given.pop("adapter")
    if given.get("adapter_path") and not given.get("new_adapter"):
        given = {name: value for name, value in given.items() if not _left_out(name, value)}
    return FinetuneConfig.from_sourced({name: (value, "training input") for name, value in given.items()})


def _left_out(name: str, value: Any) -> bool:
    """Whether a setting of the adapter's shape is only what Cog fills in for it: an adapter that is gone on with has
    its own."""
    default = getattr(FinetuneConfig(), name) if name in SHAPE else None
    return default is not None and value == (",".join(default) if isinstance(default, list) else default)
