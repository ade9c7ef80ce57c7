"""What a panel of metrics says at the moment, without a scrape that awaits."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from gateway.telemetry.exposition import Format
from gateway.telemetry.families import Families


def value(families: Families, name: str, **labels: str) -> float:
    """Return what a series says; 0 where there is none yet."""
    text = "".join(families._pieces(Format.accepted("")))
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return next((sample.value for sample in samples if (sample.name, sample.labels) == (name, labels)), 0.0)
