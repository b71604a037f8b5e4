"""A Docker engine for the tests: the one that is there, or one of our own, started, used and stopped.

Our own keeps to itself: its socket, its state and its images lie in folders that nothing else uses, and it leaves
firewall and forwarding alone, so that its containers reach this machine and nothing beyond. Images stay in .container/
for the next time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

KEPT = Path(__file__).resolve().parent.parent.parent / ".container"
"""What is kept between runs: images, wheels."""
BRIDGE = Path("/sys/class/net/docker0")
START_SECONDS = 60.0


class Unavailable(Exception):
    """Docker can't run here; the text says why and what would help."""


def say(text: str) -> None:
    print(f"==> {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def engine() -> Iterator[Path]:
    """While this lasts, the docker command that is given reaches an engine. Raises Unavailable."""
    if (client := _client()) is not None and _answers(client):
        say(f"Docker: the engine that runs here ({_version(client)})")
        yield client
        return
    if os.geteuid() != 0:
        raise Unavailable("no Docker engine answers, and only root can start one")
    install("docker.io", "dockerd")
    if (client := _client()) is None:
        raise Unavailable("no docker command here can build: install Debian's docker-cli and docker-buildx")
    with _alone(), _daemon(client):
        yield client


def install(package: str, command: str) -> Path:
    """The command, its Debian package installed where it is not here. Raises Unavailable."""
    if (found := shutil.which(command)) is not None:
        return Path(found)
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise Unavailable(
            f"{command} is not here, and only root on Debian or Ubuntu can install it (package {package})"
        )
    say(f"Installing {package}")
    options = ["-qq", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120"]
    for step in (["update", "-qq"], ["install", *options, package]):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(["apt-get", *step], env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Unavailable(f"`apt-get {' '.join(step)}` failed:\n{(done.stderr or done.stdout)[-2000:]}")
    if (found := shutil.which(command)) is None:
        raise Unavailable(f"the package {package} brought no {command}")
    return Path(found)


def compose(docker: Path) -> list[str]:
    """The command of Compose: docker's own, else docker-compose, from Debian where it is not here. Raises
    Unavailable."""
    if _output(docker, "compose", "version"):
        return [str(docker), "compose"]
    return [str(install("docker-compose", "docker-compose"))]


# --- the command --------------------------------------------------------------------------------------------------
def _client() -> Path | None:
    """The first docker on PATH that can build: an older one by itself, a newer one with buildx."""
    for folder in os.get_exec_path():
        client = Path(folder, "docker")
        if os.access(client, os.X_OK):
            major = re.search(r"version (\d+)", _output(client, "--version"))
            if (major and int(major[1]) < 23) or _output(client, "buildx", "version"):
                return client
    return None


def _answers(client: Path) -> bool:
    return bool(_version(client))


def _version(client: Path) -> str:
    return _output(client, "version", "--format", "{{.Server.Version}}")


def _output(client: Path, *arguments: str) -> str:
    """What the command prints; empty where it fails."""
    done = subprocess.run([client, *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


# --- an engine of our own -----------------------------------------------------------------------------------------
@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """One run at a time: two engines can't share a folder of images."""
    KEPT.mkdir(exist_ok=True)
    with (KEPT / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another run uses .container/: waiting until it ends")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _daemon(client: Path) -> Iterator[None]:
    """A dockerd that DOCKER_HOST names, ended with everything it started."""
    own = Path(tempfile.mkdtemp(prefix="alpaca-docker-"))  # short: a socket's path has a limit of 107 bytes
    socket, log = f"unix://{own}/docker.sock", KEPT / "dockerd.log"
    command = [
        "setpriv", "--pdeathsig", "TERM",  # should this process be killed, the engine ends as well
        "dockerd", "--data-root", str(KEPT / "docker"), "--exec-root", str(own / "exec"),
        "--pidfile", str(own / "pid"), "-H", socket, "--iptables=false", "--ip-masq=false", "--ip-forward=false",
    ]  # fmt: skip
    before, bridged = os.environ.get("DOCKER_HOST"), BRIDGE.exists()
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        os.environ["DOCKER_HOST"] = socket
        deadline = time.monotonic() + START_SECONDS
        while not _answers(client):
            if process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text().strip().splitlines() or ["nothing"]
                raise Unavailable(f"dockerd does not start here; it says: {said[-1]} (all of it: {log})")
            time.sleep(0.2)
        if (driver := _output(client, "info", "--format", "{{.Driver}}")) == "vfs":
            raise Unavailable(
                f"{KEPT} lies on a disk without layers (driver {driver}): every container would be a copy"
            )
        say(f"Docker: an engine of our own ({_version(client)}), its images in {KEPT.name}/")
        _clear(client)  # what a run that was killed left
        yield
    finally:
        _clear(client)
        _end(process)
        if before is None:
            os.environ.pop("DOCKER_HOST", None)
        else:
            os.environ["DOCKER_HOST"] = before
        if not bridged:
            subprocess.run(["ip", "link", "delete", BRIDGE.name], capture_output=True, check=False)
        shutil.rmtree(own, ignore_errors=True)
        say("Docker: stopped")


def _clear(client: Path) -> None:
    """Remove containers, networks and volumes; the images stay."""
    if left := _output(client, "ps", "--all", "--quiet").split():
        _output(client, "rm", "--force", "--volumes", *left)
    _output(client, "network", "prune", "--force")
    _output(client, "volume", "prune", "--force")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()  # ends its containers as well
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
