"""How the export of the ledger to PostgreSQL goes."""

from __future__ import annotations

from typing import Final

from gateway.core.warehouse import Trouble
from gateway.telemetry.families import Axis, Families

STORE: Final = "store"  # why an export failed, beside the troubles of the warehouse: the ledger could not be read
FAULT: Final = "fault"  # … or a fault of our own
REASONS: Final = (*(trouble.value for trouble in Trouble), STORE, FAULT)


class LedgerExportMetrics:
    """What an exporter tells. The lag is told by every worker alike, the rest by whoever did it."""

    def __init__(self, make: Families) -> None:
        self._lag_s = 0.0
        self._lag = make.gauge(
            "gateway_ledger_export_lag_seconds",
            "All that was settled longer ago than this is in PostgreSQL; told alike by every worker (take the maximum)",
            unit="seconds",
        )
        self._exported = make.counter(
            "gateway_ledger_exported_total",
            "Settlements that PostgreSQL did not have like this before",
            unit="settlements",
        )
        self._unreadable = make.counter(
            "gateway_ledger_export_unreadable_total",
            "Ledger entries that are no settlement, set aside in PostgreSQL",
            unit="entries",
        )
        self._errors = make.counter(
            "gateway_ledger_export_errors_total",
            "Attempts to export that failed: PostgreSQL was away, refused, read_only, forbidden, newer, stale, unset or"
            " failed; the ledger's store was away (store); a fault of the gateway's (fault)",
            Axis(("reason",), len(REASONS)),
            unit="attempts",
        )

    def lagged(self, seconds: float) -> None:
        self._lag.add(seconds - self._lag_s)
        self._lag_s = seconds

    def exported(self, written: int, unreadable: int) -> None:
        self._exported.add(written)
        self._unreadable.add(unreadable)

    def failed(self, reason: str) -> None:
        self._errors.add(1, reason)
