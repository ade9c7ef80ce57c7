"""The metrics of several workers as one scrape, and the supervisor's own few."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from prometheus_client import ProcessCollector

from gateway.telemetry.families import Axis, Families, Family

EOF = "# EOF"
LABEL = "worker"


class WorkersMetrics:
    """What happens to the workers of a supervisor; ``slots`` is how many it keeps."""

    def __init__(self, slots: int) -> None:
        self._families = make = Families()
        worker = Axis((LABEL,), slots)
        self._ready = make.gauge(
            "gateway_worker_ready", "Ready workers of a slot; 2 while it is rolled", worker, unit="workers"
        )
        self._lost = make.counter(
            "gateway_worker_lost_total", "Workers that died without being asked to", worker, unit="workers"
        )
        self._started = make.counter("gateway_worker_starts_total", "Workers that became ready", worker, unit="workers")
        self._failed = make.counter(
            "gateway_worker_failures_total", "Workers that did not become ready", worker, unit="workers"
        )
        self._rolls = make.counter(
            "gateway_worker_rolls_total",
            "Rolling restarts, by outcome (done, abandoned)",
            Axis(("outcome",), 2),
            unit="restarts",
        )
        ProcessCollector(namespace="gateway_supervisor", registry=make.registry)

    def families(self) -> list[Family]:
        return self._families.declared

    def worker_ready(self, slot: int) -> None:
        self._started.add(1, str(slot))
        self._ready.add(1, str(slot))

    def worker_left(self, slot: int, *, lost: bool) -> None:
        """A worker that was ready has exited; ``lost`` when nobody had asked it to."""
        self._ready.add(-1, str(slot))
        if lost:
            self._lost.add(1, str(slot))

    def worker_failed(self, slot: int) -> None:
        self._failed.add(1, str(slot))

    def rolled(self, *, done: bool) -> None:
        self._rolls.add(1, "done" if done else "abandoned")

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        return await self._families.exposition(accept)


@dataclass(slots=True)
class _Block:
    """One family: its comment lines, told once, and the samples of every worker."""

    comments: dict[str, str] = field(default_factory=dict)
    samples: list[str] = field(default_factory=list)


def merge(scrapes: Iterable[tuple[str | None, str]]) -> str:
    """Join scrapes of one format (text or OpenMetrics), each with the value of its ``worker`` label or None.

    Families come in the order in which they are first told, each with one HELP and one TYPE. Samples follow their
    family's comments in a scrape, as both formats demand, so no sample's name need be understood.
    """
    blocks: dict[str, _Block] = {}
    ended = False
    for worker, scrape in scrapes:
        block = blocks.setdefault("", _Block())
        for line in scrape.splitlines():
            if line == EOF:
                ended = True
            elif line.startswith("# "):
                _, word, name, *_ = line.split(" ", 3)
                block = blocks.setdefault(name, _Block())
                block.comments.setdefault(word, line)
            elif line:
                block.samples.append(line if worker is None else _labelled(line, worker))
    lines = [line for block in blocks.values() for line in (*block.comments.values(), *block.samples)]
    return "\n".join([*lines, *([EOF] if ended else [])]) + "\n"


def _labelled(sample: str, worker: str) -> str:
    """Put the worker's label first; a sample is ``name value`` or ``name{labels} value``."""
    name, space, value = sample.partition(" ")
    bare, brace, _ = name.partition("{")
    if not brace:
        return f'{name}{{{LABEL}="{worker}"}}{space}{value}'
    rest = sample[len(bare) + 1 :]
    return f'{bare}{{{LABEL}="{worker}"{"" if rest.startswith("}") else ","}{rest}'
