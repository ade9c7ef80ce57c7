"""A collector of traces: an OTLP receiver over HTTP that decodes what it is sent, and can misbehave."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from tests.conftest import spills

KINDS = {
    WireSpan.SPAN_KIND_INTERNAL: "internal",
    WireSpan.SPAN_KIND_SERVER: "server",
    WireSpan.SPAN_KIND_CLIENT: "client",
}
PATIENCE_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Got:
    """A span as it arrived; ids are hexadecimal."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    state: str
    links: tuple[tuple[str, str], ...]
    attributes: dict[str, Any]
    resource: dict[str, Any]
    events: tuple[str, ...]
    failed: bool
    seconds: float


@dataclass(slots=True)
class Collector:
    """What arrived. ``status`` is what it answers; ``hold`` keeps answers back while it is not set."""

    url: str = ""
    status: int = 200
    hold: asyncio.Event = field(default_factory=asyncio.Event)
    spans: list[Got] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        spills.search(body, "exported spans")
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        await self.hold.wait()
        if self.status == 200:
            self.spans += decode(body)
        return web.Response(status=self.status, content_type="application/x-protobuf")

    def named(self, name: str) -> list[Got]:
        return [span for span in self.spans if span.name == name]

    async def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for spans, which come in batches; fail with what is missing."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not condition():
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"{what} did not come; there are {[span.name for span in self.spans]}") from None

    async def one(self, name: str) -> Got:
        """Wait for the span of a name and return it; there must be one only."""
        await self.until(lambda: self.named(name), name)
        (span,) = self.named(name)
        return span


@contextlib.asynccontextmanager
async def collector() -> AsyncIterator[Collector]:
    """Run a collector on loopback."""
    made = Collector()
    made.hold.set()
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_post("/v1/traces", made.take)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield made
    finally:
        made.hold.set()
        await runner.cleanup()


def decode(body: bytes) -> list[Got]:
    """Decode an export request."""
    request = ExportTraceServiceRequest.FromString(body)
    return [
        Got(
            name=span.name,
            kind=KINDS[span.kind],
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent_id=span.parent_span_id.hex(),
            state=span.trace_state,
            links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
            attributes={pair.key: _value(pair.value) for pair in span.attributes},
            resource={pair.key: _value(pair.value) for pair in of_resource.resource.attributes},
            events=tuple(event.name for event in span.events),
            failed=span.status.code == Status.STATUS_CODE_ERROR,
            seconds=(span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
        )
        for of_resource in request.resource_spans
        for scope in of_resource.scope_spans
        for span in scope.spans
    ]


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind) if kind is not None else None
