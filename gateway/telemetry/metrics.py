"""Metrics as verbs of the domain. Names, units, labels and buckets live in this room and nowhere else.

Label values come from configuration or from closed sets in the code: what a client, a vendor or a stranger
says is folded to ``other`` before it becomes a label, so the number of series has a bound (``max_series``).
Every verb and every scrape belongs to the event loop's thread.
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
from gateway.telemetry.clients import ClientMetrics
from gateway.telemetry.enrolment import EnrolmentMetrics
from gateway.telemetry.exposition import Scrape
from gateway.telemetry.families import Axis, Buckets, Families, Family
from gateway.telemetry.labels import Labels
from gateway.telemetry.ledger_export import LedgerExportMetrics
from gateway.telemetry.limits import LimitMetrics
from gateway.telemetry.store import StoreMetrics
from gateway.telemetry.turns import SHORT_SECONDS, TurnMetrics
from gateway.telemetry.upstream import UpstreamMetrics
from gateway.telemetry.vendor_gate import VendorGateMetrics
from gateway.telemetry.vendor_keys import VendorKeyMetrics
from gateway.telemetry.workers import WorkersMetrics


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
        self._labels = labels = Labels(tenants, personas_max)
        self.clients = clients = ClientMetrics(make, routes)
        self.turns = turns = TurnMetrics(make, labels)
        self.limits = limits = LimitMetrics(make, labels)
        self.store = store = StoreMetrics(make)
        self.upstream = UpstreamMetrics(make)
        self.ledger_export = LedgerExportMetrics(make)
        self.vendor_keys = VendorKeyMetrics(make)
        self.vendor_gate = VendorGateMetrics(make, self.vendor_keys, labels)
        self.enrolment = enrolment = EnrolmentMetrics(make)
        self._lag_s = make.histogram(
            "gateway_event_loop_lag_seconds", "How late the event loop runs what is due", SHORT_SECONDS
        )
        build = make.gauge("gateway_build_info", "Always 1", Axis(("version",), 1), Axis(("python",), 1), unit="1")
        build.add(1, __version__, platform.python_version())
        make.gauge("gateway_metrics_series", "Series that this scrape has", unit="series").read_from(self.series)
        make.gauge(
            "gateway_metrics_series_max",
            "The most series that a scrape can ever have, by the configuration, however clients behave",
            unit="series",
        ).read_from(self.max_series)
        ProcessCollector(registry=make.registry)
        PlatformCollector(registry=make.registry)
        GCCollector(registry=make.registry)

        turns.begin(tenants)

        # The verbs of those whose callers know nothing but this panel
        self.know_routes = clients.know_routes
        self.request_ended = clients.request_ended
        self.error_sent = clients.error_sent
        self.stream_opened = clients.stream_opened
        self.stream_closed = clients.stream_closed
        self.resumed = clients.resumed
        self.reader_lagged = clients.reader_lagged
        self.turn_started = turns.started
        self.turn_ended = turns.ended
        self.turn_attempted = turns.attempted
        self.turn_taken_over = turns.taken_over
        self.turn_recovered = turns.recovered
        self.turn_settled = turns.settled
        self.tokens_counted = turns.tokens_counted
        self.first_token = turns.first_token
        self.gap_histogram = turns.gap_histogram
        self.gateway_added = turns.gateway_added
        self.message_screened = turns.message_screened
        self.feedback_given = turns.feedback_given
        self.limit_refused = limits.refused
        self.redis_called = store.called
        self.upstream_oddity = self.upstream.oddity
        self.tenants_changed = enrolment.tenants_changed
        self.tenants_file_read = enrolment.tenants_file_read

    def know_tenants(self, tenants: Mapping[str, Collection[str]]) -> None:
        """Add tenants and personas to the labels, as many as there is room for; none is ever taken away."""
        self._labels.know(tenants)
        self.turns.begin(tenants)

    def loop_lagged(self, seconds: float) -> None:
        self._lag_s.of().observe(seconds)

    def series(self) -> int:
        """Return how many lines a scrape has now."""
        return self._families.series()

    def max_series(self) -> int:
        """Return the most lines that a scrape can ever hold, however clients behave."""
        return self._families.max_series()

    def families(self) -> list[Family]:
        return self._families.declared

    async def scrape(self, accept: str) -> Scrape:
        """Return a scrape in the format that the scraper accepts."""
        return self._families.scrape(accept)


async def watch_loop(metrics: Metrics, interval_s: float = 0.25) -> None:
    """Measure how late the event loop is, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due_s = loop.time() + interval_s
        await asyncio.sleep(interval_s)
        metrics.loop_lagged(max(0.0, loop.time() - due_s))


def reference() -> str:
    """Return the page `docs/metrics.md`."""
    lines = [
        _PREAMBLE,
        "",
        "| metric | type | unit | labels | buckets | meaning |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    buckets: set[Buckets] = set()
    for family in [*Metrics({}).families(), *WorkersMetrics(1).families()]:
        labels = " ".join(f"`{label}`" for label in family.labels) or "–"
        shown = "–"
        if family.buckets is not None:
            buckets.add(family.buckets)
            shown = f"[{family.buckets.name}](#buckets)"
        lines.append(f"| `{family.name}` | {family.kind} | {family.unit} | {labels} | {shown} | {family.text} |")
    lines += ["", "## Buckets", "", "| name | upper bounds, and `+Inf` |", "| --- | --- |"]
    for name, bounds in sorted(buckets):
        lines.append(f"| {name} | {' '.join(f'{bound:,g}' if bound < 1e6 else f'{bound:,.0f}' for bound in bounds)} |")
    return "\n".join(lines) + "\n"


_PREAMBLE = """# Metrics

Generated by `python -m gateway.telemetry.metrics`; do not edit.

`GET /metrics` on the internal port answers in the Prometheus text format, or as OpenMetrics when the scraper asks for
it. Names that begin with `gen_ai_client_` follow the OpenTelemetry conventions for generative AI. Label values come
from the configuration or from closed sets; anything else is counted as `other`, so no client can make series. Tenants
and personas appear by their configured id and alias; of those that come after the start `server.metrics_personas_max`
personas do, further ones count as `other`, and one that is taken away keeps its place until the restart. The usual
`process_` and `python_` metrics come with them.

In OpenMetrics the buckets of `gateway_request_duration_seconds`, `gen_ai_client_operation_duration_seconds` and
`gen_ai_client_operation_time_to_first_chunk_seconds` carry exemplars: the latest value with its `trace_id`, by which
logs and, where [tracing](tracing.md) is on and took it, the trace itself are found.

A scrape is made in slices of half a millisecond, between which everything else goes on. With 200 tenants of three
personas each that are in use (56,000 series, 9 MB) it takes 20 ms of processor time; a series that is new takes as long
again, once. `gateway_metrics_series_max` is computed from the configuration, and whatever clients send
`gateway_metrics_series` stays within it.

With `--workers` there is one internal port for all: every series of a worker has a label `worker` with the number of
its slot, and sums are the reader's (`sum without (worker) (...)`). While a slot is rolled, the process that drains is
`worker="<slot>-old"`, and the slot's own series begin anew, as after any restart; a worker that does not answer within
five seconds is absent. `gateway_worker_` and `gateway_supervisor_process_` metrics are the supervisor's own."""


if __name__ == "__main__":
    sys.stdout.write(reference())
