"""What a client is told when it gets no answer: a true HTTP status, and a body in OpenAI's form."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

INVALID, NOT_FOUND, RATE, SERVER = "invalid_request_error", "not_found_error", "rate_limit_error", "server_error"
DENIED = "authentication_error"
CODED = re.compile(r"\b(E\d{4}) \w+: .*", re.DOTALL)
MOST_TEXT = 2000  # characters of a reason that is not ours


class Refused(Exception):
    """The request ends with this."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        """`param`: the field at fault. `retry_after`: seconds after which it may be asked again."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.retry_after = retry_after

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


@dataclass(frozen=True)
class Meaning:
    """What a server's error code means to a client of the gateway."""

    status: int
    kind: str = INVALID
    param: str | None = None
    code: str | None = None
    retry_after: int | None = None
    words: str = ""
    """What is said after the server's own text."""


MEANINGS = {
    "E1001": Meaning(400, param="messages"),
    # LangChain and LiteLLM know this case by these words, where they make it an error of its own: not by the code.
    "E1002": Meaning(400, param="messages", code="context_length_exceeded", words=": the prompt is too long"),
    "E1003": Meaning(400),
    "E1004": Meaning(400, param="messages"),
    "E1005": Meaning(400),
    "E1006": Meaning(400, param="model"),
    "E1101": Meaning(500, SERVER),
    "E1102": Meaning(503, SERVER, retry_after=10),
    "E1104": Meaning(503, SERVER, retry_after=5),
    "E1105": Meaning(503, SERVER, retry_after=5),
    "E2101": Meaning(400, param="prompt_template"),
    "E2102": Meaning(400, param="prompt_template"),
    "E4001": Meaning(404, NOT_FOUND, "model", "model_not_found"),
    "E4007": Meaning(503, SERVER, retry_after=1),
    "E4009": Meaning(503, SERVER, retry_after=5),
}
BROKEN = {"E1102"}
"""Codes after which the server needs a restart, while another one may answer."""


def code_of(error: str) -> str:
    """The code in what a failed prediction says; empty without one."""
    found = CODED.search(error)
    return found[1] if found else ""


def of_upstream(error: str) -> Refused:
    """A failed prediction's error, without what the layers of Cog put in front. One without a code is the server's
    fault, and so is a code that is not in MEANINGS."""
    found = CODED.search(error)
    text = found[0] if found else error.strip() or "the server gave no reason"
    meaning = MEANINGS.get(found[1] if found else "", Meaning(500, SERVER))
    code = meaning.code or (found[1] if found else None)
    return Refused(
        meaning.status,
        text[:MOST_TEXT] + meaning.words,
        kind=meaning.kind,
        code=code,
        param=meaning.param,
        retry_after=meaning.retry_after,
    )
