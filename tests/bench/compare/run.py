"""A comparison: rounds of fresh processes, in each every shape with all contenders in turn."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final

import msgspec

from tests.bench.compare.contenders import SLOW, Contender, contending
from tests.bench.compare.machine import machine
from tests.bench.compare.page import document
from tests.bench.compare.plot import plot
from tests.bench.compare.proxies import Program
from tests.bench.compare.results import BASELINE, Line, Results
from tests.bench.compare.shapes import SOCKETS, Sample, Shape, of_round, reason, sample
from tests.bench.compare.variants import Variant
from tests.bench.phase import warm_up
from tests.bench.process import ProcessDied

SHORT: Final = ("gateway", BASELINE)


class Comparison(msgspec.Struct, kw_only=True):
    """What a run was and what it showed."""

    command: str
    machine: str
    skipped: list[str]
    results: Results

    def write(self, directory: Path, shapes: Sequence[Shape]) -> None:
        """Write ``results.md``, ``results.svg`` and ``results.json``, the last with every sample."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "results.md").write_text(self.document(shapes), "utf-8")
        (directory / "results.svg").write_text(plot(self.results), "utf-8")
        (directory / "results.json").write_bytes(msgspec.json.encode(self) + b"\n")

    def document(self, shapes: Sequence[Shape]) -> str:
        return document(self.results, shapes, self.command, self.machine, self.skipped)

    def broken(self) -> list[str]:
        """Say what the gateway lost, repeated or got wrong, and where it was not measured."""
        told = []
        for line in self.results.lines:
            if not line.name.startswith("gateway"):
                continue
            lost, twice, faults = self.results.wrong(line.name)
            if lost or twice or faults:
                told.append(f"{line.title}: {lost} events lost, {twice} came twice, {faults} faults")
        failures = [one for one in self.results.failures() if one.contender.startswith("gateway")]
        return told + [f"{one.contender}, {one.shape}: {one.failure}" for one in failures]


async def compare(
    shapes: Sequence[Shape],
    names: Collection[str] | None,
    programs: Sequence[Program],
    variants: Sequence[Variant],
    skipped: Sequence[str],
    rounds: int,
    command: str,
    say: Callable[[str], None],
) -> Comparison:
    """Run it; ``say`` is told which measurement is next."""
    samples: list[Sample] = []
    absent = [*skipped]

    def note(words: str) -> None:
        if words not in absent:
            absent.append(words)

    lines: dict[str, Line] = {}

    async def measured(shape: Shape, contender: Contender, number: int, when: str) -> None:
        say(f"{when}: {shape.title}: {contender.title}")
        samples.append(await sample(contender, shape, number))

    for number in range(rounds):
        of_this = of_round(shapes, number)
        if not of_this:
            continue
        async with contending(names, programs, variants, note) as contenders:
            lines |= {one.name: _line(one, programs) for one in contenders}
            ready = [one for one in contenders if await _warm(one, note)]
            for shape in of_this:
                for contender in ready:
                    if shape.fits(contender):
                        await measured(shape, contender, number, f"round {number + 1} of {rounds}")
    # Fresh processes for each transport: what others have used and freed would hide what a stall makes one hold.
    quick = [one for one in programs if one.name != SLOW]
    sockets = [one for one in SOCKETS if names is None or one in names]
    for shape in (one for one in shapes if one.kind == "stalled"):
        for some, beside, over_sockets in ((names, quick, False), (sockets, [], True)):
            async with contending(some, beside, variants, note) as contenders:
                mine = [one for one in contenders if shape.fits(one) and (one.kind in SOCKETS) is over_sockets]
                lines |= {one.name: _line(one, programs) for one in mine if one.name not in lines}
                for contender in [one for one in mine if await _warm(one, note)]:
                    await measured(shape, contender, 0, "fresh processes")
    told = {one.contender for one in samples}
    results = Results(rounds=rounds, lines=[one for one in lines.values() if one.name in told], samples=samples)
    return Comparison(command=command, machine=machine(), skipped=absent, results=results)


async def _warm(contender: Contender, absent: Callable[[str], None]) -> bool:
    try:
        await warm_up(contender.rig, contender.route)
    except (ProcessDied, AssertionError, TimeoutError) as error:
        absent(f"{contender.title}: skipped, does not stream: {reason(error).splitlines()[0]}")
        return False
    return True


def _line(contender: Contender, programs: Sequence[Program]) -> Line:
    version = next((one.version for one in programs if one.name == contender.name), "")
    return Line(
        name=contender.name,
        title=contender.title,
        version=version,
        parts=contender.parts,
        upstream=contender.upstream,
    )
