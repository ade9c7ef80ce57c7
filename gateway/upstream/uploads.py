"""Request bodies on their way out, in turns, as far as the peer's windows and our own socket let them."""

from collections.abc import Callable

from gateway.upstream import frames
from gateway.upstream.control import Control
from gateway.upstream.stream import Stream

_BURST_BYTES = 128 * 1024  # a flush, so that one body does not hold up the loop


class Uploads:
    """The bodies of one connection that are not wholly sent. Sends nothing while `paused`."""

    def __init__(self, control: Control, emit: Callable[[bytes], None]) -> None:
        self._control = control
        self._emit = emit
        self._streams: dict[int, Stream] = {}
        self._stuck = False  # every body waits for a window; nothing to try until one changes
        self._budget_bytes = _BURST_BYTES  # until the next pump
        self.paused = False

    def add(self, stream: Stream) -> None:
        """Send the stream's body behind its headers where nothing is in its way, else from `pump` on."""
        self._streams[stream.stream_id] = stream
        size = len(stream.unsent)
        if len(self._streams) == 1 and size <= self._room(stream) and size <= self._budget_bytes and not self.paused:
            self._budget_bytes -= self._send_frame(stream)
        else:
            self._stuck = False

    def discard(self, stream: Stream) -> bool:
        """Give up the rest of a body; False when there was none."""
        return self._streams.pop(stream.stream_id, None) is not None

    def window_changed(self) -> bool:
        """Note a WINDOW_UPDATE or new SETTINGS; says whether anything is left to send."""
        self._stuck = False
        return bool(self._streams)

    def pump(self) -> bool:
        """Emit what may be sent, one frame a stream and round. True: call again after a write."""
        self._budget_bytes = _BURST_BYTES
        while self._streams and not self._stuck and not self.paused:
            if self._budget_bytes <= 0:
                return True
            sent = 0
            for stream in list(self._streams.values()):
                sent += self._send_frame(stream)
            self._stuck = sent == 0
            self._budget_bytes -= sent
        return False

    def _room(self, stream: Stream) -> int:
        # Windows may be negative after the peer lowered INITIAL_WINDOW_SIZE (RFC 9113, 6.9.2).
        return min(stream.send_window_bytes, self._control.window_bytes, self._control.max_frame_bytes)

    def _send_frame(self, stream: Stream) -> int:
        room = self._room(stream)
        if room <= 0:
            return 0
        chunk = stream.unsent[:room]
        stream.unsent = stream.unsent[room:]
        size = len(chunk)
        stream.send_window_bytes -= size
        self._control.sent(size)
        self._emit(frames.data(stream.stream_id, chunk, end_stream=not stream.unsent))
        if not stream.unsent:
            del self._streams[stream.stream_id]
        return size
