"""URLs of the store: what each form means, what is refused, and that no secret is ever shown."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.store_url import SCHEMES, Address, StoreUrl

SECRET = "Zq7#/@:?&%x"


@pytest.mark.parametrize(
    ("text", "topology", "tls", "hosts", "address"),
    [
        ("redis://cache", "single", False, [("cache", 6379)], "redis://cache:6379"),
        ("redis://u:p@cache:7000/2", "single", False, [("cache", 7000)], "redis://cache:7000/2"),
        ("rediss://[::1]:7000", "single", True, [("::1", 7000)], "rediss://[::1]:7000"),
        (
            "redis+sentinel://u:p@a:1,b,[::1]:3/chat/4?sentinel_password=s",
            *("sentinel", False, [("a", 1), ("b", 26379), ("::1", 3)]),
            "redis+sentinel://a:1,b:26379,[::1]:3/chat/4",
        ),
        ("rediss+sentinel://a/chat", "sentinel", True, [("a", 26379)], "rediss+sentinel://a:26379/chat"),
        ("redis+cluster://u:p@a,b:2", "cluster", False, [("a", 6379), ("b", 2)], "redis+cluster://a:6379,b:2"),
        ("rediss+cluster://a/0", "cluster", True, [("a", 6379)], "rediss+cluster://a:6379"),
        ("unix:///run/a%20b.sock?db=3&password=p", "single", False, [], "unix:///run/a b.sock"),
    ],
)
def test_parse_of_each_form(text: str, topology: str, tls: bool, hosts: list[tuple[str, int]], address: str) -> None:
    """Each form says where the servers are and how they belong together."""
    url = StoreUrl.parse(text)
    assert (url.topology, url.tls, list(url.hosts), url.address) == (topology, tls, hosts, address)


def test_parse_reads_logins_service_and_database() -> None:
    """Logins may hold anything once it is percent-encoded; the Sentinels' own is in the query."""
    word = quote(SECRET, safe="")
    url = StoreUrl.parse(f"redis+sentinel://me:{word}@a/chat/7?sentinel_username=you&sentinel_password={word}")
    assert (url.username, url.password, url.service, url.db) == ("me", SECRET, "chat", 7)
    assert (url.sentinel_username, url.sentinel_password) == ("you", SECRET)
    assert StoreUrl.parse(f"unix:///s?db=2&password={word}").password == SECRET
    assert StoreUrl.parse(f"redis://:{word}@a").username is None


@pytest.mark.parametrize(
    "text",
    [
        *("", "cache:6379", "http://cache", "redis://", "redis://:6379", "redis://a:port", "redis://a:70000"),
        *("redis://a,b", "redis://a/b", "redis://a/1/2", "redis://a?db=x", "unix://", "unix://host/path"),
        *("redis+sentinel://a", "redis+sentinel://a/", "redis+sentinel://a/chat/x", "redis+sentinel:///chat"),
        *("redis+cluster://", "redis+cluster://a/1", "redis+cluster://a,,b", "redis+cluster://a?db=1"),
        *("redis://a?socket_timeout=9", "redis://a?ssl_cert_reqs=none", "redis+cluster://a?sentinel_password=x"),
        *("rediss://a?ssl_cert_reqs=maybe", "redis://a#b"),
    ],
)
def test_parse_refuses_what_it_cannot_mean(text: str) -> None:
    """What could only be a mistake is refused at start, not found out later."""
    with pytest.raises(ValueError, match=r"\w"):
        StoreUrl.parse(text)


def test_parse_names_an_unknown_option() -> None:
    """A setting of the client that is the gateway's own is refused by name."""
    with pytest.raises(ValueError, match="socket_timeout"):
        StoreUrl.parse("redis://a?socket_timeout=9")


@given(
    st.sampled_from(sorted(SCHEMES)),
    st.text("Zq7#/@:?&%.,[] \\", min_size=1, max_size=8).map(lambda word: f"ZQ{word}ZQ"),
    st.sampled_from(
        ["{scheme}://me:{secret}@a:1/chat", "{scheme}://{secret}@a/chat", "{scheme}:///p?password={secret}"]
    ),
)
def test_parse_never_shows_a_secret(scheme: str, secret: str, form: str) -> None:
    """Whatever is in a password, encoded or forgotten to be, neither errors nor what is printed have a part of it."""
    for word in (secret, quote(secret, safe="")):
        text = form.format(scheme=scheme, secret=word)
        url, words = _outcome(text)
        assert "ZQ" not in words
        if url is not None and scheme != "unix":  # whose path is whatever stands before a question mark
            assert "ZQ" not in url.address + repr(url)


def _outcome(text: str) -> tuple[StoreUrl | None, str]:
    try:
        return StoreUrl.parse(text), ""
    except ValueError as error:
        return None, str(error)


def test_address_of_an_ipv6_host_is_bracketed() -> None:
    """An address is written as it would be in a URL."""
    assert [str(Address("::1", 1)), str(Address("a", 2))] == ["[::1]:1", "a:2"]
