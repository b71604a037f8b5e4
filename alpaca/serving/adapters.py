"""An adapter from wherever it is, to a local folder: a folder, an archive, or the https URL of an archive."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from alpaca.adapter import CARD, check_there
from alpaca.archive import unpack
from alpaca.errors import AdapterNotFound, DownloadRefused
from alpaca.serving.download import Limits, download


def default_cache() -> Path:
    """Where unpacked adapters are kept: $ALPACA_CACHE, else ~/.cache/alpaca, in its folder adapters."""
    return Path(os.environ.get("ALPACA_CACHE") or Path.home() / ".cache" / "alpaca") / "adapters"


def tuned_here(project: Path) -> Path | None:
    """The adapter that finetune.py leaves in `project` unless told otherwise, where nothing else was asked for.

    A COG_WEIGHTS that is set, even to nothing, is an answer: then there is no default.
    """
    folder = project / "lora-alpaca"
    if "COG_WEIGHTS" in os.environ or not (folder / CARD).is_file():
        return None
    print("adapter: lora-alpaca, because it is there and COG_WEIGHTS is not set (COG_WEIGHTS= serves the base alone)")
    return folder


def fetch_adapter(source: str, cache_dir: Path | None = None, *, limits: Limits | None = None) -> Path:
    """Return a local folder with the adapter's files; its content is for alpaca.adapter.verify_files to judge.

    A folder is returned as it is. An archive is unpacked once into `cache_dir`, under the hash of its bytes. Raises
    AdapterNotFound, BadArchive or DownloadRefused.
    """
    cache = cache_dir or default_cache()
    if source.startswith("data:"):
        raise DownloadRefused("an adapter given as a data: URL; save it to a file and give its path")
    if "://" in source:
        return _from_url(source, cache, limits)
    path = Path(source).expanduser()
    if path.is_dir():
        check_there(path)
        return path
    if path.is_file():
        return _unpacked(path, cache)
    raise AdapterNotFound(f"{source} is neither a folder nor a file nor an https:// URL")


def _from_url(url: str, cache: Path, limits: Limits | None) -> Path:
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=cache) as aside:
        archive = Path(aside) / (Path(urlsplit(url).path).name[-100:] or "adapter")
        download(url, archive, limits)
        return _unpacked(archive, cache)


def _unpacked(archive: Path, cache: Path) -> Path:
    """The archive's adapter in the cache. It is unpacked aside and renamed, so a folder in the cache is whole."""
    with archive.open("rb") as handle:
        folder = cache / hashlib.file_digest(handle, "sha256").hexdigest()[:32]
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".unpack-", dir=cache))
    try:
        unpack(archive, aside)
        os.replace(aside, folder)
    except OSError:
        if not folder.is_dir():  # else another process was faster with the same archive
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder
