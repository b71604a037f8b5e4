"""What the image holds: what it must, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alpaca.cogserver.entry_points import SCHEMA
from tests.conftest import SMOLLM2
from tests.container.container import client, docker
from tests.container.dockerfile import REQUIREMENTS, ROOT
from tests.container.image import DECOYS, layers

pytestmark = pytest.mark.container
CODE_BYTES = 3_000_000
"""More than the project's own files have: what is beyond came in by mistake."""


@pytest.fixture(scope="module")
def files(image: str) -> dict[str, int]:
    """Size by path of every file below /src."""
    listed = docker("run", "--rm", "--network", "none", image, "find", "/src", "-type", "f", "-printf", "%P\t%s\n")
    return {path: int(size) for path, _, size in (line.partition("\t") for line in listed.splitlines())}


def test_it_holds_the_project_its_rows_and_its_base(files: dict[str, int]) -> None:
    package = (path for path in (ROOT / "alpaca").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    code = {path.relative_to(ROOT).as_posix() for path in package}  # with the kernels' sources and the gateway's page
    rest = {"cog.yaml", "requirements.txt", "predict.py", "train.py", "finetune.py", SCHEMA.as_posix()}
    rest |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "templates").iterdir()}
    rest |= {f"data/{name}.jsonl" for name in ("alpacas", "general", "probes")}
    base = {path.relative_to(ROOT).as_posix() for path in SMOLLM2.iterdir()}
    assert set(files) == code | rest | base | {REQUIREMENTS}


def test_nothing_private_came_along(files: dict[str, int]) -> None:
    assert not set(DECOYS) & set(files)
    assert not [path for path in files if path.startswith(("tests/", "docs/", "unconverted-weights/", "lora-"))]


def test_the_code_is_small_and_the_base_is_the_rest(files: dict[str, int]) -> None:
    code = sum(size for path, size in files.items() if not path.startswith("weights/"))
    base = sum(path.stat().st_size for path in SMOLLM2.iterdir())
    assert code < CODE_BYTES
    assert sum(files.values()) == code + base


def test_every_layer_is_accounted_for(image: str, files: dict[str, int]) -> None:
    """The system, the packages, Cog, the files take room, nothing else does; a change of code moves the last only."""
    found = layers(Path(client()), image)
    for size, command in reversed(found):
        if size:
            print(f"{size / 1e6:10.1f} MB  {command[:100]}")
    heavy = [(size, command) for size, command in found if size > 1_000_000]
    assert [command.partition(" ")[0] for _, command in heavy[:3]] == ["COPY", "RUN", "RUN"]
    assert not [command for _, command in heavy[3:] if "/src" in command]  # the base image's own
    newest, command = heavy[0]
    assert "COPY . /src" in command and newest < sum(files.values()) * 1.01 + 1_000_000


def test_no_package_manager_left_its_cache(image: str) -> None:
    caches = "/root/.cache/*", "/wheels/*", "/tmp/pip*", "/var/cache/apt/archives/*.deb"
    code = f"import glob; print([p for c in {caches!r} for p in glob.glob(c)])"
    assert docker("run", "--rm", "--network", "none", image, "python", "-c", code) == "[]"


def test_environment_and_command_are_those_of_cog_yaml(image: str) -> None:
    import yaml

    cog = yaml.safe_load((ROOT / "cog.yaml").read_text(encoding="utf-8"))
    config = json.loads(docker("image", "inspect", "--format", "{{json .Config}}", image))
    assert set(cog["environment"]) <= set(config["Env"])
    stubs = {f"COG_PREDICT_TYPE_STUB={cog['run']}", f"COG_TRAIN_TYPE_STUB={cog['train']}", "COG_MAX_CONCURRENCY=64"}
    assert stubs <= set(config["Env"])
    assert (config["Cmd"], config["WorkingDir"]) == (["python", "-m", "cog.server.http"], "/src")
    assert list(config["ExposedPorts"]) == ["5000/tcp"]


def test_python_and_packages_are_the_pinned_ones(image: str) -> None:
    code = "import sys, importlib.metadata as m; print(sys.version_info[:2], m.version('cog'), m.version('coglet'))"
    assert docker("run", "--rm", "--network", "none", image, "python", "-c", code) == "(3, 11) 0.23.1 0.23.1"
    listed = docker("run", "--rm", "--network", "none", image, "python", "-m", "pip", "freeze", "--all").lower()
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        if "==" in line and not line.startswith(("#", "torch==")):
            assert line.replace("_", "-") in listed.replace("_", "-"), line
