"""Find a base: a folder, a name in ``weights/``, a hub id, or the URL of an archive."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from alpaca.base.check import check_base
from alpaca.errors import BaseNotFound, SeveralBases
from alpaca.paths import as_written

WEIGHTS = Path("weights")
COG_OUTPUT = "output"  # what `cog train` writes into weights/ by itself: an adapter, never a base


def resolve_base(base_model: str | None = None, weights_dir: Path = WEIGHTS) -> Path:
    """Return the folder of the base: `base_model`, else the variable BASE_MODEL, else the only one in `weights_dir`.

    `base_model` is a folder, the name of a folder in `weights_dir`, or a hub id (``owner/name``), which is fetched
    into the hub cache; or the http(s) URL of an archive, which is fetched once and must have the SHA-256 that the
    variable BASE_SHA256 says. Never hand on a client's URL. Raises BaseNotFound, SeveralBases, BadBase for a folder
    that holds no usable base, and the errors of alpaca.base.by_url.
    """
    wanted = base_model or os.environ.get("BASE_MODEL", "")
    if not wanted:
        return _only_base(weights_dir)
    if re.match("https?://", wanted, re.IGNORECASE):
        from alpaca.base.by_url import fetch_base

        return fetch_base(wanted)
    for folder in (as_written(wanted), weights_dir / wanted):
        if os.path.isdir(folder):  # unlike Path's, it takes a name of any length
            check_base(folder)
            return folder
    if re.fullmatch(r"[\w.-]+/[\w.-]+", wanted) and not wanted.startswith("."):
        return _from_hub(wanted, weights_dir)
    meant = _meant(wanted, weights_dir)
    raise BaseNotFound(
        f"no base '{wanted[:200]}': not a folder, not in {weights_dir}/.{meant} {_what_there_is(weights_dir)}"
    )


def _from_hub(hub_id: str, weights_dir: Path) -> Path:
    from alpaca.base.hub import fetch_from_hub

    try:
        return fetch_from_hub(hub_id)
    except BaseNotFound as error:
        meant = f"{_renamed(hub_id)}{_meant(hub_id, weights_dir)}"
        raise BaseNotFound(f"{error.message}.{meant} {_what_there_is(weights_dir)}") from None


def bases_in(weights_dir: Path) -> list[Path]:
    """Folders in `weights_dir` that hold a model's configuration and weights."""
    if not weights_dir.is_dir():
        return []
    folders = (f for f in weights_dir.iterdir() if f.name != COG_OUTPUT)
    return sorted(f for f in folders if (f / "config.json").is_file() and any(f.glob("*.safetensors")))


def _meant(wanted: str, weights_dir: Path) -> str:
    """The base in `weights_dir` whose name is near what was asked for, or begins with it."""
    names = {folder.name.lower(): folder for folder in bases_in(weights_dir)}
    asked = wanted[:200].rstrip("/").rpartition("/")[2].lower()
    near = [name for name in names if asked and name.startswith(asked)] or difflib.get_close_matches(asked, names, n=1)
    return f" Did you mean {names[near[0]]}?" if near else ""


def _only_base(weights_dir: Path) -> Path:
    found = bases_in(weights_dir)
    if len(found) == 1:
        check_base(found[0])
        return found[0]
    if not found:
        raise BaseNotFound(f"there is no base in {weights_dir}/. {_what_there_is(weights_dir)}")
    names = ", ".join(f.name for f in found)
    raise SeveralBases(
        f"{weights_dir}/ holds several bases: {names}. Say which: --base_model {found[0]}, or BASE_MODEL={found[0]}"
    )


def _what_there_is(weights_dir: Path) -> str:
    names = [str(f) for f in bases_in(weights_dir)]
    there = f"There is: {', '.join(names)}." if names else f"{weights_dir}/ holds none yet."
    return (
        f"{there} Convert one (python -m alpaca.convert --help), fetch the small default base "
        "(make weights/smollm2-135m-instruct/config.json), or name a folder, hub id or URL with --base_model"
    )


def _renamed(hub_id: str) -> str:
    """What to ask for instead of an id that alpaca-lora's tutorials name and the hub has no more."""
    gone = re.fullmatch(r"decapoda-research/(llama-\d+b)-hf", hub_id)
    if gone is None:
        return ""
    return f" The hub has this id no longer; the same weights are there as huggyllama/{gone[1]}."
