"""A request that is fit to be sent: checked, and its header block built as far as it stays the same."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from gateway.upstream.errors import InvalidRequest
from gateway.upstream.header_blocks import encode_line
from gateway.upstream.origin import Origin

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")  # RFC 9110, 5.6.2, lower case (RFC 9113, 8.2.1)
_VALUE = re.compile(rb"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?")  # RFC 9110, 5.5
_PATH = re.compile(r"/[\x21-\x7e]*")
_METHOD = re.compile(r"[A-Z]+")
HOP_BY_HOP = frozenset(
    {b"connection", b"host", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade"}
)


@dataclass(frozen=True, slots=True)
class Headers:
    """Header lines, checked and encoded once for as many requests as are sent with them."""

    block: bytes = field(repr=False)  # holds the key

    @classmethod
    def build(cls, lines: Sequence[tuple[bytes, bytes]], secret_headers: frozenset[bytes]) -> "Headers":
        """Raises InvalidRequest where a name or value would be refused or read differently by the peer."""
        parts = []
        for raw_name, value in lines:
            name = raw_name.lower()
            if not _TOKEN.fullmatch(name) or name in HOP_BY_HOP:
                raise InvalidRequest(f"header name {name[:64]!r} is not allowed in HTTP/2")
            if not _VALUE.fullmatch(value):
                raise InvalidRequest(f"value of header {name[:64]!r} holds a control character or outer white space")
            parts.append(encode_line(name, value, secret=name in secret_headers))
        return cls(b"".join(parts))

    def plus(self, other: "Headers") -> "Headers":
        return Headers(self.block + other.block)


@dataclass(frozen=True, slots=True)
class Request:
    """One request to the origin; its `block` is HPACK without a table, so any connection may carry it."""

    method: str
    block: bytes = field(repr=False)
    body: bytes = field(repr=False)

    @classmethod
    def build(cls, origin: Origin, method: str, path: str, headers: Headers, body: bytes) -> "Request":
        """Raises InvalidRequest for a method or path that would be refused or read differently by the peer."""
        if not _PATH.fullmatch(path):
            raise InvalidRequest("path does not begin with / or holds a character that must be percent-encoded")
        # No two paths are alike: a hop's table has better use for its room.
        line = encode_line(b":path", path.encode("ascii"), secret=True)
        return cls(method, _pseudo_headers(origin, method) + line + headers.block, body)


@lru_cache(maxsize=64)
def _pseudo_headers(origin: Origin, method: str) -> bytes:
    """All but the path."""
    if not _METHOD.fullmatch(method):
        raise InvalidRequest("method is not a word in capitals")
    return (
        encode_line(b":method", method.encode("ascii"))
        + encode_line(b":scheme", b"https" if origin.is_tls else b"http")
        + encode_line(b":authority", origin.authority)
    )
