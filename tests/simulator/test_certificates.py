"""The CA and certificate that the simulator makes for itself."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path

from gateway.simulator.certificates import CA_FILE, CHAIN_FILE, KEY_FILE, ensure_certificates, server_context


def test_ensure_certificates_keeps_good_ones(tmp_path: Path) -> None:
    """A second start finds the same CA, so a client need not be told again; the key is for its owner only."""
    ca = ensure_certificates(tmp_path / "tls", ())
    before = ca.read_bytes()
    assert ensure_certificates(tmp_path / "tls", ()).read_bytes() == before
    assert stat.S_IMODE((ca.parent / KEY_FILE).stat().st_mode) == 0o600
    assert {path.name for path in ca.parent.iterdir()} == {CA_FILE, CHAIN_FILE, KEY_FILE}


def test_ensure_certificates_replaces_broken_or_foreign_ones(tmp_path: Path) -> None:
    """A damaged file, a key of another certificate or a missing host name lead to new ones."""
    ca = ensure_certificates(tmp_path, ())
    first = ca.read_bytes()
    (tmp_path / KEY_FILE).write_bytes(b"not a key")
    ensure_certificates(tmp_path, ())
    second = ca.read_bytes()
    assert second != first
    ensure_certificates(tmp_path, ("simulator.internal",))
    assert ca.read_bytes() != second


def handshake(ca: Path, host: str) -> str | None:
    """Shakes hands in memory with full checks and returns the protocol agreed on."""
    client_context = ssl.create_default_context(cafile=str(ca))
    client_context.verify_flags |= ssl.VERIFY_X509_STRICT
    client_context.set_alpn_protocols(["h2"])
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname=host)
    server = server_context(ca.parent, alpn=("h2",)).wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return client.selected_alpn_protocol()


def test_certificate_passes_strict_checks_for_each_name(tmp_path: Path) -> None:
    """The leaf holds for localhost, both loopback addresses and the host it was made for, under strict X.509 rules."""
    ca = ensure_certificates(tmp_path, ("simulator",))
    assert [handshake(ca, host) for host in ("localhost", "127.0.0.1", "::1", "simulator")] == ["h2"] * 4
