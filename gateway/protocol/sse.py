"""Writes and reads event streams, the `text/event-stream` of the HTML standard, section 9.2 "Server-sent events".

The functions return the bytes of an event, a comment or a field. `SseDecoder` takes a stream in pieces cut anywhere and
returns its events.
"""

import re

import msgspec

__all__ = ["SseDecoder", "SseEvent", "SseEventTooLarge", "encode_comment", "encode_event", "encode_retry"]

MAX_EVENT_BYTES = 16 * 1024 * 1024  # an ending carries the answer: 1,000,000 code points, up to 12 bytes each in JSON

_BOM = b"\xef\xbb\xbf"
_CARRIAGE_RETURN, _LINE_FEED = b"\r\n"
_LINE_END = re.compile(rb"\r\n?|\n")
# An event as `encode_event` writes it in one `data` line, to be read at one stroke.
_PLAIN_EVENT = re.compile(rb"(?:id: ([^\r\n\0]*+)\n)?(?:event: ([^\r\n]++)\n)?data: ([^\r\n]*+)\n\n")


def encode_event(data: bytes, *, event: str | None = None, id: str | None = None) -> bytes:
    """Returns an event of `data`, which is UTF-8, mostly JSON; a line end in it, of any kind, reaches readers as `\\n`.

    An empty `id` makes readers forget the last one. Raises ValueError for a line end or NUL in `id` or `event`, and for
    an empty `event`, which readers would take for `message`.
    """
    head = b""
    if id is not None:
        _check(id)
        head = b"id: %b\n" % id.encode()
    if event is not None:
        if not event:
            raise ValueError("an event name cannot be empty")
        _check(event)
        head += b"event: %b\n" % event.encode()
    if _LINE_FEED in data or _CARRIAGE_RETURN in data:
        data = b"\ndata: ".join(_LINE_END.split(data))
    return b"%bdata: %b\n\n" % (head, data)


def encode_comment(text: str) -> bytes:
    """Returns a comment, which readers ignore and which keeps a quiet connection alive.

    It ends like an event, so it belongs between events. Raises ValueError for a line end or NUL in `text`.
    """
    _check(text)
    return b": %b\n\n" % text.encode()


def encode_retry(retry_ms: int) -> bytes:
    """Returns the line that sets how long readers wait before they connect again; an event or comment follows."""
    if retry_ms < 0:
        raise ValueError("retry_ms cannot be negative")
    return b"retry: %d\n" % retry_ms


def _check(text: str) -> None:
    # Printable text has neither line ends nor NUL, and most text is printable.
    if not text.isprintable() and ("\n" in text or "\r" in text or "\0" in text):
        raise ValueError("a line end or NUL cannot stand in an id, an event name or a comment")


class SseEvent(msgspec.Struct, frozen=True, gc=False):
    """An event dispatched to the reader."""

    event: str = "message"
    data: str = ""
    id: str | None = None  # the stream's last id so far, set by this event or an earlier one; None before the first


class SseEventTooLarge(ValueError):
    """A line, or an event's data, is longer than `max_event_bytes`. The text does not carry any of it."""


