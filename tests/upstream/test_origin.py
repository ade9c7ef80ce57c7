"""Addresses and settings refuse nonsense when they are made."""

import pytest

from gateway.upstream.origin import Origin, PoolSettings


@pytest.mark.parametrize(
    ("url", "host", "port", "authority"),
    [
        ("https://api.example.com", "api.example.com", 443, b"api.example.com"),
        ("https://api.example.com:8443/base", "api.example.com", 8443, b"api.example.com:8443"),
        ("h2c://localhost", "localhost", 80, b"localhost"),
        ("h2c://[::1]:5000", "::1", 5000, b"[::1]:5000"),
        ("https://bücher.example", "xn--bcher-kva.example", 443, b"xn--bcher-kva.example"),
    ],
)
def test_url_yields_host_port_and_authority(url: str, host: str, port: int, authority: bytes) -> None:
    """The authority names the port only where it is not the scheme's own."""
    origin = Origin.parse(url)
    assert (origin.host, origin.port, origin.authority) == (host, port, authority)
    assert origin.is_tls == url.startswith("https")


@pytest.mark.parametrize("url", ["http://x", "ftp://x", "x", "https://", "https://u:p@x", "https://x:99999"])
def test_url_that_cannot_be_an_origin_is_refused(url: str) -> None:
    """Among them plain http, which would send the key in HTTP/1 or in the clear by mistake."""
    with pytest.raises(ValueError):
        Origin.parse(url)


@pytest.mark.parametrize(
    "wrong",
    [
        {"connect_timeout_s": 0},
        {"ping_interval_s": -1},
        {"max_streams": 0},
        {"max_attempts": 0},
        {"backoff_min_s": 2, "backoff_max_s": 1},
        {"stream_window_bytes": 10},
        {"connection_window_bytes": 1000},
    ],
)
def test_settings_refuse_nonsense(wrong: dict[str, float]) -> None:
    """A wrong setting fails where it is made, not in mid-stream."""
    with pytest.raises(ValueError):
        PoolSettings(**wrong)  # type: ignore[arg-type]  # wrong on purpose
