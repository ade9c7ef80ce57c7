"""Requests as clients write them: HTTP/1.1 (RFC 9112) and WebSocket frames (RFC 6455)."""

from __future__ import annotations

import json
import os
import struct
from base64 import b64encode
from typing import Any, Final

from tests.bench.plan import Route

MODEL: Final = "default"  # the gateway's persona


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


def turn_request(route: Route, host: str, token: str, conversation: str, message: str) -> bytes:
    """A turn of a user by one of the gateway's doors over HTTP, as that door's clients ask for it.

    The first three are asked in the user's conversation. Chat completions state their whole history, so each is a
    conversation of its own; a chat and a thread are opened by their first turn.
    """
    said: dict[str, Any] = {"role": "user", "content": message}
    method = "POST"
    body: dict[str, Any]
    match route:
        case "sse":
            path, body = f"/v1/conversations/{conversation}/turns", {"message": message}
        case "hyperleap":
            method, path, body = "PATCH", f"/hyperleap/conversations/{conversation}/chat-http2", {"message": message}
        case "responses":
            path = "/v1/responses"
            body = {"model": MODEL, "stream": True, "conversation": f"conv_{conversation}", "input": message}
        case "completions":
            path, body = "/v1/chat/completions", {"model": MODEL, "stream": True, "messages": [said]}
        case "ai-sdk":
            parts = [{"type": "text", "text": message}]
            path, body = "/api/chat", {"id": "bench", "message": {"id": "m", "role": "user", "parts": parts}}
        case "ag-ui":
            path, body = "/v1/ag-ui", {"threadId": "bench", "runId": "run", "messages": [{"id": "m", **said}]}
            body |= {"state": {}, "tools": [], "context": [], "forwardedProps": {}}
        case _:
            raise ValueError(f"no turn is asked for by {route}")
    return post_request(host, path, token, json.dumps(body).encode(), method=method)


def frame(kind: int, payload: bytes) -> bytes:
    """A client's frame; a mask of zeros is a mask (RFC 6455, section 5.3) and costs nothing."""
    size = len(payload)
    head = struct.pack(">BB", 0x80 | kind, 0x80 | size) if size < 126 else struct.pack(">BBH", 0x80 | kind, 0xFE, size)
    return head + b"\0\0\0\0" + payload
