"""Whether the server in this container has started, takes requests, or must be restarted: what probes ask.

    python -m alpaca.health started     its set-up is over, well or badly
    python -m alpaca.health ready       it takes requests
    python -m alpaca.health alive       it needs no restart

Says status and reason in one line and ends with 0 for yes and 1 for no. Cog answers /health-check with HTTP 200
whatever the status, so a probe that looks at HTTP alone sees nothing. PORT says where the server listens (5000).
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from alpaca.words import shown

LOCAL = "127.0.0.1"
ANSWER_SECONDS = 5.0  # for each step of one answer
MOST_BYTES = 1 << 24  # the answer holds the log of the set-up
ATTEMPTS, PAUSE_SECONDS = 3, 5.0  # before it is said that a server must be restarted
REASON = 300  # characters

NO_ANSWER = "NO_ANSWER"  # ours; the others are Cog's
BEFORE = {"STARTING", "UNKNOWN", NO_ANSWER}
TAKES_REQUESTS = {"READY", "BUSY"}  # a busy one frees a place within an answer's time; taken out, it would idle then
FOR_EVER = {"SETUP_FAILED", "UNHEALTHY", "DEFUNCT", NO_ANSWER}  # a status that a later Cog may add ends no server

QUESTIONS: dict[str, Callable[[str], bool]] = {
    "started": lambda status: status not in BEFORE,
    "ready": lambda status: status in TAKES_REQUESTS,
    "alive": lambda status: status not in FOR_EVER,
}


@dataclass(frozen=True)
class Health:
    """What the server says of itself: its status and, where something is wrong, the reason in one line."""

    status: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.status} ({self.reason})" if self.reason else self.status


class NoAnswer(Exception):
    """There is no server, or none that gives an answer that can be used; its text says why."""


def health_check(port: int) -> dict[str, Any]:
    """What the server on this machine answers; there is a `status` in it. Raises NoAnswer."""
    connection = http.client.HTTPConnection(LOCAL, port, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", "/health-check")
        answer = json.loads(connection.getresponse().read(MOST_BYTES))
    except (OSError, http.client.HTTPException, OverflowError) as error:
        raise NoAnswer(f"port {port}: {str(error) or type(error).__name__}") from None
    except (ValueError, RecursionError):
        raise NoAnswer(f"port {port}: the answer is not JSON") from None
    finally:
        connection.close()
    if not isinstance(answer, dict) or not isinstance(answer.get("status"), str):
        raise NoAnswer(f"port {port}: the answer has no status")
    return answer


def reason(answer: dict[str, Any]) -> str:
    """Why it is not well: what the server's own check says, else what a failed set-up ended with, without the wrapping
    that every layer of Cog adds."""
    said = answer.get("user_healthcheck_error")
    if not said and isinstance(setup := answer.get("setup"), dict) and setup.get("status") == "failed":
        said = str(setup.get("logs", "")).strip().rpartition("setup failed: ")[2]
    return str(said or "")


def ask(port: int) -> Health:
    """How the server on this machine is; NO_ANSWER with the reason where there is no answer that can be used."""
    try:
        answer = health_check(port)
    except NoAnswer as error:
        return Health(NO_ANSWER, shown(str(error), REASON))
    status = shown(answer["status"], REASON)
    return Health(status, shown(reason(answer), REASON) if status in FOR_EVER else "")


def check(question: str, port: int) -> tuple[bool, Health]:
    """Yes or no to one of QUESTIONS, and the answer it rests on.

    Only the third no in a row says that a server is not alive: what follows is a restart, and one answer that came too
    late is no reason for that.
    """
    for attempt in range(ATTEMPTS if question == "alive" else 1):
        time.sleep(PAUSE_SECONDS if attempt else 0)
        health = ask(port)
        if QUESTIONS[question](health.status):
            return True, health
    return False, health


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m alpaca.health", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("question", nargs="?", default="ready", choices=QUESTIONS, help="default: %(default)s")
    question = parser.parse_args().question
    text = os.environ.get("PORT") or "5000"
    if not text.isdecimal():
        sys.exit(f"PORT is {text!r}, which is no port: set it to a number such as 5000")
    yes, health = check(question, int(text))
    print(f"{question if yes else f'not {question}'}: {health}")
    sys.exit(0 if yes else 1)


if __name__ == "__main__":
    main()