class SseDecoder:
    """Turns the bytes of one event stream into events. A reader that connects again begins a new one.

    Feed every piece to `feed`; there is nothing to call at the end, where the standard drops an event without its blank
    line. Bytes that are not UTF-8 become U+FFFD, as the standard says.

    `max_event_bytes` bounds the data of one event together with the line being read, and so what is held between calls.
    Beyond it is SseEventTooLarge. A call that completes events returns them even when it finds that after them; the
    error is then in `error` at once, and the next call raises it. A call that completes no event raises it itself. From
    then on every call raises the same.
    """

    __slots__ = (
        "_after_return",
        "_data",
        "_error",
        "_event",
        "_head",
        "_id",
        "_line",
        "_max_event_bytes",
        "last_event_id",
        "retry_ms",
    )

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        if max_event_bytes < 1:
            raise ValueError("max_event_bytes must be at least 1")
        self.last_event_id: str | None = None
        """What to send as `Last-Event-ID`: the last id that a blank line has confirmed, event or not."""
        self.retry_ms: int | None = None
        """How long to wait before connecting again, if the stream has said so."""
        self._max_event_bytes = max_event_bytes
        self._error: SseEventTooLarge | None = None
        self._head: bytes | None = b""  # the first bytes, while they may yet be a byte order mark
        self._line = bytearray()  # of the line begun
        self._after_return = False  # the last piece ended in CR, whose LF may follow
        self._data = bytearray()
        self._event = ""
        self._id: str | None = None

    def __repr__(self) -> str:
        return (
            f"<SseDecoder last_event_id={self.last_event_id!r}, {len(self._data)} bytes of data and {len(self._line)} "
            f"of a line held, error={self._error!r}>"
        )

    @property
    def error(self) -> SseEventTooLarge | None:
        """The error that every further call raises, if one was found."""
        return self._error

    @property
    def at_rest(self) -> bool:
        """Whether nothing of an event or a line is held, so that a stream that ends here ends between two of them."""
        return not (self._line or self._data or self._event or self._head)

    def feed(self, data: bytes) -> list[SseEvent]:
        """Takes the next piece of the stream and returns the events it completes, in order."""
        self._raise_error()
        events = self._read(data)
        if not events:
            self._raise_error()
        return events

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error.with_traceback(None)  # or each raise would add to the last one's traceback

    def _read(self, data: bytes) -> list[SseEvent]:
        if self._head is not None:
            data = self._head + data
            if len(data) < len(_BOM) and _BOM.startswith(data):
                self._head = data
                return []
            self._head = None
            data = data.removeprefix(_BOM)
        events: list[SseEvent] = []
        position, end = 0, len(data)
        while position < end:
            if self._after_return:
                self._after_return = False
                if data[position] == _LINE_FEED:
                    position += 1
                    continue
            if not (self._line or self._data or self._event):
                plain = _PLAIN_EVENT.match(data, position)
                if plain is not None and plain.end() - position <= self._max_event_bytes:
                    events.append(self._dispatch_plain(plain))
                    position = plain.end()
                    continue
            line_end = _LINE_END.search(data, position)
            stop = end if line_end is None else line_end.start()
            if len(self._data) + len(self._line) + stop - position > self._max_event_bytes:
                self._fail()
                break
            if line_end is None:
                self._line += data[position:]
                break
            line = data[position:stop]
            if self._line:
                line = bytes(self._line) + line
                self._line.clear()
            position = line_end.end()
            self._after_return = position == end and data[stop] == _CARRIAGE_RETURN
            if line:
                self._take_field(line)
            else:
                self._dispatch(events)
        return events

    def _dispatch_plain(self, plain: re.Match[bytes]) -> SseEvent:
        id, event, data = plain.groups()
        if id is not None:
            self._id = _text(id)
        self.last_event_id = self._id
        return SseEvent("message" if event is None else _text(event), _text(data), self._id)

    def _dispatch(self, events: list[SseEvent]) -> None:
        self.last_event_id = self._id
        if self._data:
            events.append(SseEvent(self._event or "message", _text(self._data[:-1]), self._id))
            self._data.clear()
        self._event = ""

    def _take_field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data += value + b"\n"
        elif name == b"event":
            self._event = _text(value)
        elif name == b"id":
            if b"\0" not in value:
                self._id = _text(value)
        elif name == b"retry" and value.isdigit() and len(value) < 16:  # past that int() gets slow, then refuses
            self.retry_ms = int(value)
        # A comment has an empty name; it and unknown names are passed over.

    def _fail(self) -> None:
        self._error = SseEventTooLarge(f"an event or line is longer than {self._max_event_bytes} bytes")
        self._line.clear()
        self._data.clear()
        self._event = ""


def _text(value: bytes | bytearray) -> str:
    return value.decode("utf-8", "replace")
