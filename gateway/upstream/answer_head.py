"""What the header block of an answer says, once it is known to be well-formed (RFC 9113, 8.1 to 8.3)."""

import re

import msgspec

from gateway.upstream.header_blocks import HeaderBlock

_NAME = re.compile(rb"[\x21-\x39\x3b-\x40\x5b-\x7e]+")  # RFC 9113, 8.2.1: visible, no capital, no colon
_VALUE = re.compile(rb"(?:[^\0\t\n\r ](?:[^\0\n\r]*[^\0\t\n\r ])?)?")
_STATUS = re.compile(rb"[1-5][0-9][0-9]")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_OF_THE_CONNECTION = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"})
_BODILESS = frozenset({204, 304})


class MalformedAnswer(Exception):
    """An answer that must be treated as a stream error of type PROTOCOL_ERROR (RFC 9113, 8.1.1)."""


class AnswerHead(msgspec.Struct, frozen=True):
    """A status, and the header lines without it."""

    status: int
    lines: list[tuple[bytes, bytes]]
    content_bytes: int | None  # what the body has to come to, where that is told


def read_head(block: HeaderBlock, method: str) -> AnswerHead | None:
    """Read the answer to a request with `method`; None for an interim one (1xx). Raises MalformedAnswer."""
    lines = block.lines
    if not lines or lines[0][0] != b":status":
        raise MalformedAnswer("the answer does not begin with a status")
    value = lines[0][1]
    if not _STATUS.fullmatch(value):
        raise MalformedAnswer("the answer has no sound status")
    status = int(value)
    fields = lines[1:]
    length = _check(fields)
    if status < 200:
        if block.ends_stream:
            raise MalformedAnswer("the answer ends before its final status")
        return None
    if method == "HEAD" or status in _BODILESS:
        length = 0  # the length that they may tell is not their own (RFC 9110, 8.6)
    return AnswerHead(status, fields, length)


def check_trailers(block: HeaderBlock) -> None:
    """Raises MalformedAnswer; what sound trailers say interests nobody."""
    if not block.ends_stream:
        raise MalformedAnswer("the answer has headers in its middle")
    _check(block.lines)


def _check(lines: list[tuple[bytes, bytes]]) -> int | None:
    """Check regular header lines; returns the content-length."""
    length: bytes | None = None
    for name, value in lines:
        if not _NAME.fullmatch(name):
            raise MalformedAnswer("the answer has a header name with an illegal character or out of its place")
        if not _VALUE.fullmatch(value):
            raise MalformedAnswer("the answer has a header value with an illegal character or outer white space")
        if name in _OF_THE_CONNECTION or (name == b"te" and value.lower() != b"trailers"):
            raise MalformedAnswer("the answer has a header of HTTP/1 connections")
        if name == b"content-length":
            if not _LENGTH.fullmatch(value) or (length is not None and int(value) != int(length)):
                raise MalformedAnswer("the answer has an unsound content-length")
            length = value
    return int(length) if length is not None else None
