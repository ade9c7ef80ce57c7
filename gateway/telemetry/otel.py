"""Tracing by OpenTelemetry: spans that are recorded and sent to a collector. Imported only where tracing is on.

A span is made by hand where one is wanted: one a request, an admission, a turn and a call to the vendor, none a piece
of an answer. GenAI names are those of open-telemetry/semantic-conventions-genai; the package's own constants for them
are deprecated. What decides is the first span of a trace here: those inside one that is not sampled cost nothing.

Spans are sent by a thread of the SDK's, in batches, from a queue that is bounded: what a collector that is slow or
away cannot take is dropped, and no turn waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    TraceState,
    set_span_in_context,
)
from opentelemetry.trace import Span as SdkSpan

from gateway import __version__
from gateway.sections import Secret, SettingsError
from gateway.telemetry.logging import conceal, throttled
from gateway.telemetry.spans import Fact, Kind, Lines, Place, Span, parse, parse_state

logger = logging.getLogger(__name__)

SERVICE: Final = "hyperleap-gateway"
HEADERS: Final = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")
CONCEALED_MIN_CHARS: Final = 8  # a shorter value would mask what it has nothing to do with
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER_METHOD: Final = "_OTHER"  # of HTTP's conventions; what a stranger made up is told nobody
NO_ROUTE: Final = "other"  # of metrics and logs
KINDS: Final[Mapping[Kind, SpanKind]] = {
    "admission": SpanKind.INTERNAL,
    "turn": SpanKind.INTERNAL,
    "chat": SpanKind.CLIENT,
    "call": SpanKind.CLIENT,
}
# What a fact is called in a span. One that is not here is in none: this is the whole of what spans may tell.
FACTS: Final[Mapping[str, str]] = {
    "action": "gateway.admission.action",
    "code": "gateway.error.code",
    "command": "gateway.command",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "conversation_id": "gen_ai.conversation.id",
    "epoch": "gateway.turn.epoch",
    "finish_reason": "gen_ai.response.finish_reasons",
    "key": "gateway.vendor_key",
    "limit": "gateway.admission.limit",
    "message_id": "gen_ai.response.id",
    "method": "http.request.method",
    "ordinal": "gateway.turn.ordinal",
    "persona": "gen_ai.request.model",
    "port": "server.port",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "queued_s": "gateway.turn.queued_s",
    "reason": "gateway.turn.reason",
    "request_id": "gateway.request.id",
    "resent": "http.request.resend_count",
    "route": "http.route",
    "server": "server.address",
    "state": "gateway.turn.state",
    "status": "http.response.status_code",
    "template": "url.template",
    "tenant": "gateway.tenant",
    "turn_id": "gateway.turn.id",
    "usage_source": "gateway.usage.source",
    "user": "enduser.pseudo.id",
}
GEN_AI: Final = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "hyperleap"}


class OtelTracing:
    """Tracing over one SDK provider of its own; no other program's spans in this process are touched."""

    def __init__(self, provider: TracerProvider, flush_s: float) -> None:
        self._provider = provider
        self._flush_s = flush_s
        self._tracer = provider.get_tracer("gateway", __version__)

    @classmethod
    def open(cls, *, instance: str, flush_s: float, environ: Mapping[str, str]) -> OtelTracing:
        """Make what exports to the collector that OpenTelemetry's variables name; connects to nothing yet.

        Raises SettingsError for variables that cannot be used.
        """
        for name in HEADERS:  # the collector's credentials, which the SDK quotes where it cannot read them
            for part in environ.get(name, "").split(","):
                value = part.partition("=")[2].strip()
                for secret in (value, value.rpartition(" ")[2], value.rpartition("%20")[2]):
                    if len(secret) >= CONCEALED_MIN_CHARS:
                        conceal(Secret(secret))
        _hear_troubles()
        own = Resource({"service.name": SERVICE, "service.version": __version__, "service.instance.id": instance})
        try:
            provider = TracerProvider(resource=own.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
            provider.add_span_processor(BatchSpanProcessor(_Watched(OTLPSpanExporter())))
        except (ValueError, OSError, RuntimeError, ImportError) as error:
            raise SettingsError("OTEL_*", f"cannot be used: {error}") from None
        return cls(provider, flush_s)

    def request(self, traceparent: str, tracestate: str, fresh: str, /, **facts: Fact) -> Span:
        method, route = str(facts.get("method")), facts.get("route")
        known = method if method in METHODS else OTHER_METHOD
        told = facts | {"method": known, "route": None if route == NO_ROUTE else route}
        name = "HTTP" if known == OTHER_METHOD else known
        if route != NO_ROUTE:
            name = f"{name} {route}"
        return self._begin(name, _remote(traceparent, tracestate), SpanKind.SERVER, told)

    def command(self, socket: Span, traceparent: str, /, **facts: Fact) -> Span:
        named = _remote(traceparent, "")
        links = [] if named is not None else [Link(context) for context in (_context(socket),) if context is not None]
        return self._begin(f"command {facts.get('command')}", named, SpanKind.SERVER, facts, links)

    def rescue(self, kept: str, /, **facts: Fact) -> Span:
        begun_by = _remote(kept, "")
        links = [Link(begun_by)] if begun_by is not None else []
        return self._begin("turn recovery", begun_by, SpanKind.INTERNAL, facts, links)

    def _begin(
        self,
        name: str,
        parent: SpanContext | None,
        kind: SpanKind,
        facts: Mapping[str, Fact],
        links: Sequence[Link] = (),
    ) -> Span:
        inside = set_span_in_context(NonRecordingSpan(parent), Context()) if parent is not None else Context()
        made = self._tracer.start_span(name, inside, kind, attributes(facts), links)
        context = made.get_span_context()
        if not made.is_recording():
            return Unsampled(_traceparent(context), context.trace_state.to_header())
        return Recorded(self._tracer, made)

    async def aclose(self) -> None:
        """Send what waits, for no longer than ``flush_s``: then the thread that sends is left to itself."""
        loop, over = asyncio.get_running_loop(), asyncio.Event()

        def shut() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop did not wait that long
                loop.call_soon_threadsafe(over.set)

        threading.Thread(target=shut, name="traces-flush", daemon=True).start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._flush_s):
                await over.wait()


