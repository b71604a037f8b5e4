"""Fetch a file from a stranger's URL: https, public addresses only, under limits of size, time and redirects.

The address that was checked is the one connected to, and every redirect is checked again, so that a URL can't be
used to reach into the network the server stands in. An operator opens exceptions with ALPACA_ALLOWED_HOSTS, a list
of ``host`` or ``host:port`` with commas between; these may also be private and speak plain http.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urljoin, urlsplit

from alpaca.errors import DownloadRefused

ALLOWED_HOSTS = "ALPACA_ALLOWED_HOSTS"
CHUNK = 1 << 18
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # an IPv4 address, perhaps a private one, in the clothes of IPv6


@dataclass(frozen=True)
class Limits:
    """How much a download may take."""

    max_bytes: int = 8 << 30
    seconds: float = 900.0
    redirects: int = 5
    idle_seconds: float = 30.0


def download(url: str, target: Path, limits: Limits | None = None) -> None:
    """Write what `url` holds to `target`. Raises DownloadRefused with the reason; a partial file may be left."""
    limits = limits or Limits()
    deadline = time.monotonic() + limits.seconds
    for _ in range(limits.redirects + 1):
        with _get(url, deadline, limits) as response:
            if response.status in (301, 302, 303, 307, 308):
                url = urljoin(url, response.getheader("Location") or "")
                continue
            if response.status != 200:
                raise DownloadRefused(f"{shown(url)} answers {response.status} {response.reason}")
            return _save(response, target, limits, url)
    raise DownloadRefused(f"{shown(url)}: more than {limits.redirects} redirects")


def shown(url: str) -> str:
    """The URL without its query, which may be a signature that gives access."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def is_public(address: str) -> bool:
    """Whether an IP address lies in the public internet: not private, loopback, link-local, multicast or disguised."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip.sixtofour is not None or ip.teredo is not None or ip in NAT64:
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


@contextlib.contextmanager
def _get(url: str, deadline: float, limits: Limits) -> Iterator[http.client.HTTPResponse]:
    """One GET, its connection closed afterwards, and cut when the time is up, in whatever state it is."""
    parts = urlsplit(url)
    host, port, trusted = _destination(parts, url)
    connection = _Connection(host, port, tls=parts.scheme == "https", trusted=trusted, timeout=limits.idle_seconds)
    cut = threading.Timer(max(0.0, deadline - time.monotonic()), connection.cut)
    cut.daemon = True
    cut.start()
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request("GET", path, headers={"User-Agent": "alpaca", "Accept-Encoding": "identity"})
        yield connection.getresponse()
        if time.monotonic() >= deadline:  # a connection that was cut can look like one that ended
            raise TimeoutError
    except (OSError, http.client.HTTPException, ValueError, DownloadRefused) as error:
        if time.monotonic() >= deadline:
            raise DownloadRefused(f"{shown(url)}: not done after {limits.seconds:g} s") from error
        if isinstance(error, DownloadRefused):
            raise
        raise DownloadRefused(f"{shown(url)} can't be fetched: {str(error) or type(error).__name__}") from error
    finally:
        cut.cancel()
        connection.close()


def _destination(parts: SplitResult, url: str) -> tuple[str, int, bool]:
    """Host, port, and whether the operator trusts them. Raises DownloadRefused for a URL that isn't followed at all."""
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise DownloadRefused(f"{shown(url)[:200]} is no https:// URL")
    if parts.username is not None or parts.password is not None:
        raise DownloadRefused(f"{shown(url)}: a URL with a user name or password in it is not followed")
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise DownloadRefused(f"{shown(url)} has no valid port") from None
    host = parts.hostname.lower()
    allowed = {entry.strip().lower() for entry in os.environ.get(ALLOWED_HOSTS, "").split(",")}
    trusted = host in allowed or f"{host}:{port}" in allowed
    if parts.scheme == "http" and not trusted:
        raise DownloadRefused(f"{shown(url)}: only https is followed, except to hosts in {ALLOWED_HOSTS}")
    return host, port, trusted


class _Connection(http.client.HTTPConnection):
    """Connects to an address that was checked, and can be cut from another thread."""

    def __init__(self, host: str, port: int, *, tls: bool, trusted: bool, timeout: float) -> None:
        super().__init__(host, port, timeout=timeout)
        self._tls = tls
        self._trusted = trusted
        self._open: socket.socket | None = None  # self.sock is forgotten as soon as a last response begins

    def connect(self) -> None:
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        addresses = [str(entry[4][0]) for entry in found]
        refused = [a for a in addresses if not self._trusted and not is_public(a)]
        if refused or not addresses:
            raise DownloadRefused(
                f"{self.host} is at {refused[0]}, which is not in the public internet"
                if refused
                else f"{self.host} has no address"
            )
        self.sock = socket.create_connection((addresses[0], self.port), self.timeout)
        self._open = self.sock
        if self._tls:
            tls = ssl.create_default_context()
            wrapped = tls.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
            self.sock = self._open = wrapped
            wrapped.do_handshake()

    def cut(self) -> None:
        """End the connection from another thread; a read that waits ends at once."""
        if self._open is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._open, socket.SHUT_RDWR)


def _save(response: http.client.HTTPResponse, target: Path, limits: Limits, url: str) -> None:
    declared = response.length
    if declared is not None and declared > limits.max_bytes:
        raise DownloadRefused(f"{shown(url)} has {declared:,} bytes; at most {limits.max_bytes:,}")
    size = 0
    with target.open("wb") as out:
        while chunk := response.read1(CHUNK):
            size += len(chunk)
            if size > limits.max_bytes:
                raise DownloadRefused(f"{shown(url)} has over {limits.max_bytes:,} bytes")
            out.write(chunk)
    if declared is not None and size != declared:
        raise DownloadRefused(f"{shown(url)} ended after {size:,} of {declared:,} bytes")
