"""The metrics of several workers as one scrape, and the supervisor's own few."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import ProcessCollector

from gateway.telemetry.exposition import Scrape
from gateway.telemetry.families import Axis, Families, Family

EOF: Final = "# EOF"
LABEL: Final = "worker"
PIECE_CHARS: Final = 65_536  # of samples at a time: 0.2 ms


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
        # The first increase of a series that was not there is not seen as one, and alerts wait for it.
        for slot in range(slots):
            for family in (self._ready, self._lost, self._started, self._failed):
                family.add(0, str(slot))
        for outcome in ("done", "abandoned"):
            self._rolls.add(0, outcome)
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

    def scrape(self, accept: str) -> Scrape:
        return self._families.scrape(accept)


@dataclass(slots=True)
class _Block:
    """One family: its comment lines, told once, and where its samples stand in the scrape of each worker."""

    comments: dict[str, str] = field(default_factory=dict)
    samples: list[tuple[str | None, str, int, int]] = field(default_factory=list)


def merge(scrapes: Iterable[tuple[str | None, str]]) -> Iterator[str]:
    """Join scrapes of one format (text or OpenMetrics), each with the value of its ``worker`` label or None.

    Families come in the order in which they are first told, each with one HELP and one TYPE; samples follow their
    family's comments in a scrape, as both formats demand. What is joined comes in pieces, none of which takes long to
    make; some are empty.
    """
    blocks: dict[str, _Block] = {}
    ended = False
    for worker, scrape in scrapes:
        name, at = "", 0
        while at < len(scrape):
            if scrape.startswith("# ", at):
                end = scrape.find("\n", at) + 1 or len(scrape)
                line = scrape[at:end]
                if line.startswith(EOF):
                    ended = True
                else:
                    _, word, name, *_ = line.split(" ", 3)
                    blocks.setdefault(name, _Block()).comments.setdefault(word, line)
            else:
                end = min(at + PIECE_CHARS, len(scrape))
                end = (scrape.find("\n# ", at, end + 2) + 1) or (scrape.rfind("\n", at, end) + 1) or len(scrape)
                blocks.setdefault(name, _Block()).samples.append((worker, scrape, at, end))
                yield ""
            at = end
    for block in blocks.values():
        yield "".join(block.comments.values())
        for worker, scrape, begin, end in block.samples:
            samples = scrape[begin:end]
            yield samples if worker is None else _labelled(samples, worker)
    if ended:
        yield f"{EOF}\n"


def _labelled(samples: str, worker: str) -> str:
    """Put the worker's label first; a sample is ``name value`` or ``name{labels} value``."""
    label = f'{LABEL}="{worker}"'
    labelled: list[str] = []
    for sample in samples.splitlines(keepends=True):
        name, brace, rest = sample.partition("{")
        if " " in name or not brace:  # no labels: a brace is of an exemplar
            name, _, rest = sample.partition(" ")
            labelled.append(f"{name}{{{label}}} {rest}")
        else:
            labelled.append(f"{name}{{{label}{rest}" if rest.startswith("}") else f"{name}{{{label},{rest}")
    return "".join(labelled)
