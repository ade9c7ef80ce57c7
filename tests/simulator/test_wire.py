"""Bytes as System.Text.Json writes them."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.simulator.wire import data_header, dumps, pieces, quote

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.parametrize(
    ("text", "encoded"),
    [
        (None, b"null"),
        ("", b'""'),
        ("a/b ~|{}", b'"a/b ~|{}"'),
        ("\"&'+<>`\x7f", rb'"\u0022\u0026\u0027\u002B\u003C\u003E\u0060\u007F"'),
        ("\b\t\n\f\r\\\x01", rb'"\b\t\n\f\r\\\u0001"'),
        ("é你", rb'"\u00E9\u4F60"'),
        ("🎉", rb'"\uD83C\uDF89"'),
    ],
)
def test_quote_escapes_as_the_default_encoder_does(text: str | None, encoded: bytes) -> None:
    """Non-ASCII and HTML signs become upper-case escapes, surrogate pairs above the BMP."""
    assert quote(text) == encoded


@given(JSON, st.booleans())
def test_dumps_any_value_reads_back(value: object, raw: bool) -> None:
    """Both encodings are JSON of the same value; the escaping one is ASCII."""
    encoded = dumps(value, raw=raw)
    assert json.loads(encoded) == value
    assert raw or encoded.isascii()


@given(st.text(), st.booleans())
def test_quote_any_text_reads_back(text: str, raw: bool) -> None:
    """A quoted text is that text."""
    assert json.loads(quote(text, raw=raw)) == text


@given(st.binary(max_size=300), st.integers(1, 20), st.integers())
def test_pieces_join_to_the_bytes(data: bytes, most: int, seed: int) -> None:
    """Pieces are of 1 to N bytes and lose nothing."""
    cut = list(pieces(data, most, random.Random(seed)))
    assert b"".join(cut) == data
    assert all(1 <= len(piece) <= most for piece in cut)


def test_data_header_is_that_of_rfc_9113() -> None:
    """Length in three bytes, type 0, flags, stream id in four."""
    assert data_header(0x012345, 7, end_stream=True) == bytes([1, 0x23, 0x45, 0, 1, 0, 0, 0, 7])
