"""Metrics as verbs of the domain. Names, units, labels and buckets live here and nowhere else.

Label values come from configuration or from closed sets in the code: what a client, a vendor or a stranger
says is folded to ``other`` before it becomes a label, so the number of series has a bound (``max_series``).
Every verb belongs to the event loop's thread; only a scrape reads from another one.
"""

from __future__ import annotations

import asyncio
import platform
import sys
from collections.abc import Collection, Iterable, Mapping

from prometheus_client import (
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from gateway import __version__
from gateway.core.conversation import SCORE_MAX, SCORE_MIN
from gateway.core.errors import WIRE, Code
from gateway.core.ledger import Source as TokenSource
from gateway.core.tenancy import Source
from gateway.core.turn import StopReason, TurnState
from gateway.telemetry.families import OTHER, WORDS_MAX, Axis, Families, Family, Words
from gateway.telemetry.histogram import Histogram
from gateway.telemetry.vendor_gate import VendorGateMetrics
from gateway.telemetry.vendor_keys import VendorKeyMetrics
from gateway.telemetry.workers import WorkersMetrics

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
STATUSES = frozenset({101, 200, 201, 202, 204, 304, 408, 499} | {wire.http for wire in WIRE.values()})
TRANSPORTS = frozenset({"sse", "websocket", "json"})
ENDINGS = frozenset(
    {(TurnState.COMPLETED.value, reason) for reason in ("finished", "stop", "length", "content_filter", "tool_calls")}
    | {(TurnState.STOPPED.value, reason.value) for reason in StopReason}
    | {(TurnState.FAILED.value, code.value) for code in Code}
)
OUTCOMES = (TurnState.COMPLETED.value, TurnState.STOPPED.value, TurnState.FAILED.value)
SCREENED = ("passed", "flagged", "unjudged_sent", "unjudged_refused")
SIGNS = ("negative", "neutral", "positive")
HTTP2_ERRORS = (  # in the order of their codes: RFC 9113, section 7
    *("no_error", "protocol_error", "internal_error", "flow_control_error", "settings_timeout", "stream_closed"),
    *("frame_size_error", "refused_stream", "cancel", "compression_error", "connect_error", "enhance_your_calm"),
    *("inadequate_security", "http_1_1_required"),
)
# The buckets that the OpenTelemetry GenAI conventions ask for (gen-ai-metrics)
GENAI_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
GENAI_TOKENS = tuple(float(4**n) for n in range(14))
REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)
SHORT_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
# Required attributes of the same conventions; they have one value here
GENAI = (("gen_ai_operation_name", "chat"), ("gen_ai_provider_name", "hyperleap"))


class UpstreamMetrics:
    """What happens to upstream connections and streams; has the shape of the upstream's observer."""

    def __init__(self, make: Families) -> None:
        words = Axis(("reason",), WORDS_MAX + 1)
        self._connections = make.gauge("gateway_upstream_connections", "Open upstream connections")
        self._streams = make.gauge("gateway_upstream_streams", "Open upstream streams")
        self._opened = make.counter("gateway_upstream_connections_opened_total", "Upstream connections opened")
        self._closed = make.counter(
            "gateway_upstream_connections_closed_total", "Upstream connections closed, by reason", words
        )
        self._failed = make.counter(
            "gateway_upstream_connect_failures_total", "Upstream connections that could not be opened, by error", words
        )
        self._resets = make.counter(
            "gateway_upstream_resets_total",
            "Upstream streams reset, by HTTP/2 error code and by who did it",
            Axis(("code",), len(HTTP2_ERRORS) + 1),
            Axis(("by",), 2),
        )
        self._goaways = make.counter(
            "gateway_upstream_goaways_total", "GOAWAY frames received", Axis(("code",), len(HTTP2_ERRORS) + 1)
        )
        self._reasons, self._errors = Words(), Words()

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

    def stream_closed(self) -> None:
        self._streams.add(-1)

    def stream_reset(self, code: int, *, by_peer: bool) -> None:
        self._resets.add(1, _http2_error(code), "peer" if by_peer else "gateway")

    def goaway_received(self, code: int) -> None:
        self._goaways.add(1, _http2_error(code))


