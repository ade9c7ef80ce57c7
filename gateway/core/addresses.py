"""Client addresses: which one a request comes from, and the prefix under which a network is counted."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

Network = IPv4Network | IPv6Network

IPV4_PREFIX: Final = 24
IPV6_PREFIX: Final = 56  # what providers give one customer is /56 to /64 (RFC 6177)
HOPS_MAX: Final = 32
UNKNOWN: Final = "unknown"


def client_address(peer: str | None, forwarded: Sequence[str], trusted: Sequence[Network]) -> str:
    """Return the address that a request comes from.

    ``forwarded`` are the values of ``X-Forwarded-For``. They count only as far as trusted proxies wrote them: from the
    right, the first address that is no trusted proxy's is the client's; whatever stands left of it anybody may have
    written. Of what is no address the proxy before it is taken.
    """
    address = _parse(peer or "")
    if address is None:
        return UNKNOWN
    hops = ",".join(forwarded).split(",")[-HOPS_MAX:] if forwarded else []
    while hops and any(address in network for network in trusted):
        nearer = _parse(hops.pop().strip())
        if nearer is None:
            break
        address = nearer
    return str(address)


def prefix_of(address: str) -> str:
    """Return the network that an address is counted under; the address itself where it is none."""
    parsed = _parse(address)
    if parsed is None:
        return address
    length = IPV4_PREFIX if isinstance(parsed, IPv4Address) else IPV6_PREFIX
    return str(ip_network((parsed, length), strict=False))


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
