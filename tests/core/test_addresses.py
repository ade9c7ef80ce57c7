"""Whom a request comes from, when proxies say so and when anybody could."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.addresses import client_address, prefix_of

TRUSTED = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("203.0.113.9", [], "203.0.113.9"),
        ("203.0.113.9", ["1.2.3.4"], "203.0.113.9"),  # no proxy of ours: whatever it says is its own
        ("10.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["1.2.3.4, 198.51.100.7"], "198.51.100.7"),  # the client wrote the first one itself
        ("10.0.0.1", ["1.2.3.4", "198.51.100.7, 10.0.0.2"], "198.51.100.7"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", ["1.2.3.4, rubbish"], "10.0.0.1"),
        ("10.0.0.1", ["1.2.3.4, "], "10.0.0.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("::ffff:10.0.0.1", ["::ffff:198.51.100.7"], "198.51.100.7"),
        ("fd00::1", ["2001:db8::1%eth0"], "2001:db8::1"),
        (None, ["1.2.3.4"], "unknown"),
        ("", [], "unknown"),
    ],
)
def test_client_address_is_what_trusted_proxies_saw(peer: str | None, forwarded: list[str], address: str) -> None:
    """From the right, the first address that is no trusted proxy's; what anybody may have written counts nothing."""
    assert client_address(peer, forwarded, TRUSTED) == address


@given(st.lists(st.text(max_size=30), max_size=5))
def test_client_address_of_an_untrusted_peer_is_the_peers_whatever_it_writes(forwarded: list[str]) -> None:
    """No header makes somebody somebody else."""
    assert client_address("203.0.113.9", forwarded, TRUSTED) == "203.0.113.9"


@pytest.mark.parametrize(
    ("address", "prefix"),
    [
        ("198.51.100.7", "198.51.100.0/24"),
        ("2001:db8:1:2ff:3::4", "2001:db8:1:200::/56"),
        ("::ffff:198.51.100.7", "198.51.100.0/24"),
        ("unknown", "unknown"),
    ],
)
def test_prefix_is_the_network_that_one_customer_has(address: str, prefix: str) -> None:
    """Who has a whole network has one count in it."""
    assert prefix_of(address) == prefix
