"""Keys: who may ask what, how much at a time, and what the log holds."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from alpaca.errors import BadGatewaySetting
from alpaca.gateway.caller import Keys, add_key, address_of, read_keys
from alpaca.gateway.refusals import Refused
from alpaca.gateway.settings import Settings
from tests.conftest import ROOT
from tests.gateway.running import CogProcess, RunningGateway, error_of, text_of

DIGEST = "0" * 64


def test_a_key_is_shown_once_and_kept_as_a_hash(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    anna, ben = add_key(file, "anna"), add_key(file, "ben")
    assert anna != ben and len(anna) > 40
    assert anna not in file.read_text() and ben not in file.read_text()
    keys = Keys(file, print)
    assert (keys.caller(anna).name, keys.caller(ben).name) == ("anna", "ben")
    for wrong in ("", anna[:-1], anna + "x", anna.upper(), "x" * 10_000):
        with pytest.raises(Refused) as refused:
            keys.caller(wrong)
        assert refused.value.status == 401
    with pytest.raises(BadGatewaySetting, match="has a key of the name 'anna'"):
        add_key(file, "anna")


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"name": "a"}, "sha256"),
        ({"name": "", "sha256": DIGEST}, "name"),
        ({"name": "a\nb", "sha256": DIGEST}, "name"),
        ({"name": "a", "sha256": "sk-plain"}, "64 hex digits"),
        ({"name": "a", "sha256": DIGEST, "models": "m"}, "models"),
        ({"name": "a", "sha256": DIGEST, "in_flight": 0}, "in_flight"),
        ({"name": "a", "sha256": DIGEST, "in_flight": True}, "in_flight"),
        ({"name": "a", "sha256": DIGEST, "admin": True}, "nothing else"),
        ("a", "nothing else"),
    ],
)
def test_an_entry_that_is_wrong_is_named(tmp_path: Path, entry: Any, says: str) -> None:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps([{"name": "fine", "sha256": DIGEST}, entry]))
    with pytest.raises(BadGatewaySetting, match=says) as error:
        read_keys(file)
    assert "entry 2" in error.value.message


@pytest.mark.parametrize("content", ["", "{}", "[", '[{"name":"a","sha256":"%s"},{"name":"a","sha256":"%s"}]'])
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "keys.json"
    file.write_text(content.replace("%s", DIGEST))
    with pytest.raises(BadGatewaySetting):
        read_keys(file)


def test_an_address_stands_for_who_has_no_key() -> None:
    assert address_of("192.0.2.7") == "192.0.2.7"
    assert address_of("2001:db8::1") == address_of("2001:db8::2") == "2001:db8::/64"
    assert address_of(None) == address_of("?") == "unknown"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"upstreams": ()}, "--upstream"),
        ({"upstreams": ("localhost:5000",)}, "--upstream"),
        ({"upstreams": ("http://a", "http://a")}, "twice"),
        ({"upstreams": ("http://user:secret@a",)}, "--upstream"),
        ({"host": "0.0.0.0"}, "--keys FILE, or say --open"),
        ({"host": "::"}, "--open"),
        ({"queue": 0}, "--queue is 0: it must be from 1 to 100,000"),
        ({"queue_seconds": -1.0}, "--queue_seconds"),
        ({"cors": ("https://a/b",)}, "no path"),
        ({"cors": ("*",)}, "--cors"),
        ({"reports": Path("/no/such/folder")}, "is no folder"),
    ],
)
def test_what_it_is_told_wrong_is_said_before_anything_starts(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(BadGatewaySetting, match=says):
        Settings(**{"upstreams": ("http://localhost:5000",), **settings})


def test_the_command_ends_with_one_line_and_status_2() -> None:
    command = [sys.executable, "-m", "alpaca.gateway", "--host", "0.0.0.0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.strip().startswith("error: E1106 BadGatewaySetting: --host 0.0.0.0")
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.server
def test_keys_at_work(other_project: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    everything, nothing, little = (add_key(file, name) for name in ("everything", "nothing", "little"))
    entries = json.loads(file.read_text())
    entries[1]["models"], entries[2]["in_flight"] = ["other"], 1
    file.write_text(json.dumps(entries))
    options = ("--name", "echo", "--keys", str(file), "--host", "0.0.0.0")
    with CogProcess(other_project) as server, RunningGateway(*options, upstreams=[server.url]) as gateway:
        gateway.wait()
        # who
        for key in ("", "sk-wrong"):
            answer = gateway.chat(model="echo", key=key)
            assert answer.status_code == 401 and error_of(answer)["code"] == "invalid_api_key"
        for path in ("/v1/models", "/v1/models/echo", "/metrics"):
            assert httpx.get(gateway.url + path).status_code == 401
        assert httpx.get(gateway.url + "/health").status_code == httpx.get(gateway.url + "/").status_code == 200
        assert text_of(gateway.chat("secret words", model="echo", key=everything)) == "secret words"
        # what
        assert gateway.chat(model="echo", key=nothing).status_code == 404
        listed = httpx.get(f"{gateway.url}/v1/models", headers={"Authorization": f"Bearer {nothing}"}).json()
        assert listed == {"object": "list", "data": []}
        # how much
        slow = threading.Thread(target=gateway.chat, args=("sleep:2 hay",), kwargs={"model": "echo", "key": little})
        slow.start()
        time.sleep(1)
        answer = gateway.chat(model="echo", key=little)
        assert answer.status_code == 429 and answer.headers["retry-after"]
        slow.join()
        assert text_of(gateway.chat(model="echo", key=little)) == "hay"
        # read again when it changes; a broken file leaves them as they were
        file.write_text("[")
        time.sleep(1.2)
        assert gateway.chat(model="echo", key=everything).status_code == 200
        file.write_text(json.dumps(entries[1:]))
        time.sleep(1.2)
        assert gateway.chat(model="echo", key=everything).status_code == 401
        log = gateway.log()
        assert "everything asked echo: ok" in log and "the earlier ones stay" in log
        assert "secret" not in log and everything not in log and "hay" not in log


@pytest.mark.server
def test_prompts_are_logged_only_where_that_was_asked_for(other_project: Path) -> None:
    options = ("--name", "echo", "--log_prompts")
    with CogProcess(other_project) as server, RunningGateway(*options, upstreams=[server.url]) as gateway:
        gateway.wait()
        gateway.chat("straw\nand \x1b[31mhay", model="echo")
        log = gateway.log()
    assert r"straw\nand \x1b[31mhay" in log and "\x1b" not in log
