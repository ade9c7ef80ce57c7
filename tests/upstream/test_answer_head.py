"""The head of an answer: what h2 takes is taken, what it refuses is refused."""

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import InformationalResponseReceived, ResponseReceived, TrailersReceived
from h2.exceptions import ProtocolError
from hpack import Encoder
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.upstream import frames
from gateway.upstream.answer_head import AnswerHead, MalformedAnswer, check_trailers, read_head
from gateway.upstream.header_blocks import HeaderBlock

Lines = list[tuple[bytes, bytes]]

NAMES = st.one_of(
    st.sampled_from(
        [b":status", b":path", b":new", b"content-length", b"connection", b"upgrade", b"te", b"retry-after", b"", b":"]
    ),
    st.binary(max_size=3),
    st.from_regex(rb"[a-z-]{1,8}", fullmatch=True),
)
VALUES = st.one_of(
    st.sampled_from([b"", b"5", b"05", b"6", b"-1", b"trailers", b"Trailers", b" x", b"x\t", b"a b", b"a\r", b"\xff"]),
    st.binary(max_size=4),
)
LINES = st.lists(st.tuples(NAMES, VALUES), max_size=4)
STATUSES = st.sampled_from([b"100", b"103", b"200", b"204", b"304", b"404", b"599"])


def h2_with_a_request(method: str) -> H2Connection:
    h2 = H2Connection(H2Configuration(header_encoding=None))
    h2.initiate_connection()
    h2.send_headers(
        1, [(":method", method), (":path", "/"), (":scheme", "https"), (":authority", "x")], end_stream=True
    )
    return h2


def receive(h2: H2Connection, lines: Lines, *, ends: bool) -> object:
    """What h2 makes of a header block; None when it refuses it."""
    block = Encoder().encode([(name, value, True) for name, value in lines])
    frame = frames.headers(1, block, end_stream=ends, max_payload_bytes=16_384)
    try:
        return h2.receive_data(frame)[0]
    except ProtocolError:
        return None


@given(status=STATUSES, lines=LINES, ends=st.booleans(), method=st.sampled_from(["GET", "HEAD"]))
@example(status=b"200", lines=[(b"content-length", b"5"), (b"content-length", b"05")], ends=False, method="GET")
@example(status=b"200", lines=[(b"content-length", b"5"), (b"content-length", b"6")], ends=False, method="GET")
@example(status=b"200", lines=[(b":status", b"200")], ends=False, method="GET")
def test_heads_are_judged_as_by_h2(status: bytes, lines: Lines, ends: bool, method: str) -> None:
    """Names, values, pseudo-headers, headers of HTTP/1 connections, content-length, 1xx."""
    whole = [(b":status", status), *lines]
    event = receive(h2_with_a_request(method), whole, ends=ends)
    block = HeaderBlock(1, whole, ends)
    if event is None:
        if method == "GET":  # h2 looks at no content-length of a HEAD's answer
            with pytest.raises(MalformedAnswer):
                read_head(block, method)
        return
    try:
        head = read_head(block, method)
    except MalformedAnswer:
        assert method == "HEAD"
        assert b"content-length" in {name for name, _ in lines}
        return
    if head is None:
        assert isinstance(event, InformationalResponseReceived)
    else:
        assert isinstance(event, ResponseReceived)
        assert (head.status, head.lines) == (int(status), lines)


@given(lines=LINES, ends=st.booleans())
def test_trailers_are_judged_as_by_h2(lines: Lines, ends: bool) -> None:
    """They end the stream, and hold no pseudo-header."""
    h2 = h2_with_a_request("GET")
    assert receive(h2, [(b":status", b"200")], ends=False) is not None
    event = receive(h2, lines, ends=ends)
    if event is None:
        with pytest.raises(MalformedAnswer):
            check_trailers(HeaderBlock(1, lines, ends))
    else:
        assert isinstance(event, TrailersReceived)
        check_trailers(HeaderBlock(1, lines, ends))


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [(b"x", b"y")],
        [(b"x", b"y"), (b":status", b"200")],
        [(b":status", b"2000")],
        [(b":status", b"099")],
        [(b":status", b"600")],
        [(b":status", b"2\xb2" + b"0")],
        [(b":status", b"200"), (b"content-length", b"9" * 5000)],
    ],
)
def test_head_without_a_sound_status_or_length_is_malformed(lines: Lines) -> None:
    """Where h2 is silent: a status is three digits from 100 to 599, and a length one that a machine can count."""
    with pytest.raises(MalformedAnswer):
        read_head(HeaderBlock(1, lines, False), "GET")


@pytest.mark.parametrize(
    ("method", "status", "content_bytes"),
    [("GET", 200, 7), ("POST", 413, 7), ("HEAD", 200, 0), ("GET", 304, 0), ("GET", 204, 0)],
)
def test_content_length_counts_where_a_body_follows(method: str, status: int, content_bytes: int) -> None:
    """An answer to HEAD, a 204 and a 304 have no body, whatever length they tell (RFC 9110, 6.4.1)."""
    lines = [(b":status", b"%d" % status), (b"content-length", b"7")]
    assert read_head(HeaderBlock(1, lines, False), method) == AnswerHead(status, lines[1:], content_bytes)


def test_errors_quote_nothing_of_the_answer() -> None:
    """A message may be logged, a header's value may not."""
    for line in ((b"x", b"secret\r\n"), (b"secret\r", b"x"), (b"content-length", b"secret")):
        with pytest.raises(MalformedAnswer) as caught:
            read_head(HeaderBlock(1, [(b":status", b"200"), line], False), "GET")
        assert "secret" not in str(caught.value)
