"""One container of the image, seen from outside: its port, its health, its log, its end."""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx

from alpaca.cogserver.schema import PREDICT, Endpoint

WORKER, TRAINING = "_run_worker", "alpaca.training.job_process"  # in the commands of what Cog and train.py start
TRAINS = ("python", "-m", "cog.server.http", "--x-mode", "train")
READY_SECONDS = 180.0


class Container:
    """`docker run` of an image in the background, with its port published on this machine."""

    def __init__(self, image: str, *options: str, mode: Endpoint = PREDICT, command: tuple[str, ...] = ()) -> None:
        """`options` of docker run; `command` in place of the image's own."""
        self.mode = mode
        self.id = docker("run", "--detach", "--publish", "127.0.0.1::5000", *options, image, *command)

    @property
    def url(self) -> str:
        """Where it is reached; the port is another one after a restart."""
        return f"http://{docker('port', self.id, '5000/tcp').splitlines()[0]}"

    # --- health ---------------------------------------------------------------------------------------------------
    def health(self) -> dict[str, Any]:
        """The health check's answer; status NONE while nobody answers."""
        try:
            answer: dict[str, Any] = httpx.get(f"{self.url}/health-check", timeout=10).json()
        except (httpx.HTTPError, RuntimeError):  # docker has no port for a container that is between two starts
            return {"status": "NONE"}
        return answer

    def wait(self, *statuses: str, seconds: float = READY_SECONDS) -> dict[str, Any]:
        """The health check's answer as soon as its status is one of these."""
        deadline = time.monotonic() + seconds
        while (health := self.health())["status"] not in statuses:
            state = self.state()
            over = health["status"] == "SETUP_FAILED" or not (state["Running"] or state["Restarting"])
            if over or time.monotonic() > deadline:
                raise AssertionError(f"{health}; {state}\n{self.log()[-3000:]}")
            time.sleep(0.2)
        return health

    def ready(self) -> Container:
        self.wait("READY")
        return self

    # --- inside ---------------------------------------------------------------------------------------------------
    def exec(self, *command: str) -> str:
        """What a command inside prints. Raises RuntimeError where it fails."""
        return docker("exec", self.id, *command)

    def python(self, code: str) -> str:
        return self.exec("python", "-c", code)

    def process(self, words: str) -> int | None:
        """The number, inside the container, of the process with these words in its command; None without one."""
        for line in self.python(PROCESSES).splitlines():
            number, _, arguments = line.partition(" ")
            if words in arguments:
                return int(number)
        return None

    def kill(self, words: str) -> None:
        """SIGKILL to the process with these words in its command, as soon as there is one."""
        deadline = time.monotonic() + 60
        while (number := self.process(words)) is None:
            assert time.monotonic() < deadline, f"no process with {words}"
            time.sleep(0.1)
        self.python(f"import os; os.kill({number}, 9)")

    def log(self) -> str:
        done = subprocess.run([client(), "logs", self.id], capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    def messages(self) -> list[str]:
        """What the log's lines say, without Cog's JSON around them."""
        found = []
        for line in self.log().splitlines():
            try:
                found.append(json.loads(line)["fields"]["message"])
            except (ValueError, KeyError, TypeError):
                found.append(line)
        return found

    # --- its end --------------------------------------------------------------------------------------------------
    def state(self) -> dict[str, Any]:
        """Running, ExitCode, OOMKilled, Restarting, …; see `docker inspect`."""
        found: dict[str, Any] = json.loads(docker("inspect", "--format", "{{json .State}}", self.id))
        return found

    def restarts(self) -> int:
        return int(docker("inspect", "--format", "{{.RestartCount}}", self.id))

    def stop(self, seconds: int = 30) -> int:
        """`docker stop`: SIGTERM, and SIGKILL after `seconds`. The exit status (137 where it was killed)."""
        docker("stop", "--time", str(seconds), self.id)
        return int(self.state()["ExitCode"])

    def start(self) -> Container:
        docker("start", self.id)
        return self

    def remove(self) -> None:
        docker("rm", "--force", "--volumes", self.id)


PROCESSES = """
import pathlib
for path in pathlib.Path('/proc').glob('[0-9]*/cmdline'):
    try:
        print(path.parent.name, path.read_text().replace(chr(0), ' '))
    except OSError:
        pass
"""


def given(name: str) -> str:
    """What `make test-container` found or made."""
    try:
        return os.environ[name]
    except KeyError:
        raise RuntimeError("these tests need the image: run make test-container") from None


def client() -> str:
    """The docker command."""
    return given("ALPACA_TEST_DOCKER")


def docker(*arguments: str, stdin: str | None = None) -> str:
    """Run the docker command. Raises RuntimeError with what it says where it fails."""
    done = subprocess.run([client(), *arguments], input=stdin, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"docker {' '.join(arguments)}: {done.stdout[-1000:]}{done.stderr[-1000:]}")
    return done.stdout.strip()


def gateway() -> str:
    """This machine's address as containers see it: the first one of their network, unless Docker says another."""
    config = json.loads(docker("network", "inspect", "bridge", "--format", "{{json .IPAM.Config}}"))[0]
    return str(config.get("Gateway") or next(ipaddress.ip_network(config["Subnet"]).hosts()))


def mount(source: Path | str, target: str, *, readonly: bool = True) -> tuple[str, ...]:
    """Options that mount a folder of this machine, or a volume."""
    return ("--volume", f"{source}:{target}{':ro' if readonly else ''}")


def environment(**values: str) -> tuple[str, ...]:
    """Options that set environment variables."""
    return tuple(option for name, value in values.items() for option in ("--env", f"{name}={value}"))
