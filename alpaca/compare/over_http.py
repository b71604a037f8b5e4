"""Questions to a running server like this project's."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from alpaca.errors import ServerFailed

AT_ONCE = 16  # requests to a server; more would wait there
BUSY_PAUSES = [0.25] * 4 + [1.0] * 600  # seconds between tries while others keep it busy


def ask_server(url: str, requests: Sequence[dict[str, Any]]) -> list[str]:
    """The same from a server like this project's. Raises ServerFailed with what it says of a request it refuses."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda inputs: _ask_server(url, inputs), requests))


def _ask_server(url: str, inputs: dict[str, Any]) -> str:
    body = json.dumps({"input": inputs}).encode()
    request = urllib.request.Request(f"{url.rstrip('/')}/predictions", body, {"Content-Type": "application/json"})
    for pause in (*BUSY_PAUSES, None):
        try:
            with urllib.request.urlopen(request) as response:
                answer = json.load(response)
            break
        except urllib.error.HTTPError as error:
            if error.code != 409 or pause is None:
                text = error.read(2000).decode(errors="replace")
                raise ServerFailed(f"{url} answers HTTP {error.code}: {text}") from None
            time.sleep(pause)
        except (OSError, ValueError) as error:
            raise ServerFailed(f"{url} can't be asked: {error}") from None
    if answer.get("status") != "succeeded":
        raise ServerFailed(f"{url}: adapter {inputs.get('adapter')!r}: {answer.get('error') or answer.get('status')}")
    return "".join(answer.get("output") or []).strip()
