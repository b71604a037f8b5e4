"""The Dockerfile of the tested image, made from cog.yaml in the order in which Cog makes one.

    python -m tests.container.dockerfile > tests/container/Dockerfile

What differs from Cog's, because no registry and no GPU is needed for the tests: the base image is made by image.py
(Debian with Python and tini, which Cog installs itself), torch is the build for processors, and packages come from a
folder of wheels. cog.yaml, the pins, the files, the environment and the command are those of the real image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from alpaca.cogserver.schema import declared_concurrency

ROOT = Path(__file__).resolve().parent.parent.parent
BASE_IMAGE, WHEELS_IMAGE = "alpaca-test-base", "alpaca-test-wheels"
REQUIREMENTS = ".cog/tmp/requirements.txt"  # written into the build's context, as Cog does
PIP = f"RUN --mount=type=bind,from={WHEELS_IMAGE},target=/wheels pip install --no-index --find-links /wheels"


def dockerfile(project: Path = ROOT) -> str:
    """The text, from cog.yaml and the decorators of predict.py."""
    cog: dict[str, Any] = yaml.safe_load((project / "cog.yaml").read_text(encoding="utf-8"))
    build = cog["build"]
    file, runner = cog["run"].split(":")
    lines = [
        "# Made from cog.yaml by dockerfile.py, which says what differs from the one that Cog makes.",
        f"FROM {BASE_IMAGE}:{build['python_version']}",
        "ENV DEBIAN_FRONTEND=noninteractive",
        "ENV PYTHONUNBUFFERED=1",
        'ENTRYPOINT ["/sbin/tini", "--"]',
        *(f"ENV {entry}" for entry in cog.get("environment", [])),
    ]
    if packages := build.get("system_packages"):
        lines.append(f"RUN apt-get update -qq && apt-get install -qqy {' '.join(packages)}")
    lines += [
        f"COPY {REQUIREMENTS} /tmp/requirements.txt",
        f"{PIP} --no-cache-dir -r /tmp/requirements.txt",
        f"{PIP} --no-cache-dir cog=={build['sdk_version']}",
        *(f"RUN {command}" for command in build.get("run", [])),
        "WORKDIR /src",
        "EXPOSE 5000",
        f'ENV COG_PREDICT_TYPE_STUB="{cog["run"]}"',
        f'ENV COG_TRAIN_TYPE_STUB="{cog["train"]}"',
        f"ENV COG_MAX_CONCURRENCY={declared_concurrency(project / file, runner)}",
        'CMD ["python", "-m", "cog.server.http"]',
        "COPY . /src",
    ]
    return "\n".join(lines) + "\n"


def requirements(project: Path = ROOT) -> str:
    """The file that cog.yaml names, torch's pin taken from requirements-cpu.txt: the only line that differs."""
    cog = yaml.safe_load((project / "cog.yaml").read_text(encoding="utf-8"))
    wanted = (project / cog["build"]["python_requirements"]).read_text(encoding="utf-8").splitlines()
    laptop = (project / "requirements-cpu.txt").read_text(encoding="utf-8").splitlines()
    (torch,) = [line for line in laptop if line.startswith("torch==")]
    return "\n".join(torch if line.startswith("torch==") else line for line in wanted) + "\n"


if __name__ == "__main__":
    print(dockerfile(), end="")