class Unsampled(Place):
    """A place in a trace that was decided not to be recorded; those who are asked are told so too."""

    __slots__ = ("_state",)

    def __init__(self, traceparent: str, state: str) -> None:
        super().__init__(traceparent)
        self._state = state

    @property
    def outgoing(self) -> Lines:
        return _lines(self.traceparent, self._state)


class Recorded:
    """A span that is recorded."""

    __slots__ = ("_span", "_tracer", "traceparent")

    def __init__(self, tracer: Tracer, span: SdkSpan) -> None:
        self._tracer = tracer
        self._span = span
        self.traceparent = _traceparent(span.get_span_context())

    @property
    def trace_id(self) -> str:
        return self.traceparent[3:35]

    @property
    def sampled(self) -> bool:
        return True

    @property
    def outgoing(self) -> Lines:
        return _lines(self.traceparent, self._span.get_span_context().trace_state.to_header())

    @property
    def context(self) -> SpanContext:
        return self._span.get_span_context()

    def begin(self, kind: Kind, /, **facts: Fact) -> Span:
        links: Sequence[Link] = ()
        told = attributes(facts)
        match kind:
            case "turn":  # it outlives what began it
                name, links = "turn", [Link(self.context)]
            case "chat":
                name = f"chat {facts.get('persona')}"
                told |= GEN_AI
            case "call":
                name = f"{facts.get('method')} {facts.get('template')}"
            case _:
                name = kind
        inside = set_span_in_context(self._span, Context())
        return Recorded(self._tracer, self._tracer.start_span(name, inside, KINDS[kind], told, links))

    def tell(self, **facts: Fact) -> None:
        self._span.set_attributes(attributes(facts))

    def happened(self, name: str, /) -> None:
        self._span.add_event(name)

    def end(self, error: str | None = None, /, **facts: Fact) -> None:
        if not self._span.is_recording():
            return
        told = attributes(facts)
        if error is not None:
            told["error.type"] = error
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.set_attributes(told)
        self._span.end()


def attributes(facts: Mapping[str, Fact]) -> dict[str, Any]:
    """Return facts as attributes."""
    told: dict[str, Any] = {FACTS[name]: value for name, value in facts.items() if value is not None and name in FACTS}
    if (reason := facts.get("finish_reason")) is not None:
        told[FACTS["finish_reason"]] = [str(reason)]
    return told


def _remote(traceparent: str, tracestate: str) -> SpanContext | None:
    shown = parse(traceparent) if traceparent else None
    if shown is None:
        return None
    trace_id, span_id, flags = (int(part, 16) for part in shown)
    state = TraceState(parse_state(tracestate))  # the SDK's own reader logs what it cannot read, word by word
    return SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags & 0x03), trace_state=state)


def _context(span: Span) -> SpanContext | None:
    return span.context if isinstance(span, Recorded) else _remote(span.traceparent, "")


def _traceparent(context: SpanContext) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def _lines(traceparent: str, state: str) -> Lines:
    return (("traceparent", traceparent), ("tracestate", state)) if state else (("traceparent", traceparent),)


class _Watched(SpanExporter):
    """Says, now and then, that spans could not be sent."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result is not SpanExportResult.SUCCESS:
            throttled(logger, "spans.unsent", every_s=60.0, spans=len(spans))
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


class _Troubles(logging.Handler):
    """Takes the SDK's own words, of which a collector that is away brings several a second."""

    def emit(self, record: logging.LogRecord) -> None:
        where = record.name.removeprefix("opentelemetry.")
        # Of what is exported, never of what is recorded: that may be a caller's words.
        own = where.startswith(("exporter.", "sdk."))
        words = re.sub(r"\s+", " ", record.getMessage())[:200] if own else None
        throttled(logger, f"{where}:{record.msg}", "tracing.troubled", every_s=60.0, where=where, words=words)


def _hear_troubles() -> None:
    sdk = logging.getLogger("opentelemetry")
    if not any(isinstance(handler, _Troubles) for handler in sdk.handlers):
        sdk.addHandler(_Troubles())
    sdk.propagate = False
    sdk.setLevel(logging.WARNING)
