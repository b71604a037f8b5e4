"""A fine-tune as a training job: settings come as plain values, the adapter leaves as one archive."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alpaca.adapter.archive import pack
from alpaca.adapter.card import CARD
from alpaca.base.earlier import earlier_fingerprints
from alpaca.base.find import resolve_base
from alpaca.base.headers import fingerprint
from alpaca.errors import BadCheckpoint, BadSetting, DiskFull, is_full_disk
from alpaca.files import locked
from alpaca.serving.download import download
from alpaca.training.checkpoints import HIDDEN, checkpoints_in
from alpaca.training.job_inputs import ADAPTER, ANCESTOR, OUTPUT_DIR, settings
from alpaca.training.run import finetune
from alpaca.words import shown_url

ARCHIVE = "lora-weights.zip"
FILES = (
    "data_path",
    "val_data_path",
    "adapter_path",
)  # what counts is in them; where they lie is another place each time


def run_job(values: dict[str, Any], work: Path) -> Path:
    """Fine-tune with what `prepare` gave and return the archive of the adapter. Raises AlpacaError.

    Everything is written into `work`, or, with the operator's variable OUTPUT_DIR, into a folder there that is kept:
    see `_kept`.
    """
    values = _with_its_adapter(values, work)
    if kept := os.environ.get(OUTPUT_DIR, "").strip():
        return _kept(values, Path(kept), _kept_name(values, Path(kept)))
    finetune(settings(values, work / ADAPTER))
    return pack(work / ADAPTER, work / ARCHIVE)


def _with_its_adapter(values: dict[str, Any], work: Path) -> dict[str, Any]:
    """The values with the adapter that the client brings as a file in `work`: fetched under the same limits as one of a
    prediction, or taken out of its data URL. What is in it is checked when it is unpacked."""
    url = values.get("adapter")
    if url is None:
        return values
    name = "adapter" if url.startswith("data:") else shown_url(url).rpartition("/")[2].strip(".")[:50] or "adapter"
    file = work / ANCESTOR / name
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if url.startswith("data:"):
            file.write_bytes(base64.b64decode(url.partition(",")[2], validate=True))
        else:
            print(f"adapter: fetching {shown_url(url)}", flush=True)
            download(url, file)
    except binascii.Error as error:
        raise BadSetting(f"adapter is a data: URL that is not base64: {error}") from None
    except OSError as error:
        if not is_full_disk(error):
            raise
        raise DiskFull(f"the disk is full: there is no room in {file.parent} for the adapter") from None
    return {name: value for name, value in values.items() if name != "adapter"} | {"adapter_path": str(file)}


# --- jobs that are kept -------------------------------------------------------------------------------------------
def _kept(values: dict[str, Any], root: Path, name: str) -> Path:
    """Fine-tune into root/name, resuming what an interrupted job of the same inputs left there.

    A finished adapter stays, its checkpoints don't; the archive lies beside it. A job that is asked for again when it
    is finished gives the same archive at once.
    """
    folder = root / name
    with _alone(root, name):
        if (folder / CARD).is_file() and not checkpoints_in(folder):
            print(f"{folder} has the adapter of these inputs already: it is not trained again")
        else:
            try:
                finetune(settings(values, folder, resume="auto"))
            except BadCheckpoint as error:
                print(f"{error.message}\nThe job starts over")
                finetune(settings(values, folder))
            for checkpoint in checkpoints_in(folder):  # the last one last: until then the job can be resumed
                gone = checkpoint.rename(folder / f"{HIDDEN}{checkpoint.name}")
                shutil.rmtree(gone, ignore_errors=True)
        return pack(folder, root / f"{name}.zip")


def _kept_name(values: dict[str, Any], root: Path) -> str:
    """The folder of these inputs: one that an earlier version began goes by that version's fingerprint of the base."""
    base = resolve_base(values["base_model"] or None)
    today, *earlier = (f"lora-{_identity(values, name)}" for name in (fingerprint(base), *earlier_fingerprints(base)))
    return next((name for name in earlier if (root / name).is_dir()), today)


def _identity(values: dict[str, Any], base_fingerprint: str) -> str:
    """Twelve hex digits for inputs, rows and base: the same job has the same ones in every container."""
    inputs = {name: value for name, value in values.items() if name not in (*FILES, "base_model")}
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode())
    for file in FILES:
        if file in values:
            with open(values[file], "rb") as rows:
                digest.update(hashlib.file_digest(rows, "sha256").digest())
    digest.update(base_fingerprint.encode())
    return digest.hexdigest()[:12]


@contextlib.contextmanager
def _alone(root: Path, name: str) -> Iterator[None]:
    """While no other container trains the same on a shared volume. Raises BadSetting, also for a root that can't be
    written to."""

    def busy(waited: float) -> None:
        raise BadSetting(f"these inputs are being trained in {root / name} by another server; wait for it")

    with contextlib.ExitStack() as held:
        try:
            root.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(root / f".{name}.lock", busy))
        except OSError as error:
            raise BadSetting(f"{OUTPUT_DIR} is {root}, which can't be written to: {error.strerror}") from None
        yield
