"""What counts as the public internet: one address of each range in IANA's registries of special addresses."""

from __future__ import annotations

import pytest

from alpaca.serving.public_address import is_public

INSIDE = {
    "this network": "0.0.0.0",
    "this host on this network": "0.1.2.3",
    "private, class A": "10.1.2.3",
    "shared by a carrier": "100.64.0.1",
    "loopback": "127.0.0.1",
    "link-local, where clouds keep their keys": "169.254.169.254",
    "private, class B": "172.16.0.1",
    "protocol assignments": "192.0.0.8",
    "protocol assignments, anycast": "192.0.0.9",
    "documentation 1": "192.0.2.1",
    "AS112": "192.31.196.1",
    "AMT": "192.52.193.1",
    "6to4 relay": "192.88.99.1",
    "private, class C": "192.168.1.1",
    "AS112, delegated": "192.175.48.1",
    "benchmarks": "198.18.0.1",
    "documentation 2": "198.51.100.1",
    "documentation 3": "203.0.113.1",
    "multicast": "224.0.0.1",
    "reserved": "240.0.0.1",
    "broadcast": "255.255.255.255",
    "v6 unspecified": "::",
    "v6 loopback": "::1",
    "v6 compatible with v4": "::7f00:1",
    "v6 mapped, loopback": "::ffff:127.0.0.1",
    "v6 translated": "::ffff:0:7f00:1",
    "NAT64": "64:ff9b::7f00:1",
    "NAT64, local": "64:ff9b:1::1",
    "discard only": "100::1",
    "discard, dummy prefix": "100:0:0:1::1",
    "Teredo": "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "port control": "2001:1::1",
    "v6 benchmarks": "2001:2::1",
    "v6 AMT": "2001:3::1",
    "v6 AS112": "2001:4:112::1",
    "ORCHID": "2001:10::1",
    "ORCHIDv2": "2001:20::1",
    "drones": "2001:30::1",
    "v6 documentation": "2001:db8::1",
    "6to4": "2002:7f00:1::",
    "v6 AS112, delegated": "2620:4f:8000::1",
    "v6 documentation, larger": "3fff::1",
    "segment routing": "5f00::1",
    "unique local": "fc00::1",
    "unique local, random": "fd12:3456:789a::1",
    "link-local with a zone": "fe80::1%eth0",
    "site-local, deprecated": "fec0::2",
    "site-local, its end": "feff::1",
    "v6 multicast": "ff02::1",
    "ISATAP": "2606:4700::5efe:7f00:1",
    "ISATAP, of a unique address": "2606:4700::200:5efe:a00:1",
    "never given out": "4000::1",
}


@pytest.mark.parametrize("address", INSIDE.values(), ids=INSIDE.keys())
def test_special_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "151.101.0.223", "192.0.1.1", "2606:4700:4700::1111", "2a00:1450::1", "::ffff:1.1.1.1"]
)
def test_addresses_outside_are_public(address: str) -> None:
    assert is_public(address)


def test_what_is_no_address_is_an_error() -> None:
    with pytest.raises(ValueError):
        is_public("localhost")
