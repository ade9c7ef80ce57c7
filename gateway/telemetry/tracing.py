"""Tracing: begins the spans that are inside no other of this process. Off unless it is wanted and can be had."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Mapping
from typing import Final, Protocol

from gateway.options import TracingSettings
from gateway.sections import SettingsError
from gateway.telemetry.logging import event as log_event
from gateway.telemetry.spans import Fact, Place, Span, parse

logger = logging.getLogger(__name__)

FRESH_CHARS: Final = 48  # of random hexadecimal digits, for the ids of a trace and of a span
SETTING: Final = "GATEWAY_TRACING"


class Tracing(Protocol):
    """Begins traces, or goes on with a caller's."""

    def request(self, traceparent: str, tracestate: str, fresh: str, /, **facts: Fact) -> Span:
        """Begin a request's span in the caller's trace, or in a new one. ``fresh``: random digits for its ids."""
        ...

    def command(self, socket: Span, traceparent: str, /, **facts: Fact) -> Span:
        """Begin the span of a command that came over a socket, whose own span lasts as long as the socket.

        In the trace that the socket's client named when it connected, else in one of its own, linked to the socket's.
        """
        ...

    def rescue(self, kept: str, /, **facts: Fact) -> Span:
        """Begin the span of a turn that another worker began, in the trace that its record keeps and linked to it."""
        ...

    async def aclose(self) -> None:
        """Give what is not sent yet a moment, then let it go."""
        ...


class NoTracing:
    """Tracing that is off: traces are carried on, and nothing is recorded."""

    def request(self, traceparent: str, tracestate: str, fresh: str, /, **facts: Fact) -> Span:
        shown = parse(traceparent) if traceparent else None
        trace_id, flags = (shown[0], shown[2]) if shown is not None else (fresh[:32], "00")
        return Place(f"00-{trace_id}-{fresh[32:48]}-{flags}")

    def command(self, socket: Span, traceparent: str, /, **facts: Fact) -> Span:
        return socket

    def rescue(self, kept: str, /, **facts: Fact) -> Span:
        return self.request(kept, "", secrets.token_hex(FRESH_CHARS // 2))

    async def aclose(self) -> None:
        pass


OFF: Final[Tracing] = NoTracing()


def example(tracing: Tracing, span: Span) -> str:
    """Return the id of a span's trace for a metric to show, or nothing where it would lead nowhere.

    It leads to what is recorded of it; with tracing off, to the lines of the log that tell it.
    """
    return span.trace_id if tracing is OFF or span.sampled else ""


def open_tracing(settings: TracingSettings, *, instance: str, environ: Mapping[str, str] = os.environ) -> Tracing:
    """Return tracing as the settings and OpenTelemetry's own variables want it; the caller must ``aclose`` it.

    ``instance`` names this process. Raises SettingsError where our own setting asks for what cannot be had. Where only
    OpenTelemetry's variables ask, which may be set for every program of a host, a warning says so and it stays off.
    """
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    asked = settings.export == "otlp"
    if not asked and (settings.export == "off" or not any(_word(environ, name) for name in endpoints)):
        return OFF
    exporter = _word(environ, "OTEL_TRACES_EXPORTER") or "otlp"
    if exporter == "none" or _word(environ, "OTEL_SDK_DISABLED") == "true":
        return OFF
    protocol = "OTEL_EXPORTER_OTLP_PROTOCOL"
    spoken = _word(environ, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or _word(environ, protocol) or "http/protobuf"
    try:
        if exporter != "otlp":
            raise SettingsError("OTEL_TRACES_EXPORTER", "must be otlp or none; this gateway has no other exporter")
        if spoken != "http/protobuf":
            raise SettingsError(protocol, "must be http/protobuf; collectors take it on port 4318")
        try:
            from gateway.telemetry.otel import OtelTracing
        except ImportError:
            raise SettingsError(
                SETTING, "needs OpenTelemetry: pip install 'hyperleap-gateway[otel]', or set it to off"
            ) from None
        return OtelTracing.open(instance=instance, flush_s=settings.flush_s, environ=environ)
    except SettingsError as error:
        if asked:
            raise
        log_event(logger, logging.WARNING, "tracing.off", setting=error.key, why=error.message)
        return OFF


def _word(environ: Mapping[str, str], name: str) -> str:
    return environ.get(name, "").strip().lower()
