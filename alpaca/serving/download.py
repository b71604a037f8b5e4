"""Fetch a file from a stranger's URL: https, public addresses only, under limits of size, time and redirects.

The address that was checked is the one connected to, and every redirect is checked again, so that a URL can't be
used to reach into the network the server stands in. An operator opens exceptions with ALPACA_ALLOWED_HOSTS, a list
of ``host`` or ``host:port`` with commas between; these may also be private and speak plain http.

The operator's own URLs, which come with a checksum, are fetched by `alpaca/base/resumable_download.py`.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import queue
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urljoin, urlsplit

from alpaca.cancellation import NEVER, Cancellation
from alpaca.errors import DownloadRefused, is_full_disk
from alpaca.serving.public_address import is_public
from alpaca.words import one_line, shown_url

ALLOWED_HOSTS = "ALPACA_ALLOWED_HOSTS"
CHUNK = 1 << 18


@dataclass(frozen=True)
class Limits:
    """How much a download may take."""

    max_bytes: int = 8 << 30
    seconds: float = 900.0
    redirects: int = 5
    idle_seconds: float = 30.0  # for an answer to begin, and for each `least_bytes` of it
    least_bytes: int = 1 << 18


def download(url: str, target: Path, limits: Limits | None = None, cancellation: Cancellation = NEVER) -> None:
    """Write what `url` holds to `target`. Raises DownloadRefused with the reason, Cancelled, and OSError where
    the disk is full; a partial file may be left."""
    limits = limits or Limits()
    deadline = time.monotonic() + limits.seconds
    for _ in range(limits.redirects + 1):
        cancellation.check()
        with _get(url, deadline, limits, cancellation) as response:
            if response.status in (301, 302, 303, 307, 308):
                url = _joined(url, response.getheader("Location") or "")
                continue
            if response.status != 200:
                raise DownloadRefused(f"{shown_url(url)} answers {response.status} {one_line(response.reason)}")
            return _save(response, target, limits, url)
    raise DownloadRefused(f"{shown_url(url)}: more than {limits.redirects} redirects")


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise DownloadRefused(f"{shown_url(url)} redirects to something that is no URL") from None


@contextlib.contextmanager
def _get(url: str, deadline: float, limits: Limits, cancellation: Cancellation) -> Iterator[http.client.HTTPResponse]:
    """One GET, its connection closed afterwards, and cut when the time is up or nobody wants it any more, in whatever
    state it is."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise DownloadRefused("the adapter's URL is malformed") from None
    host, port, trusted = _destination(parts, url)
    patience = max(0.0, min(limits.idle_seconds, deadline - time.monotonic()))
    try:
        connection = _Connection(host, port, tls=parts.scheme == "https", trusted=trusted, timeout=patience)
    except http.client.InvalidURL:
        raise DownloadRefused(f"{shown_url(url)} names no host") from None
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        with cancellation.calls(connection.cut), contextlib.ExitStack() as opened:
            with connection.cut_after(patience):
                connection.request("GET", path, headers={"User-Agent": "alpaca", "Accept-Encoding": "identity"})
                response = opened.enter_context(connection.getresponse())  # which may own the socket by now
            with connection.cut_after(deadline - time.monotonic()):
                yield response
    except (OSError, http.client.HTTPException, ValueError, DownloadRefused) as error:
        cancellation.check()
        if is_full_disk(error):
            raise
        if time.monotonic() >= deadline:
            raise DownloadRefused(f"{shown_url(url)}: not done after {limits.seconds:g} s") from error
        if isinstance(error, DownloadRefused):
            raise
        if isinstance(error, TimeoutError):
            raise DownloadRefused(f"{shown_url(url)}: nothing came for {limits.idle_seconds:g} s") from error
        reason = one_line(str(error)) or type(error).__name__
        raise DownloadRefused(f"{shown_url(url)} can't be fetched: {reason}") from error
    finally:
        connection.close()


def _destination(parts: SplitResult, url: str) -> tuple[str, int, bool]:
    """Host, port, and whether the operator trusts them. Raises DownloadRefused for a URL that isn't followed at all."""
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise DownloadRefused(f"{shown_url(url)} is no https:// URL")
    if parts.username is not None or parts.password is not None:
        raise DownloadRefused(f"{shown_url(url)}: a URL with a user name or password in it is not followed")
    try:
        port = {"https": 443, "http": 80}[parts.scheme] if parts.port is None else parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise DownloadRefused(f"{shown_url(url)} has no valid port")
    host = parts.hostname.lower()
    allowed = {entry.strip().lower() for entry in os.environ.get(ALLOWED_HOSTS, "").split(",")}
    trusted = host in allowed or f"{host}:{port}" in allowed
    if parts.scheme == "http" and not trusted:
        raise DownloadRefused(f"{shown_url(url)}: only https is followed, except to hosts in {ALLOWED_HOSTS}")
    return host, port, trusted


