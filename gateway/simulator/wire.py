"""Wire: bytes as ASP.NET Core's System.Text.Json writes them, items of a streamed answer, and DATA frames.

With its default encoder System.Text.Json escapes everything outside ASCII, ``"&'+<>`` and the backtick as
``\\uXXXX`` (upper-case hex, surrogate pairs above the BMP). ``raw`` writes plain UTF-8 instead; readers must take both.
"""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Iterator
from typing import Any

_SHORT = {"\b": r"\b", "\t": r"\t", "\n": r"\n", "\f": r"\f", "\r": r"\r", "\\": r"\\"}
_ESCAPED = re.compile(r"[^ !#-%(-*,-;=?-\[\]-_a-~]")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_DATA_HEADER = struct.Struct(">HBBBL")


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    if character in _SHORT:
        return _SHORT[character]
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02X}{units[at + 1]:02X}" for at in range(0, len(units), 2))


def quote(text: str | None, *, raw: bool = False) -> bytes:
    """Encodes one JSON string, or null for None."""
    if text is None:
        return b"null"
    if raw:
        return json.dumps(text, ensure_ascii=False).encode()
    return b'"' + _ESCAPED.sub(_escape, text).encode("ascii") + b'"'


def dumps(value: Any, *, raw: bool = False) -> bytes:
    """Encodes a JSON value without white space; raises ValueError for NaN and infinities, which JSON cannot say."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    if raw:
        return text.encode()
    return _STRING.sub(lambda match: quote(json.loads(match[0])).decode(), text).encode("ascii")


def data_header(length: int, stream_id: int, *, end_stream: bool = False) -> bytes:
    """Returns the nine bytes before a DATA frame's payload (RFC 9113, sections 4.1 and 6.1)."""
    return _DATA_HEADER.pack(length >> 8, length & 0xFF, 0, 1 if end_stream else 0, stream_id)


DELTA_HEAD = b'{"choice":{"finish_reason":null,"index":0,"message":{"role":"assistant","content":'


def delta_tail(message_id: str, run_id: str) -> bytes:
    """Returns what follows the content in an item that is a plain delta; the same for all of a run."""
    return (
        b',"toolCallId":null,"name":null},"moderation_results":null},"usage":null,"messageId":"%b","runId":"%b",'
        b'"citations":null}' % (message_id.encode(), run_id.encode())
    )


def item(
    message_id: str,
    run_id: str,
    *,
    content: str | None = None,
    role: str = "assistant",
    index: int = 0,
    tool_call_id: str | None = None,
    name: str | None = None,
    finish_reason: str | None = None,
    moderation: dict[str, Any] | None = None,
    usage: dict[str, int] | None = None,
    citations: list[Any] | None = None,
    raw: bool = False,
) -> bytes:
    """Encodes any item of a streamed answer."""
    choice = {
        "finish_reason": finish_reason,
        "index": index,
        "message": {"role": role, "content": content, "toolCallId": tool_call_id, "name": name},
        "moderation_results": moderation,
    }
    return dumps(
        {"choice": choice, "usage": usage, "messageId": message_id, "runId": run_id, "citations": citations}, raw=raw
    )


def pieces(data: bytes, most_bytes: int, dice: random.Random) -> Iterator[bytes]:
    """Cuts bytes at random places into pieces of 1 to `most_bytes`; they join to the bytes again."""
    start = 0
    while start < len(data):
        end = start + dice.randint(1, most_bytes)
        yield data[start:end]
        start = end