class Metrics:
    """The one instrument panel of a worker.

    ``tenants`` maps each tenant's id to its persona aliases; later ones are named with ``know_tenants``, of which
    ``personas_max`` personas more become labels. ``routes`` are the templates that requests are counted under; an
    application that builds its router later names them with ``know_routes``.
    """

    def __init__(
        self, tenants: Mapping[str, Collection[str]], routes: Iterable[str] = (), *, personas_max: int = 0
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library's
        self._families = make = Families()
        self._tenants = set(tenants)
        self._known = {(tenant, alias) for tenant, aliases in tenants.items() for alias in aliases}
        self._personas_left = personas_max
        self._routes: frozenset[str] = frozenset()
        self._limits, self._oddities = Words(), Words()

        tenant = Axis(("tenant",), len(self._tenants | {OTHER}) + personas_max)
        persona = Axis(("tenant", "persona"), len(self._known) + len(self._tenants) + 1 + 2 * personas_max)
        transport = Axis(("transport",), len(TRANSPORTS) + 1)
        route = self._route_axis = Axis(("route",), 1)
        method = Axis(("method",), len(METHODS) + 1)
        genai = tuple(Axis((name,), 1) for name, _ in GENAI)

        self._requests = make.counter(
            "gateway_requests_total", "HTTP requests", route, method, Axis(("status",), len(STATUSES) + 6)
        )
        self._request_s = make.histogram(
            "gateway_request_duration_seconds",
            "Time from a request's headers to the end of its answer, streams included",
            REQUEST_SECONDS,
            route,
            method,
        )
        self._errors = make.counter(
            "gateway_errors_total", "Errors told to clients, by code", Axis(("code",), len(Code) + 1)
        )
        self._turns_started = make.counter("gateway_turns_started_total", "Turns started", persona)
        self._turns_live = make.gauge("gateway_turns_live", "Turns running on this worker", persona)
        self._turns = make.counter(
            "gateway_turns_total",
            "Turns ended, by outcome and by the stop reason or error code",
            persona,
            Axis(("outcome", "reason"), len(ENDINGS) + len(OUTCOMES) + 1),
        )
        self._turns_recovered = make.counter(
            "gateway_turns_recovered_total",
            "Turns of a lost worker that this one brought to an end: completed from the vendor's copy, or not",
            tenant,
            Axis(("completed",), 2),
        )
        self._settled = make.counter(
            "gateway_settlements_total",
            "Turns settled, by where their tokens are from: reported in the stream, read back later, or estimated",
            tenant,
            Axis(("source",), 3),
        )
        self._turn_s = make.histogram(
            "gen_ai_client_operation_duration_seconds",
            "Duration of a turn, from its start to its ending",
            GENAI_SECONDS,
            *genai,
            persona,
            Axis(("outcome",), len(OUTCOMES) + 1),
        )
        self._first_s = make.histogram(
            "gen_ai_client_operation_time_to_first_chunk_seconds",
            "Time from a turn's start to the first text of its answer",
            GENAI_SECONDS,
            *genai,
            persona,
        )
        self._gap_s = make.histogram(
            "gen_ai_client_operation_time_per_output_chunk_seconds",
            "Time between two pieces of an answer",
            GENAI_SECONDS,
            *genai,
            persona,
        )
        self._token_usage = make.histogram(
            "gen_ai_client_token_usage",
            "Tokens of a turn, by direction",
            GENAI_TOKENS,
            *genai,
            Axis(("gen_ai_token_type",), 2),
            persona,
        )
        self._tokens = make.counter(
            "gateway_tokens_total",
            "Tokens, by direction (prompt, completion) and by source (reported by the vendor, or estimated)",
            persona,
            Axis(("direction",), 2),
            Axis(("source",), 3),
        )
        self._added_s = make.histogram(
            "gateway_added_latency_seconds", "Time that the gateway itself adds before a turn starts", SHORT_SECONDS
        )
        self._streams = make.gauge("gateway_streams_open", "Streams open to clients", transport)
        self._streams_opened = make.counter("gateway_streams_opened_total", "Streams opened to clients", transport)
        self._resumes = make.counter("gateway_resumes_total", "Streams resumed from a cursor", transport)
        self._replayed = make.counter("gateway_replayed_events_total", "Events sent again on a resume", transport)
        self._lagged = make.counter("gateway_readers_lagged_total", "Readers let go for being too slow", transport)
        self._refused = make.counter(
            "gateway_limit_refusals_total",
            "Turns refused by a limit",
            tenant,
            Axis(("limit",), WORDS_MAX + 1),
        )
        self._screened = make.counter(
            "gateway_messages_screened_total",
            "Messages judged before their turns, or that could not be",
            tenant,
            Axis(("outcome",), len(SCREENED) + 1),
        )
        self._feedback = make.counter(
            "gateway_feedback_total", "Feedback given, by its sign", persona, Axis(("sign",), len(SIGNS))
        )
        self._feedback_points = make.counter(
            "gateway_feedback_points_total",
            "Sum of the scores' amounts; (positive - negative) / gateway_feedback_total is the mean score",
            persona,
            Axis(("sign",), len(SIGNS)),
        )
        self._redis_s = make.histogram("gateway_redis_call_seconds", "Duration of a call to Redis", SHORT_SECONDS)
        self._redis_commands = make.counter("gateway_redis_commands_total", "Commands sent to Redis")
        self._redis_errors = make.counter("gateway_redis_errors_total", "Calls to Redis that failed")
        self._upstream_oddities = make.counter(
            "gateway_upstream_oddities_total",
            "Upstream answers that were odd but could be served",
            Axis(("kind",), WORDS_MAX + 1),
        )
        self._lag_s = make.histogram(
            "gateway_event_loop_lag_seconds", "How late the event loop runs what is due", SHORT_SECONDS
        )
        self._tenants_known = make.gauge(
            "gateway_tenants", "Tenants in force, by where they are written", Axis(("source",), len(Source))
        )
        self._tenants_by_source = dict.fromkeys(Source, 0)
        self._tenants_unreadable = make.gauge(
            "gateway_tenants_unreadable", "Tenants in the store that this worker cannot read: what it read last holds"
        )
        self._unreadable = 0
        self._file_valid = make.gauge(
            "gateway_tenants_file_valid", "0 while the tenants file cannot be used: what it said last holds"
        )
        self._file_valid.add(1)
        self._file_was_valid = True
        self._file_reads = make.counter(
            "gateway_tenants_file_reads_total",
            "Reads of a changed tenants file, by outcome (taken, refused)",
            Axis(("outcome",), 2),
        )
        self.upstream = UpstreamMetrics(make)
        self.vendor_keys = VendorKeyMetrics(make)
        self.vendor_gate = VendorGateMetrics(
            make, self.vendor_keys, tenant, lambda name: name if name in self._tenants else OTHER
        )
        build = make.gauge("gateway_build_info", "Always 1", Axis(("version",), 1), Axis(("python",), 1))
        build.add(1, __version__, platform.python_version())
        ProcessCollector(registry=make.registry)
        PlatformCollector(registry=make.registry)
        GCCollector(registry=make.registry)
        self.know_routes(routes)

    # what may be a label

    def know_routes(self, templates: Iterable[str]) -> None:
        """Add route templates under which requests are counted; any other route is counted as ``other``."""
        self._routes |= frozenset(templates)
        self._route_axis.size = len(self._routes | {OTHER})

    def know_tenants(self, tenants: Mapping[str, Collection[str]]) -> None:
        """Add tenants and personas to the labels, as many as there is room for; none is ever taken away."""
        for tenant, aliases in tenants.items():
            for alias in aliases:
                if (tenant, alias) not in self._known and self._personas_left > 0:
                    self._personas_left -= 1
                    self._tenants.add(tenant)
                    self._known.add((tenant, alias))

    def _persona(self, tenant: str, persona: str | None) -> tuple[str, str]:
        if (tenant, persona) in self._known:
            return tenant, str(persona)
        return (tenant, OTHER) if tenant in self._tenants else (OTHER, OTHER)

    def max_series(self) -> int:
        """Return the most lines that a scrape can ever hold, however clients behave."""
        return self._families.max_series() + PROCESS_SERIES

    def families(self) -> list[Family]:
        return self._families.declared

    # verbs

    def request_ended(self, route: str | None, method: str, status: int, seconds: float) -> None:
        """``route`` is the router's template, or None when no route matched."""
        if route is None or route not in self._routes:
            route = OTHER
        method = method if method in METHODS else OTHER
        shown = str(status) if status in STATUSES else f"{status // 100}xx" if 100 <= status < 600 else OTHER
        self._requests.add(1, route, method, shown)
        self._request_s.of(route, method).observe(seconds)

    def error_sent(self, code: str) -> None:
        self._errors.add(1, code if code in WIRE else OTHER)

    def tenants_changed(self, by_source: Mapping[Source, int], unreadable: int) -> None:
        """How many tenants are in force, and how many documents of the store cannot be read."""
        for source, known in self._tenants_by_source.items():
            self._tenants_known.add(by_source.get(source, 0) - known, source)
            self._tenants_by_source[source] = by_source.get(source, 0)
        self._tenants_unreadable.add(unreadable - self._unreadable)
        self._unreadable = unreadable

    def tenants_file_read(self, *, valid: bool) -> None:
        """The tenants file was read because it had changed, or was gone."""
        self._file_reads.add(1, "taken" if valid else "refused")
        self._file_valid.add(valid - self._file_was_valid)
        self._file_was_valid = valid

    def turn_started(self, tenant: str, persona: str | None) -> None:
        labels = self._persona(tenant, persona)
        self._turns_started.add(1, *labels)
        self._turns_live.add(1, *labels)

    def turn_ended(self, tenant: str, persona: str | None, outcome: str, reason: str, seconds: float) -> None:
        """``reason`` is the stop reason, the error code, or for a completed turn the finish reason."""
        labels = self._persona(tenant, persona)
        if outcome not in OUTCOMES:
            outcome = reason = OTHER
        elif (outcome, reason) not in ENDINGS:
            reason = OTHER
        self._turns_live.add(-1, *labels)
        self._turns.add(1, *labels, outcome, reason)
        self._turn_s.of(*GENAI_VALUES, *labels, outcome).observe(seconds)

    def turn_taken_over(self, tenant: str, persona: str | None) -> None:
        """A lost worker's turn runs on this one from now on; ``turn_ended`` tells its end."""
        self._turns_live.add(1, *self._persona(tenant, persona))

    def turn_recovered(self, tenant: str, *, completed: bool) -> None:
        self._turns_recovered.add(1, tenant if tenant in self._tenants else OTHER, "yes" if completed else "no")

    def turn_settled(self, tenant: str, source: TokenSource) -> None:
        self._settled.add(1, tenant if tenant in self._tenants else OTHER, source)

    def tokens_counted(self, tenant: str, persona: str | None, prompt: int, completion: int, source: str) -> None:
        labels = self._persona(tenant, persona)
        prompt, completion = max(0, prompt), max(0, completion)  # the vendor's word; a counter cannot fall
        source = source if source in ("reported", "estimated") else OTHER
        self._tokens.add(prompt, *labels, "prompt", source)
        self._tokens.add(completion, *labels, "completion", source)
        self._token_usage.of(*GENAI_VALUES, "input", *labels).observe(prompt)
        self._token_usage.of(*GENAI_VALUES, "output", *labels).observe(completion)

    def first_token(self, tenant: str, persona: str | None, seconds: float) -> None:
        self._first_s.of(*GENAI_VALUES, *self._persona(tenant, persona)).observe(seconds)

    def gap_histogram(self, tenant: str, persona: str | None) -> Histogram:
        """Return the histogram of the time between tokens; a turn keeps it and observes on every event."""
        return self._gap_s.of(*GENAI_VALUES, *self._persona(tenant, persona))

    def gateway_added(self, seconds: float) -> None:
        self._added_s.of().observe(seconds)

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

    def limit_refused(self, tenant: str, limit: str) -> None:
        self._refused.add(1, tenant if tenant in self._tenants else OTHER, self._limits.fold(limit))

    def message_screened(self, tenant: str, outcome: str) -> None:
        labels = (tenant if tenant in self._tenants else OTHER, outcome if outcome in SCREENED else OTHER)
        self._screened.add(1, *labels)

    def feedback_given(self, tenant: str, persona: str | None, score: int) -> None:
        score = max(SCORE_MIN, min(SCORE_MAX, score))
        labels = (*self._persona(tenant, persona), SIGNS[(score > 0) - (score < 0) + 1])
        self._feedback.add(1, *labels)
        self._feedback_points.add(abs(score), *labels)

    def redis_called(self, seconds: float, commands: int, error: bool) -> None:
        """One round trip that carried ``commands`` commands."""
        self._redis_s.of().observe(seconds)
        self._redis_commands.add(commands)
        if error:
            self._redis_errors.add(1)

    def upstream_oddity(self, kind: str) -> None:
        """``kind`` is a word of our own code, never the vendor's."""
        self._upstream_oddities.add(1, self._oddities.fold(kind))

    def loop_lagged(self, seconds: float) -> None:
        self._lag_s.of().observe(seconds)

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return the body and the content type of a scrape, in the format that the scraper accepts."""
        return await self._families.exposition(accept)


GENAI_VALUES = tuple(value for _, value in GENAI)
PROCESS_SERIES = 32  # what prometheus-client itself says of the process, the platform and the garbage collector


def _http2_error(code: int) -> str:
    return HTTP2_ERRORS[code] if 0 <= code < len(HTTP2_ERRORS) else OTHER


async def watch_loop(metrics: Metrics, interval_s: float = 0.25) -> None:
    """Measure how late the event loop is, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due_s = loop.time() + interval_s
        await asyncio.sleep(interval_s)
        metrics.loop_lagged(max(0.0, loop.time() - due_s))


def reference() -> str:
    """Return the page `docs/metrics.md`."""
    lines = [_PREAMBLE, "", "| metric | type | labels | meaning |", "| --- | --- | --- | --- |"]
    for family in [*Metrics({}).families(), *WorkersMetrics(1).families()]:
        labels = " ".join(f"`{label}`" for label in family.labels) or "–"
        lines.append(f"| `{family.name}` | {family.kind} | {labels} | {family.text} |")
    return "\n".join(lines) + "\n"


_PREAMBLE = """# Metrics

Generated by `python -m gateway.telemetry.metrics`; do not edit.

`GET /metrics` on the internal port answers in the Prometheus text format, or as OpenMetrics when the scraper asks for
it. Names that begin with `gen_ai_client_` follow the OpenTelemetry conventions for generative AI. Label values come
from the configuration or from closed sets; anything else is counted as `other`, so no client can make series. Tenants
and personas appear by their configured id and alias; of those that come after the start `server.metrics_personas_max`
personas do, further ones count as `other`, and one that is taken away keeps its place until the restart. The usual
`process_` and `python_` metrics come with them.

With `--workers` there is one internal port for all: every series of a worker has a label `worker` with the number of
its slot, and sums are the reader's (`sum without (worker) (...)`). While a slot is rolled, the process that drains is
`worker="<slot>-old"`, and the slot's own series begin anew, as after any restart; a worker that does not answer within
a second is absent. `gateway_worker_` and `gateway_supervisor_process_` metrics are the supervisor's own."""


if __name__ == "__main__":
    sys.stdout.write(reference())
