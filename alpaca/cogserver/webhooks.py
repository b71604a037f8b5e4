"""Webhooks that must not lead to the server itself: a client says where Cog posts a prediction, and Cog asks nobody.

Posted to the server's own /shutdown, past any proxy that keeps that route from clients, it ends the server. But the
HTTP client of Cog 0.23.1 goes by the proxies of its environment, and Cog's server speaks no TLS. So its process gets a
proxy for plain http that is closed: webhooks go out over https, and over http to none but the operator's hosts. The
worker undoes it for itself, because its downloads are checked where they are made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

CLOSED = "http://127.0.0.1:0"  # nothing can listen on port 0
HOSTS = "ALPACA_WEBHOOK_HOSTS"
PROXIES = ("HTTP_PROXY", "http_proxy")
EXCEPTIONS = ("NO_PROXY", "no_proxy")
KEPT = "ALPACA_KEPT_PROXIES"


def fenced(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` for Cog's process: plain http to the hosts in ALPACA_WEBHOOK_HOSTS only."""
    kept = {name: environment[name] for name in (*PROXIES, *EXCEPTIONS) if name in environment}
    closed = dict.fromkeys(PROXIES, CLOSED) | dict.fromkeys(EXCEPTIONS, environment.get(HOSTS, ""))
    return {**environment, **closed, KEPT: json.dumps(kept)}


def unfence() -> None:
    """In the worker, before it fetches anything: the proxies that the operator set, if any."""
    if (kept := os.environ.pop(KEPT, None)) is not None:
        for name in (*PROXIES, *EXCEPTIONS):
            os.environ.pop(name, None)
        os.environ.update(json.loads(kept))
    for name in PROXIES:  # an image is started without `fenced`: there the closed proxy is set by hand
        if os.environ.get(name) == CLOSED:
            del os.environ[name]
