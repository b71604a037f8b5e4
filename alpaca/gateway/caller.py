"""Who asks: an address, or the holder of a key with what it allows."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import os
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpaca.errors import BadGatewaySetting
from alpaca.files import written_aside
from alpaca.gateway.refusals import DENIED, Refused
from alpaca.gateway.served import Model

NAME = re.compile(r"[\w.@ -]{1,64}")
LOOK_SECONDS = 1.0  # between two looks at the file of keys
MOST_KEY = 512  # characters


@dataclass(frozen=True)
class Caller:
    """Turns are shared fairly between callers."""

    name: str
    models: tuple[str, ...] | None = None
    """What it may ask for, without strengths; None: everything."""
    in_flight: int | None = None
    """Its requests at a time, those that wait included; None: no limit of its own."""

    def may_ask(self, model: Model) -> bool:
        return self.models is None or model.root in self.models


@dataclass(frozen=True)
class Key:
    """One entry of the file: never the key itself, only its hash. A key is 256 random bits, so a plain hash does."""

    digest: bytes
    caller: Caller


class Keys:
    """The file of keys, read again when it changes; one that can't be read leaves the keys as they were."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        """Raises BadGatewaySetting."""
        self._path = path
        self._say = say
        self._keys = read_keys(path)
        self._stamp = _stamp(path)
        self._looked = time.monotonic()

    def caller(self, key: str) -> Caller:
        """Raises Refused with 401. Every key is compared, each in constant time: no time tells of a near hit."""
        self._look()
        digest = hashlib.sha256(key[:MOST_KEY].encode()).digest()
        found = [entry.caller for entry in self._keys if hmac.compare_digest(entry.digest, digest)]
        if not found:
            says = "this key is not known" if key else "a key is needed: Authorization: Bearer …"
            raise Refused(401, says, kind=DENIED, code="invalid_api_key")
        return found[0]

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        if (stamp := _stamp(self._path)) == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = read_keys(self._path)
        except BadGatewaySetting as error:
            self._say(f"keys: the earlier ones stay: {error}")
        else:
            self._say(f"keys: {len(self._keys)} read again from {self._path}")


def address_of(host: str | None) -> str:
    """A client without a key, by its address; of IPv6 by the network of 64 bits that one customer has."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return "unknown"
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((address, 64), strict=False))


def read_keys(path: Path) -> list[Key]:
    """The entries of a file of keys. Raises BadGatewaySetting with the entry and field at fault."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadGatewaySetting(f"--keys {path}: {error.strerror}") from None
    except ValueError as error:
        raise BadGatewaySetting(f"--keys {path} is not JSON: {error}") from None
    if not isinstance(entries, list):
        raise BadGatewaySetting(f"--keys {path}: a list of keys is needed; --new_key NAME makes one")
    keys = [_key(entry, f"--keys {path}, entry {number}") for number, entry in enumerate(entries, 1)]
    if len({key.caller.name for key in keys}) < len(keys):
        raise BadGatewaySetting(f"--keys {path}: two entries have the same name")
    return keys


def _key(entry: Any, where: str) -> Key:
    if not isinstance(entry, dict) or entry.keys() - {"name", "sha256", "models", "in_flight"}:
        raise BadGatewaySetting(f"{where}: it may hold name, sha256, models and in_flight, and nothing else")
    name, digest, models, most = (entry.get(field) for field in ("name", "sha256", "models", "in_flight"))
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise BadGatewaySetting(f"{where}: name must have 1 to 64 letters, digits, blanks or . @ _ -")
    if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise BadGatewaySetting(f"{where} ({name}): sha256 must have 64 hex digits: the SHA-256 of the key")
    if models is not None and not (isinstance(models, list) and all(isinstance(model, str) for model in models)):
        raise BadGatewaySetting(f"{where} ({name}): models must be a list of names")
    if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
        raise BadGatewaySetting(f"{where} ({name}): in_flight must be a whole number from 1")
    return Key(bytes.fromhex(digest), Caller(name, None if models is None else tuple(models), most))


def add_key(path: Path, name: str) -> str:
    """Add a new key to the file, which is made where there is none, and return the key: it is kept nowhere.

    Raises BadGatewaySetting where the file can't be read or has the name already.
    """
    if not NAME.fullmatch(name):
        raise BadGatewaySetting("--new_key: a name has 1 to 64 letters, digits, blanks or . @ _ -")
    entries: list[Any] = []
    if path.exists():
        if name in {key.caller.name for key in read_keys(path)}:
            raise BadGatewaySetting(f"--new_key: {path} has a key of the name {name!r}; remove it there first")
        entries = json.loads(path.read_text(encoding="utf-8"))
    key = f"sk-{secrets.token_urlsafe(32)}"
    entries.append({"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest()})
    with written_aside(path) as aside:
        aside.write_text(json.dumps(entries, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return key


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