class _Connection(http.client.HTTPConnection):
    """Connects to an address that was checked, and can be cut from another thread."""

    def __init__(self, host: str, port: int, *, tls: bool, trusted: bool, timeout: float) -> None:
        super().__init__(host, port, timeout=timeout)
        self._tls = tls
        self._trusted = trusted
        self._open: socket.socket | None = None  # self.sock is forgotten as soon as a last response begins
        self._cut = False

    def connect(self) -> None:
        addresses = self._addresses()
        self.sock = self._first_open(addresses)
        if self._tls:
            tls = ssl.create_default_context()
            wrapped = tls.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
            self.sock = self._open = wrapped
            if self._cut:  # while one socket became the other
                raise TimeoutError
            wrapped.do_handshake()

    def _addresses(self) -> list[str]:
        """Where the host is. A client is not told whether a name leads into this network or nowhere; the log is."""
        try:
            addresses = _addresses(self.host, self.port, self.timeout)
        except (socket.gaierror, UnicodeError) as error:
            problem = str(error)
        else:
            inside = [address for address in addresses if not self._trusted and not is_public(address)]
            if not inside:
                return addresses
            problem = f"it is at {inside[0]}, and {ALLOWED_HOSTS} does not name it"
        _log(f"download refused: {self.host}: {problem}")
        raise DownloadRefused(f"{self.host} is not in the public internet")

    def _first_open(self, addresses: list[str]) -> socket.socket:
        """A connection to the first address that takes one: a host without IPv6 may still see IPv6 addresses."""
        *others, last = addresses[:3]
        for address in others:
            with contextlib.suppress(OSError):
                return self._opened(address, min(self.timeout or 5.0, 5.0))
        return self._opened(last, self.timeout)

    def _opened(self, address: str, seconds: float | None) -> socket.socket:
        """A connection to one address, which can be cut before it is there."""
        self._open = opened = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        try:
            opened.settimeout(seconds)
            if not self._cut:
                opened.connect((address, self.port))
            if self._cut:
                raise TimeoutError
        except BaseException:
            opened.close()
            raise
        opened.settimeout(self.timeout)
        return opened

    @contextlib.contextmanager
    def cut_after(self, seconds: float) -> Iterator[None]:
        """End the connection when the time is up, in whatever it is; raise TimeoutError then."""
        timer = threading.Timer(max(0.0, seconds), self.cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        except (OSError, http.client.HTTPException):
            if not self._cut:
                raise
        finally:
            timer.cancel()
        if self._cut:  # a connection that was cut can look like one that ended
            raise TimeoutError

    def cut(self) -> None:
        """From another thread: a read that waits ends at once."""
        self._cut = True
        if self._open is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._open, socket.SHUT_RDWR)


def _addresses(host: str, port: int, seconds: float | None) -> list[str]:
    """The addresses of a host; its name server is waited for no longer than `seconds`."""
    found: queue.Queue[list[str] | Exception] = queue.Queue()

    def resolve() -> None:
        try:
            found.put([str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)])
        except Exception as error:  # OSError, and UnicodeError for what is no name at all
            found.put(error)

    threading.Thread(target=resolve, daemon=True).start()
    try:
        result = found.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(result, Exception):
        raise result
    return list(dict.fromkeys(result))


def _log(line: str) -> None:
    """Print where only the operator reads it: what this thread prints, Cog sends to the client with its answer."""
    apart = threading.Thread(target=print, args=(line,), kwargs={"flush": True}, daemon=True)
    apart.start()
    apart.join()


def _save(response: http.client.HTTPResponse, target: Path, limits: Limits, url: str) -> None:
    encoding = response.getheader("Content-Encoding", "identity").lower()
    # Some servers announce an archive's own packing like this; the file is saved as it is, so that does no harm.
    if encoding != "identity" and not urlsplit(url).path.endswith((".gz", ".tgz", ".bz2", ".xz")):
        raise DownloadRefused(f"{shown_url(url)} comes packed ({encoding[:20]!r}), though it was asked for as it is")
    declared = response.length
    if declared is not None and declared > limits.max_bytes:
        raise DownloadRefused(f"{shown_url(url)} has {declared:,} bytes; at most {limits.max_bytes:,}")
    size = counted = 0
    since = time.monotonic()
    with target.open("wb") as out:
        while chunk := response.read1(CHUNK):
            size += len(chunk)
            if size > limits.max_bytes:
                raise DownloadRefused(f"{shown_url(url)} has over {limits.max_bytes:,} bytes")
            out.write(chunk)
            if time.monotonic() - since > limits.idle_seconds:
                if size - counted < limits.least_bytes:
                    raise DownloadRefused(
                        f"{shown_url(url)}: {size - counted:,} bytes in {limits.idle_seconds:g} s: too slow"
                    )
                since, counted = time.monotonic(), size
    if declared is not None and size != declared:
        raise DownloadRefused(f"{shown_url(url)} ended after {size:,} of {declared:,} bytes")
