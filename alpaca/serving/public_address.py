"""Which IP addresses lie in the public internet, by IANA's registries of special addresses (RFC 6890 and later).

The standard library knows the registries as they were when it was released, so what older releases take for public is
listed here. In doubt an address is not public: nobody keeps adapters at a relay or in a documentation range.
"""

from __future__ import annotations

import ipaddress

SPECIAL_V4 = [
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "100.64.0.0/10",  # shared by carriers' customers
        "192.0.0.0/24",  # protocol assignments
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT relays
        "192.88.99.0/24",  # 6to4 relays, deprecated
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
    )
]
UNICAST_V6 = ipaddress.IPv6Network("2000::/3")  # all that is given out; whatever lies beside it is special
SPECIAL_V6 = [
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments, with Teredo, benchmarks and ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: an IPv4 address in disguise
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
]
ISATAP = {0x00005EFE, 0x02005EFE}  # the second half of such an address is an IPv4 address (RFC 5214)


def is_public(address: str) -> bool:
    """Whether an IP address, with or without a zone (%eth0), lies in the public internet.

    Raises ValueError for what is no address.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.is_global and not ip.is_multicast and not ip.is_reserved and not any(ip in net for net in SPECIAL_V4)
    if ip.ipv4_mapped is not None:
        return is_public(str(ip.ipv4_mapped))
    disguised = (int(ip) >> 32) & 0xFFFFFFFF in ISATAP
    return ip in UNICAST_V6 and not disguised and not any(ip in net for net in SPECIAL_V6)
