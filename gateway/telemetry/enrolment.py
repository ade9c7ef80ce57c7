"""Which tenants are in force, and whether what says so can be read."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.core.tenancy import Source
from gateway.telemetry.families import Axis, Families


class EnrolmentMetrics:
    """Verbs of whoever puts tenants in force."""

    def __init__(self, make: Families) -> None:
        self._known = make.gauge(
            "gateway_tenants",
            "Tenants in force, by where they are written (settings, file, store)",
            Axis(("source",), len(Source)),
            unit="tenants",
        )
        self._unreadable = make.gauge(
            "gateway_tenants_unreadable",
            "Tenants in the store that this worker cannot read: what it read last holds",
            unit="tenants",
        )
        self._file_valid = make.gauge(
            "gateway_tenants_file_valid",
            "0 while the tenants file cannot be used: what it said last holds",
            unit="0 or 1",
        )
        self._file_valid.put(1)
        self._file_reads = make.counter(
            "gateway_tenants_file_reads_total",
            "Reads of a changed tenants file, by outcome (taken, refused)",
            Axis(("outcome",), 2),
            unit="reads",
        )

    def tenants_changed(self, by_source: Mapping[Source, int], unreadable: int) -> None:
        """How many tenants are in force, and how many documents of the store cannot be read."""
        for source in Source:
            self._known.put(by_source.get(source, 0), source)
        self._unreadable.put(unreadable)

    def tenants_file_read(self, *, valid: bool) -> None:
        """The tenants file was read because it had changed, or was gone."""
        self._file_reads.add(1, "taken" if valid else "refused")
        self._file_valid.put(valid)
