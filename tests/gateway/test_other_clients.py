"""LangChain and LiteLLM against the gateway: `make test-clients`. They get the answers that plain HTTP gets."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from alpaca.cogserver.server import Server
from tests.conftest import ROOT
from tests.gateway.running import RunningGateway, text_of

pytestmark = pytest.mark.judges
PYTHON = ROOT / ".venv-judges" / "clients" / "bin" / "python"
SCRIPTS = Path(__file__).parent / "judges"
TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tell me about the alpaca."}]
CLIENTS = ["langchain", "litellm"]


def run(client: str, *words: str) -> subprocess.CompletedProcess[str]:
    if not PYTHON.exists():
        pytest.fail("there are no clients: run make test-clients")
    return subprocess.run(
        [PYTHON, SCRIPTS / f"ask_{client}.py", *words], capture_output=True, text=True, timeout=300, cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith(("OPENAI", "LANG", "LITELLM"))},
    )  # fmt: skip


@pytest.fixture(scope="module", params=CLIENTS)
def told(request: pytest.FixtureRequest, gateway: RunningGateway) -> dict[str, Any]:
    """What a client says of an adapter's answers, by the names in its script."""
    done = run(request.param, gateway.url, "a")
    assert done.returncode == 0, done.stdout + done.stderr
    answers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answers


@pytest.fixture(scope="module")
def plain(gateway: RunningGateway) -> httpx.Response:
    body = {"model": "a", "messages": TALK, "temperature": 0, "max_tokens": 12}
    return httpx.post(f"{gateway.url}/v1/chat/completions", json=body, timeout=60)


def test_an_answer_arrives_whole_and_in_pieces(told: dict[str, Any], plain: httpx.Response) -> None:
    expected, written = text_of(plain), plain.json()["usage"]["completion_tokens"]
    assert told["whole"] == "".join(told["pieces"]) == told.get("hosted", expected) == expected
    assert len([piece for piece in told["pieces"] if piece]) > 3
    assert told["tokens"] == written and told["streamed_tokens"] == [written]
    assert told["reason"] == plain.json()["choices"][0]["finish_reason"]
    assert len(set(told.get("batch", "ab"))) == 2


@pytest.mark.parametrize(
    ("what", "kinds", "status", "says"),
    [
        ("model", {"NotFoundError"}, 404, "no model 'no-such-model'"),
        ("model, streamed", {"NotFoundError"}, 404, "no model 'no-such-model'"),
        ("field", {"BadRequestError"}, 400, "it must be from 0 to 1"),
        ("length", {"ContextOverflowError", "ContextWindowExceededError"}, 400, "E1002"),
    ],
)
def test_errors_are_raised_as_the_clients_own(
    told: dict[str, Any], what: str, kinds: set[str], status: int, says: str
) -> None:
    error = told["errors"][what]
    assert kinds & set(error["classes"]) and error["status"] == status and says in error["says"], error


@pytest.mark.parametrize("client", CLIENTS)
def test_a_wrong_key_is_an_error_of_authentication(client: str, server: Server, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text("[]")
    with RunningGateway("--keys", str(keys), upstreams=[server.url], keyless=False) as gateway:
        gateway.wait()
        done = run(client, gateway.url, "a", "sk-wrong")
    assert done.returncode and "AuthenticationError" in done.stderr and "this key is not known" in done.stderr
