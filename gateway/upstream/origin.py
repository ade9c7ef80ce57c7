"""Where the upstream is, how to trust it, and how to treat its connections."""

import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

_DEFAULT_PORTS = {"https": 443, "h2c": 80}


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port of the upstream: `https` by ALPN, `h2c` by prior knowledge (RFC 9113, 3.2 and 3.3)."""

    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, url: str) -> "Origin":
        """Read the origin off a base URL; its path is the caller's business. Raises ValueError."""
        parts = urlsplit(url)
        if parts.scheme not in _DEFAULT_PORTS:
            raise ValueError(f"upstream URL must begin with https:// or h2c://, not {parts.scheme or 'nothing'}://")
        if not parts.hostname:
            raise ValueError("upstream URL names no host")
        if parts.username is not None or parts.password is not None:
            raise ValueError("upstream URL must not carry credentials")
        host = parts.hostname
        if not host.isascii():
            host = host.encode("idna").decode("ascii")
        port = parts.port  # raises ValueError itself above 65535
        if port is None:
            port = _DEFAULT_PORTS[parts.scheme]
        return cls(parts.scheme, host, port)

    @property
    def is_tls(self) -> bool:
        return self.scheme == "https"

    @property
    def authority(self) -> bytes:
        """Value of `:authority`: the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.port != _DEFAULT_PORTS[self.scheme]:
            host = f"{host}:{self.port}"
        return host.encode("ascii")

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority.decode('ascii')}"


def tls_context(ca_file: str | Path | None = None) -> ssl.SSLContext:
    """TLS 1.2 or later, the system's authorities and, on top of them, those in `ca_file`.

    Reads files; raises OSError or ssl.SSLError when `ca_file` is unreadable or holds no certificate.
    """
    context = ssl.create_default_context()
    if ca_file is not None:
        context.load_verify_locations(cafile=str(ca_file))
    return context


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """Limits and clocks of the upstream pool. Windows and frame size were measured, see the notes."""

    connect_timeout_s: float = 5.0  # DNS, TCP, TLS and the peer's first SETTINGS together
    max_connections: int = 64  # taking new streams; those that only drain after a GOAWAY are not counted
    max_streams: int = 100  # a connection, or less when the peer says less
    max_queued: int = 1000
    max_attempts: int = 3  # a request, counting only those that the peer certainly did not act on
    stream_window_bytes: int = 65_535  # credit returns on consumption, so this bounds what a slow reader holds
    connection_window_bytes: int = 16 * 1024 * 1024  # credit returns on receipt: a slow reader stalls nobody else
    ping_interval_s: float = 20.0  # of silence
    ping_timeout_s: float = 10.0
    idle_timeout_s: float = 300.0
    close_timeout_s: float = 2.0  # for the goodbye: TLS close_notify, then the socket is cut
    backoff_min_s: float = 0.1
    backoff_max_s: float = 10.0
    secret_headers: frozenset[bytes] = frozenset({b"authorization", b"x-hl-api-key"})  # kept out of HPACK's table

    def __post_init__(self) -> None:
        for name in ("connect_timeout_s", "ping_interval_s", "ping_timeout_s", "idle_timeout_s", "close_timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive")
        for name in ("max_connections", "max_streams", "max_queued", "max_attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if not 0 < self.backoff_min_s <= self.backoff_max_s:
            raise ValueError("backoff_min_s must be positive and at most backoff_max_s")
        if not 1024 <= self.stream_window_bytes < 2**31:
            raise ValueError("stream_window_bytes must be between 1024 and 2^31 - 1")
        if not 65_535 <= self.connection_window_bytes < 2**31:
            raise ValueError("connection_window_bytes must be between 65535 and 2^31 - 1 (RFC 9113, 6.9.2)")
