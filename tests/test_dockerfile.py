"""The Dockerfile of the container tests follows cog.yaml: neither changes without the other."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from tests.container.dockerfile import ROOT, dockerfile, requirements


def project(folder: Path, **changes: object) -> Path:
    """A folder with a cog.yaml whose build is changed, and what else the Dockerfile is made from."""
    cog = yaml.safe_load((ROOT / "cog.yaml").read_text(encoding="utf-8"))
    cog["build"] |= changes
    (folder / "cog.yaml").write_text(yaml.safe_dump(cog), encoding="utf-8")
    shutil.copy(ROOT / "predict.py", folder)
    return folder


def test_the_file_in_the_repository_is_the_one_that_cog_yaml_gives() -> None:
    again = "python -m tests.container.dockerfile > tests/container/Dockerfile"
    kept = (ROOT / "tests" / "container" / "Dockerfile").read_text(encoding="utf-8")
    assert kept == dockerfile(), f"cog.yaml or predict.py has changed; make the Dockerfile anew: {again}"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"system_packages": ["git", "curl"]}, "RUN apt-get update -qq && apt-get install -qqy git curl"),
        ({"run": ["echo built"]}, "RUN echo built"),
        ({"sdk_version": "9.9.9"}, "cog==9.9.9"),
        ({"python_version": "3.12"}, "FROM alpaca-test-base:3.12"),
    ],
    ids=str,
)
def test_what_cog_yaml_builds_is_built(tmp_path: Path, changes: dict[str, object], line: str) -> None:
    assert line in dockerfile(project(tmp_path, **changes))
    assert line not in dockerfile()


def test_requirements_differ_from_the_image_in_torch_alone() -> None:
    image = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    different = [(a, b) for a, b in zip(image, requirements().splitlines(), strict=True) if a != b]
    assert [(a.partition("==")[0], b.partition("==")[0]) for a, b in different] == [("torch", "torch")]
