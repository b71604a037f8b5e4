"""The page, and the reports of adapters, with what keeps them from doing anything else."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from functools import cache
from pathlib import Path

from starlette.responses import Response

from alpaca.gateway.refusals import NOT_FOUND, Refused

PAGE = Path(__file__).parent / "page.html"
MOST_REPORT = 20 << 20  # bytes


@cache
def _page() -> tuple[bytes, str]:
    """The page and its policy: its own script and style by their hashes, requests to this gateway, nothing else."""
    text = PAGE.read_text(encoding="utf-8")
    hashes = {tag: _hash(re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)) for tag in ("script", "style")}
    policy = (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text.encode(), policy


def _hash(found: re.Match[str] | None) -> str:
    assert found is not None, "page.html has one script and one style"
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()}'"


def page_response() -> Response:
    content, policy = _page()
    headers = {"Content-Security-Policy": policy, "Cache-Control": "no-cache"}
    return Response(content, media_type="text/html", headers=headers)


def find_report(folder: Path | None, name: str) -> str | None:
    """Where an adapter's report/index.html lies: directly below the folder; links do not lead out of it."""
    if folder is None or "/" in name or name.startswith("."):
        return None
    real = os.path.realpath(folder / name / "report" / "index.html")
    inside = Path(real).is_relative_to(os.path.realpath(folder))
    return real if inside and os.path.isfile(real) and os.path.getsize(real) <= MOST_REPORT else None


def report_response(folder: Path | None, name: str) -> Response:
    """Raises Refused where there is no report."""
    if (real := find_report(folder, name)) is None:
        raise Refused(404, "there is no such report", kind=NOT_FOUND)
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"
    return Response(Path(real).read_bytes(), media_type="text/html", headers={"Content-Security-Policy": policy})
