"""One figure out of a scrape."""

from __future__ import annotations

from gateway.telemetry.metrics import Metrics


async def told(metrics: Metrics, name: str, **labels: str) -> float:
    """Return the sum of a metric's series that have these labels."""
    lines = (await (await metrics.scrape("")).whole()).decode().splitlines()
    return sum(
        float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith((f"{name} ", f"{name}{{")) and all(f'{label}="{labels[label]}"' in line for label in labels)
    )
