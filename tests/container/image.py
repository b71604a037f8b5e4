"""The images of the tests: a base, the wheels, and the project's own, built from a copy of its files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from alpaca.cogserver.server import write_schema
from tests.container.dockerfile import BASE_IMAGE, REQUIREMENTS, ROOT, WHEELS_IMAGE, dockerfile, requirements
from tests.container.engine import KEPT, Unavailable, install, say

IMAGE = "alpaca-test"
PYTHON = "3.11"
SUITE = "bookworm"  # the Debian whose Python is 3.11
DEBIAN_PACKAGES = ("python3", "python3-pip", "tini", "ca-certificates", "libgomp1")
REGISTRY_BASE = f"python:{PYTHON}-slim-{SUITE}"
DECOYS = {
    "unconverted-weights/7B/consolidated.00.pth": "a checkpoint as it came",
    "lora-mine/adapter_model.safetensors": "an adapter",
    "lora-mine/checkpoint-5/optimizer.pt": "a checkpoint of a run",
    "data/customers.jsonl": "private rows",
    "customers.jsonl": "private rows",
    ".env": "TOKEN=secret",
    ".git/config": "[remote]",
    ".venv/bin/python": "an environment",
    "alpaca/__pycache__/old.pyc": "compiled",
    "notes.md": "private notes",
    "weights/.convert-1/model.safetensors": "half a conversion",
}
"""Files that a working copy may hold and that must stay out of the image."""


class BuildFailed(Exception):
    """The project's own image can't be built: that is a fault, wherever it happens."""


def build_image(docker: Path, base: Path) -> str:
    """Build everything that isn't there yet and return the image's name. `base`: what lies in weights/ of the image.

    Raises Unavailable where this machine can't, BuildFailed where the project can't.
    """
    _base_image(docker)
    run(docker, "run", "--rm", "--publish", "127.0.0.1::5000", f"{BASE_IMAGE}:{PYTHON}", "true")  # can it at all?
    _wheels_image(docker)
    with tempfile.TemporaryDirectory(prefix="alpaca-context-") as folder:
        context = Path(folder)
        copy_project(context, base)
        say(f"Building the image {IMAGE}")
        try:
            run(docker, "build", "--tag", IMAGE, "--file", "-", str(context), stdin=dockerfile())
        except Unavailable as error:
            raise BuildFailed(str(error)) from None
    return IMAGE


def copy_project(context: Path, base: Path) -> None:
    """A working copy as a user has it who built an image before: the project, a base, Cog's files, and decoys."""
    ours = shutil.ignore_patterns(".*", "__pycache__", "lora-*", "weights", "unconverted-weights", "adapters", "runs")
    shutil.copytree(ROOT, context, ignore=ours, dirs_exist_ok=True)
    shutil.copy2(ROOT / ".dockerignore", context)
    shutil.copytree(base, context / "weights" / base.name, copy_function=os.link)
    for name, text in DECOYS.items():
        path = context / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    write_schema(context)
    (context / REQUIREMENTS).parent.mkdir(parents=True)
    (context / REQUIREMENTS).write_text(requirements(), encoding="utf-8")


# --- the base -----------------------------------------------------------------------------------------------------
def _base_image(docker: Path) -> None:
    """Debian with Python and tini: made by debootstrap, by who may, else from the registry's image of Python."""
    name = f"{BASE_IMAGE}:{PYTHON}"
    if _is_there(docker, name):
        return
    if os.geteuid() == 0:
        _debootstrap(docker, name, install("debootstrap", "debootstrap"))
        return
    say(f"Making {name} from {REGISTRY_BASE}")
    tini = "RUN apt-get update -qq && apt-get install -qqy --no-install-recommends tini libgomp1"
    text = f"FROM {REGISTRY_BASE}\n{tini} && ln -s /usr/bin/tini /sbin/tini\n"
    run(docker, "build", "--tag", name, "-", stdin=text)


def _debootstrap(docker: Path, name: str, debootstrap: Path) -> None:
    say(f"Making {name} with debootstrap (Debian {SUITE}, a few minutes)")
    with tempfile.TemporaryDirectory(prefix="alpaca-debian-") as folder:
        root = Path(folder)
        command = [debootstrap, "--variant=minbase", f"--include={','.join(DEBIAN_PACKAGES)}", SUITE, root]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Unavailable(f"debootstrap failed:\n{done.stdout[-1500:]}{done.stderr[-500:]}")
        (root / "usr/bin/python").symlink_to("python3")
        (root / f"usr/lib/python{PYTHON}/EXTERNALLY-MANAGED").unlink(missing_ok=True)  # pip may install for all
        (root / "sbin/tini").symlink_to("/usr/bin/tini")
        for package in (root / "var/cache/apt/archives").glob("*.deb"):
            package.unlink()
        tar = subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE)
        subprocess.run([docker, "import", "-", name], stdin=tar.stdout, stdout=subprocess.DEVNULL, check=True)
        if tar.wait() != 0:
            raise Unavailable("tar could not read what debootstrap made")


# --- the wheels ---------------------------------------------------------------------------------------------------
def _wheels_image(docker: Path) -> None:
    """A layer of wheels, downloaded here: a build then needs no network."""
    wanted = requirements() + (ROOT / "requirements-cpu.txt").read_text(encoding="utf-8")
    mark = f"{WHEELS_IMAGE}:{hashlib.sha256(wanted.encode()).hexdigest()[:12]}"
    if not _is_there(docker, mark):
        wheels = KEPT / "wheels"
        say(f"Downloading the packages of the image into {wheels.relative_to(ROOT)}/")
        download = [
            sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--python-version", PYTHON,
            "--dest", str(wheels), "--find-links", str(wheels), "-r", str(ROOT / "requirements-cpu.txt"),
        ]  # fmt: skip
        done = subprocess.run(download, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Unavailable(f"pip can't download the packages:\n{done.stderr[-2000:]}")
        run(docker, "build", "--tag", mark, "--file", "-", str(wheels), stdin="FROM scratch\nCOPY *.whl /\n")
    run(docker, "tag", mark, f"{WHEELS_IMAGE}:latest")


def _is_there(docker: Path, name: str) -> bool:
    return subprocess.run([docker, "image", "inspect", name], capture_output=True, check=False).returncode == 0


def run(docker: Path, *arguments: str, stdin: str | None = None) -> str:
    """Run the docker command and return what it prints. Raises Unavailable with its own words."""
    environment = {**os.environ, "DOCKER_BUILDKIT": "1", "BUILDKIT_PROGRESS": "plain"}
    done = subprocess.run(
        [docker, *arguments], input=stdin, capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode != 0:
        raise Unavailable(f"`docker {' '.join(arguments)}` failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


def layers(docker: Path, image: str) -> list[tuple[int, str]]:
    """Bytes and making command of each layer, the newest first."""
    lines = run(docker, "history", "--no-trunc", "--human=false", "--format", "{{json .}}", image).splitlines()
    return [(int(layer["Size"]), layer["CreatedBy"]) for layer in map(json.loads, lines)]
