"""What clients ask and are answered, and the streams that are open to them."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.core.errors import WIRE, Code
from gateway.telemetry.families import OTHER, Axis, Buckets, Families

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
STATUSES = frozenset({101, 200, 201, 202, 204, 304, 408, 499} | {wire.http for wire in WIRE.values()})
TRANSPORTS = frozenset({"sse", "websocket", "json"})
REQUEST_SECONDS = Buckets(
    "request seconds", (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)
)


class ClientMetrics:
    """Verbs of the doors. A request is told by its route's template, a stream by its transport."""

    def __init__(self, make: Families, routes: Iterable[str]) -> None:
        transport = Axis(("transport",), len(TRANSPORTS) + 1)
        self._routes: frozenset[str] = frozenset()
        route = self._route_axis = Axis(("route",), 1)
        method = Axis(("method",), len(METHODS) + 1)
        self._requests = make.counter(
            "gateway_requests_total",
            "HTTP requests",
            route,
            method,
            Axis(("status",), len(STATUSES) + 6),
            unit="requests",
        )
        self._request_s = make.histogram(
            "gateway_request_duration_seconds",
            "Time from a request's headers to the end of its answer, streams included",
            REQUEST_SECONDS,
            route,
            method,
        )
        self._errors = make.counter(
            "gateway_errors_total", "Errors told to clients, by code", Axis(("code",), len(Code) + 1), unit="errors"
        )
        self._streams = make.gauge("gateway_streams_open", "Streams open to clients", transport, unit="streams")
        self._streams_opened = make.counter(
            "gateway_streams_opened_total", "Streams opened to clients", transport, unit="streams"
        )
        self._resumes = make.counter(
            "gateway_resumes_total", "Streams resumed from a cursor", transport, unit="streams"
        )
        self._replayed = make.counter(
            "gateway_replayed_events_total", "Events sent again on a resume", transport, unit="events"
        )
        self._lagged = make.counter(
            "gateway_readers_lagged_total", "Readers let go for being too slow", transport, unit="readers"
        )
        self.know_routes(routes)

    def know_routes(self, templates: Iterable[str]) -> None:
        """Add route templates under which requests are counted; any other route is counted as ``other``."""
        self._routes |= frozenset(templates)
        self._route_axis.size = len(self._routes | {OTHER})

    def request_ended(self, route: str | None, method: str, status: int, seconds: float, trace_id: str = "") -> None:
        """``route`` is the router's template, or None when no route matched; ``trace_id`` shows such a request."""
        if route is None or route not in self._routes:
            route = OTHER
        method = method if method in METHODS else OTHER
        shown = str(status) if status in STATUSES else f"{status // 100}xx" if 100 <= status < 600 else OTHER
        self._requests.add(1, route, method, shown)
        self._request_s.of(route, method).observe(seconds, trace_id)

    def error_sent(self, code: str) -> None:
        self._errors.add(1, code if code in WIRE else OTHER)

    def stream_opened(self, transport: str) -> None:
        transport = transport if transport in TRANSPORTS else OTHER
        self._streams.add(1, transport)
        self._streams_opened.add(1, transport)

    def stream_closed(self, transport: str) -> None:
        self._streams.add(-1, transport if transport in TRANSPORTS else OTHER)

    def resumed(self, transport: str, replayed_events: int) -> None:
        transport = transport if transport in TRANSPORTS else OTHER
        self._resumes.add(1, transport)
        self._replayed.add(replayed_events, transport)

    def reader_lagged(self, transport: str) -> None:
        self._lagged.add(1, transport if transport in TRANSPORTS else OTHER)
