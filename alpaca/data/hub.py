"""Data sets of the Hugging Face hub, by id: `name`, `owner/name`, and either with `:split`."""

from __future__ import annotations

import re

from alpaca.data.files import Rows
from alpaca.errors import DataNotFound

HUB_ID = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<split>[\w.\[\]%:+-]+))?")


def read_hub(source: str) -> Rows:
    """The rows of a data set's split ("train" unless said). Raises DataNotFound with the hub's own reason."""
    found = HUB_ID.fullmatch(source)
    if found is None:
        raise DataNotFound(f"'{source}' is neither a file nor a data set's id (owner/name or owner/name:split)")
    return load_split(found["name"], found["split"] or "train")


def load_split(name: str, split: str) -> Rows:
    """One split of a data set, through the datasets library (and its cache)."""
    import datasets

    try:
        loaded = datasets.load_dataset(name, split=split)
    except Exception as error:  # the library passes on whatever its network, script and file layers raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataNotFound(
            f"'{name}' is no file here, and its split '{split}' can't be had from the hub: {reason} "
            "Check the spelling, the network (HF_HUB_OFFLINE) and your access, or give a file"
        ) from error
    return enumerate(loaded.to_list(), 1)
