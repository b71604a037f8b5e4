"""The image that was built, containers of it that are always removed, and what is mounted into them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.container.container import Container, docker, environment, given, mount
from tests.serving.peft_adapters import make_adapter

Run = Callable[..., Container]
FP32 = environment(PRECISION="fp32")


@pytest.fixture(scope="session")
def image() -> str:
    return given("ALPACA_TEST_IMAGE")


@pytest.fixture
def run(image: str) -> Iterator[Run]:
    """run(*options, command=(…)): a container of the image, removed with the test."""
    containers: list[Container] = []

    def start(*options: str, **more: object) -> Container:
        containers.append(Container(image, *options, **more))  # type: ignore[arg-type]
        return containers[-1]

    yield start
    for container in containers:
        container.remove()


@pytest.fixture
def volume() -> Iterator[str]:
    """An empty volume."""
    name = docker("volume", "create")
    yield name
    docker("volume", "rm", "--force", name)


@pytest.fixture(scope="session")
def shelf(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to mount: the tiny base, and two adapters for it."""
    folder = tmp_path_factory.mktemp("shelf")
    shutil.copytree(tiny_base, folder / "tiny")
    for number, name in enumerate(("first", "second")):
        make_adapter(tiny_base, folder / "adapters" / name, template="alpaca", seed=number)
    for path in folder.rglob("*"):  # for whatever user a container has
        path.chmod(0o755 if path.is_dir() else 0o644)
    folder.chmod(0o755)
    return folder


@pytest.fixture
def on_tiny(shelf: Path) -> tuple[str, ...]:
    """Options that mount the shelf and serve the tiny base of it."""
    return (*mount(shelf, "/shelf"), *environment(BASE_MODEL="/shelf/tiny", ADAPTER_FOLDERS="/shelf/adapters"), *FP32)
