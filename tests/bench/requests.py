"""Requests as clients write them: HTTP/1.1 (RFC 9112) and WebSocket frames (RFC 6455)."""

from __future__ import annotations

import os
import struct
from base64 import b64encode


def upgrade_request(host: str, path: str, token: str) -> bytes:
    key = b64encode(os.urandom(16)).decode()
    return (
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
        f"Sec-WebSocket-Protocol: hyperleap.chat.v1, hgt.{token}\r\n\r\n"
    ).encode()


def follow_request(host: str, token: str) -> bytes:
    """A request with a %b for the turn."""
    return (
        f"GET /v1/turns/%b/events HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n"
        "Accept: text/event-stream\r\n\r\n"
    ).encode()


def post_request(host: str, path: str, token: str, body: bytes, *, method: str = "POST") -> bytes:
    return (
        f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\nAccept: text/event-stream\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def frame(kind: int, payload: bytes) -> bytes:
    """A client's frame; a mask of zeros is a mask (RFC 6455, section 5.3) and costs nothing."""
    size = len(payload)
    head = struct.pack(">BB", 0x80 | kind, 0x80 | size) if size < 126 else struct.pack(">BBH", 0x80 | kind, 0xFE, size)
    return head + b"\0\0\0\0" + payload
