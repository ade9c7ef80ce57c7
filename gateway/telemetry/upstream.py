"""What happens to upstream connections and streams."""

from __future__ import annotations

from collections.abc import Callable

from gateway.telemetry.families import OTHER, WORDS_MAX, Axis, Families, Words

HTTP2_ERRORS = (  # in the order of their codes: RFC 9113, section 7
    *("no_error", "protocol_error", "internal_error", "flow_control_error", "settings_timeout", "stream_closed"),
    *("frame_size_error", "refused_stream", "cancel", "compression_error", "connect_error", "enhance_your_calm"),
    *("inadequate_security", "http_1_1_required"),
)


class UpstreamMetrics:
    """Has the shape of the upstream's observer."""

    def __init__(self, make: Families) -> None:
        words = Axis(("reason",), WORDS_MAX + 1)
        self._connections = make.gauge("gateway_upstream_connections", "Open upstream connections", unit="connections")
        self._streams = make.gauge("gateway_upstream_streams", "Open upstream streams", unit="streams")
        self._queued = make.gauge(
            "gateway_upstream_queued", "Requests that wait for a stream of an upstream connection", unit="requests"
        )
        self._opened = make.counter(
            "gateway_upstream_connections_opened_total", "Upstream connections opened", unit="connections"
        )
        self._closed = make.counter(
            "gateway_upstream_connections_closed_total",
            "Upstream connections closed, by reason",
            words,
            unit="connections",
        )
        self._failed = make.counter(
            "gateway_upstream_connect_failures_total",
            "Upstream connections that could not be opened, by error",
            words,
            unit="connections",
        )
        self._streams_opened = make.counter(
            "gateway_upstream_streams_opened_total", "Upstream streams opened: requests sent", unit="streams"
        )
        self._resets = make.counter(
            "gateway_upstream_resets_total",
            "Upstream streams reset, by HTTP/2 error code and by who did it (gateway, peer)",
            Axis(("code",), len(HTTP2_ERRORS) + 1),
            Axis(("by",), 2),
            unit="streams",
        )
        self._goaways = make.counter(
            "gateway_upstream_goaways_total",
            "GOAWAY frames received",
            Axis(("code",), len(HTTP2_ERRORS) + 1),
            unit="frames",
        )
        self._oddities = make.counter(
            "gateway_upstream_oddities_total",
            "Upstream answers that were odd but could be served",
            Axis(("kind",), WORDS_MAX + 1),
            unit="answers",
        )
        self._reasons, self._errors, self._kinds = Words(), Words(), Words()

    def read_from(self, *, queued: Callable[[], float]) -> None:
        """Say where the number is found that is looked up at a scrape."""
        self._queued.read_from(queued)

    def connection_opened(self) -> None:
        self._connections.add(1)
        self._opened.add(1)

    def connection_closed(self, reason: str) -> None:
        self._connections.add(-1)
        self._closed.add(1, self._reasons.fold(reason))

    def connect_failed(self, error: str) -> None:
        self._failed.add(1, self._errors.fold(error))

    def stream_opened(self) -> None:
        self._streams.add(1)
        self._streams_opened.add(1)

    def stream_closed(self) -> None:
        self._streams.add(-1)

    def stream_reset(self, code: int, *, by_peer: bool) -> None:
        self._resets.add(1, _http2_error(code), "peer" if by_peer else "gateway")

    def goaway_received(self, code: int) -> None:
        self._goaways.add(1, _http2_error(code))

    def oddity(self, kind: str) -> None:
        """``kind`` is a word of our own code, never the vendor's."""
        self._oddities.add(1, self._kinds.fold(kind))


def _http2_error(code: int) -> str:
    return HTTP2_ERRORS[code] if 0 <= code < len(HTTP2_ERRORS) else OTHER
