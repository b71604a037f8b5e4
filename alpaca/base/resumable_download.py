"""A large file from the operator's URL: downloaded over however many tries and processes it takes.

Any address is asked, plain http too, and through the proxy that the environment names: the caller knows the file's
checksum and decides by it what is taken. Never hand a client's URL to it: those go through
`alpaca/serving/download.py`, which asks public addresses only, under limits.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from alpaca.errors import FetchFailed
from alpaca.files import room_for
from alpaca.progress import progress, say
from alpaca.words import shown_url, size_text

STALL_SECONDS = 30.0  # for a connection, and for each further byte
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # seconds before another try, while tries bring nothing
LEAST_GAIN = 1 << 20  # bytes that a try must bring for the pauses to begin anew
TRANSIENT = {408, 425, 429}  # statuses that may pass, and so may all from 500 on


@dataclass(frozen=True)
class Origin:
    """What the bytes of an archive are part of."""

    source: str = ""  # the URL without its query
    version: str = ""  # the server's ETag, else Last-Modified
    size: int = 0  # bytes of the whole archive; 0: not known


@dataclass(frozen=True)
class Part:
    """An archive as far as it has come."""

    path: Path

    @property
    def length(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    @property
    def _note(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    def origin(self) -> Origin:
        try:
            return Origin(**json.loads(self._note.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return Origin()

    def note(self, origin: Origin) -> None:
        self._note.write_text(json.dumps(asdict(origin)), encoding="utf-8")

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)


class _TryAgain(Exception):
    """The server has a trouble that may pass."""


def resume_download(url: str, name: str, part: Part) -> None:
    """Bring `part` to its full length, from where an earlier try or an earlier process stopped."""
    most, failures = part.length, 0
    with _client() as client:
        while True:
            try:
                return _try(client, url, name, part)
            except (httpx.UnsupportedProtocol, httpx.TooManyRedirects) as error:
                raise FetchFailed(f"{shown_url(url)} can't be fetched: {error}") from None
            except httpx.TimeoutException:
                reason = f"nothing came for {STALL_SECONDS:g} s"
            except (httpx.TransportError, _TryAgain) as error:
                reason = str(error) or type(error).__name__
            if part.length >= most + LEAST_GAIN:
                failures = 0
            most = max(most, part.length)
            here = size_text(part.length)
            if failures == len(PAUSES):
                kept = f"The {here} that arrived stay, and the next start resumes from there" if part.length else ""
                raise FetchFailed(f"{shown_url(url)} can't be fetched: {reason}. {kept or 'Check server and network'}")
            say(f"{shown_url(url)}: {reason}; {here} are here, trying again in {PAUSES[failures]:g} s")
            time.sleep(PAUSES[failures])
            failures += 1


def _client() -> httpx.Client:
    try:
        return httpx.Client(follow_redirects=True, timeout=STALL_SECONDS)
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise FetchFailed(f"the proxy that the environment names (HTTPS_PROXY, …) can't be used: {error}") from None


def _try(client: httpx.Client, url: str, name: str, part: Part) -> None:
    """One request. Raises httpx's errors, _TryAgain or FetchFailed; what has arrived is in `part` all the same."""
    have, origin = part.length, part.origin()
    if have and have == origin.size:
        say(f"the archive of {name} is here already ({size_text(have)})")
        return
    same_source = origin.source == shown_url(url)  # another mirror has other tags; there the checksum alone decides
    headers = {"Accept-Encoding": "identity", "User-Agent": "alpaca"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if same_source and origin.version:
            headers["If-Range"] = origin.version
    with client.stream("GET", url, headers=headers) as response:
        total, begins = _extent(response)
        if response.status_code == 416 and have and total == have:
            return
        version = _version(response)
        changed = (total and origin.size and total != origin.size) or (same_source and version != origin.version)
        if begins not in (0, have) or (begins and changed):
            part.discard()
            raise _TryAgain("the server can't resume what is here, or has another file now: starting over")
        if have and not begins:
            say(f"the server sends {name} from its beginning again: it can't resume, or has another file now")
            part.discard()
        _save(response, name, part, begins, Origin(shown_url(url), version, total or (begins and origin.size)))


def _extent(response: httpx.Response) -> tuple[int, int]:
    """Bytes of the whole file (0: not known), and at which of them the answer begins (-1: there are none in it)."""
    status = response.status_code
    if status == 200:
        length = response.headers.get("Content-Length", "")
        return int(length) if length.isdecimal() else 0, 0
    if status in (206, 416):
        span = re.fullmatch(r"bytes (?:\*|(\d+)-\d+)/(?:\*|(\d+))", response.headers.get("Content-Range", "").strip())
        first, total = span.groups() if span else (None, None)
        return int(total or 0), int(first) if first and status == 206 else -1
    answer = f"the server answers {status} {response.reason_phrase}"
    if status in TRANSIENT or status >= 500:
        raise _TryAgain(answer)
    raise FetchFailed(f"{shown_url(str(response.url))} can't be fetched: {answer}. Check the URL and who may read it")


def _version(response: httpx.Response) -> str:
    """What the server knows this version of the file by; after a weak ETag nothing may be resumed."""
    tag = str(response.headers.get("ETag", ""))
    return tag if tag and not tag.startswith("W/") else str(response.headers.get("Last-Modified", ""))


def _save(response: httpx.Response, name: str, part: Part, begins: int, origin: Origin) -> None:
    rest = max(0, origin.size - begins)
    what = f"downloading {name}" + (f" from {size_text(begins)} on, which are here already" if begins else "")
    with (
        room_for(rest + origin.size, part.path.parent, f"download and unpack {name}"),
        part.path.open("ab" if begins else "wb") as out,
    ):
        part.note(origin)
        with progress(what, rest) as count:
            for chunk in response.iter_raw():
                count(out.write(chunk))
    if part.length < origin.size:
        raise _TryAgain(f"the server ended after {size_text(part.length)} of {size_text(origin.size)}")
