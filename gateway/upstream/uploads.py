"""Request bodies on their way out, in turns, as far as the peer's windows and our own socket let them."""

from h2.connection import H2Connection

from gateway.upstream.stream import Stream

_BURST_BYTES = 128 * 1024  # a flush, so that one body does not hold up the loop


class Uploads:
    """The bodies of one connection that are not wholly sent. Sends nothing while `paused`."""

    def __init__(self, h2: H2Connection) -> None:
        self._h2 = h2
        self._streams: dict[int, Stream] = {}
        self._stuck = False  # every body waits for a window; nothing to try until one changes
        self.paused = False

    def add(self, stream: Stream) -> None:
        self._streams[stream.stream_id] = stream
        self._stuck = False

    def discard(self, stream: Stream) -> bool:
        """Give up the rest of a body; False when there was none."""
        return self._streams.pop(stream.stream_id, None) is not None

    def window_changed(self) -> bool:
        """Note a WINDOW_UPDATE or new SETTINGS; says whether anything is left to send."""
        self._stuck = False
        return bool(self._streams)

    def pump(self) -> bool:
        """Put what may be sent into h2, one frame a stream and round. True: call again after a write."""
        budget = _BURST_BYTES
        while self._streams and not self._stuck and not self.paused:
            if budget <= 0:
                return True
            sent = 0
            for stream in list(self._streams.values()):
                sent += self._send_frame(stream)
            self._stuck = sent == 0
            budget -= sent
        return False

    def _send_frame(self, stream: Stream) -> int:
        # Windows may be negative after the peer lowered INITIAL_WINDOW_SIZE (RFC 9113, 6.9.2).
        room = min(self._h2.local_flow_control_window(stream.stream_id), self._h2.max_outbound_frame_size)
        if room <= 0:
            return 0
        chunk = stream.unsent[:room]
        stream.unsent = stream.unsent[room:]
        is_last = not stream.unsent
        self._h2.send_data(stream.stream_id, chunk, end_stream=is_last)
        if is_last:
            del self._streams[stream.stream_id]
        return len(chunk)
