"""What the operator says."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from alpaca.errors import BadGatewaySetting

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Settings:
    """Raises BadGatewaySetting for what can't be, or must not be without a further word."""

    upstreams: tuple[str, ...]
    """Addresses of Cog's servers."""
    host: str = "127.0.0.1"
    port: int = 8000
    open: bool = False
    """Whether strangers may ask without a key."""
    keys: Path | None = None
    queue: int = 256
    """Requests that may wait."""
    queue_seconds: float = 60.0
    """How long each may."""
    places: int | None = None
    """Requests that a server is given at a time; None: what it says of itself, else one."""
    name: str = "cog"
    """What a model is called that does not describe itself."""
    body_bytes: int = 1 << 20
    cors: tuple[str, ...] = ()
    """Origins whose pages may ask from a browser."""
    reports: Path | None = None
    """A folder with adapters, whose reports are shown."""
    names: tuple[str, ...] = ()
    """Names that clients call it by, without port; empty: this machine's where no key is needed, else any."""
    log_prompts: bool = False

    def __post_init__(self) -> None:
        if not self.upstreams:
            raise BadGatewaySetting("--upstream: name at least one server of Cog's, such as http://localhost:5000")
        for url in self.upstreams:
            _check_url("--upstream", url)
        if len(set(self.upstreams)) < len(self.upstreams):
            raise BadGatewaySetting("--upstream names one server twice")
        for origin in self.cors:
            _check_url("--cors", origin)
            if urlsplit(origin).path:
                raise BadGatewaySetting(f"--cors {origin}: an origin has no path: https://example.com")
        if not self.local and self.keys is None and not self.open:
            raise BadGatewaySetting(
                f"--host {self.host} lets other machines in, and nobody would be asked for a key: give --keys FILE, or "
                "say --open if that is meant"
            )
        if self.reports is not None and not self.reports.is_dir():
            raise BadGatewaySetting(f"--reports {self.reports} is no folder")
        for name, value, low, high in (
            ("queue", self.queue, 1, 100_000), ("queue_seconds", self.queue_seconds, 0.1, 3600),
            ("places", self.places or 1, 1, 1000), ("body_bytes", self.body_bytes, 1024, 100 << 20),
        ):  # fmt: skip
            if not low <= value <= high:
                raise BadGatewaySetting(f"--{name} is {value:g}: it must be from {low:g} to {high:,}")

    @property
    def local(self) -> bool:
        """Whether it listens on this machine only."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def hosts(self) -> tuple[str, ...] | None:
        """The names by which it may be called; None: any. Where no key is needed, a page elsewhere that gives itself
        this machine's address (DNS rebinding) must not get in."""
        if self.names:
            return self.names
        return LOCAL_NAMES if self.local and self.keys is None else None


def _check_url(option: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        fine = False
    if not fine or parts.query or parts.fragment or parts.username:
        raise BadGatewaySetting(f"{option} {url}: an address such as http://localhost:5000 is needed")
