"""A comparison: rounds of fresh processes, in each every shape with all contenders in turn."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final

import msgspec

from tests.bench.compare.contenders import Contender, contending
from tests.bench.compare.machine import machine
from tests.bench.compare.plot import plot
from tests.bench.compare.proxies import Program
from tests.bench.compare.results import BASELINE, Line, Results, ratio
from tests.bench.compare.shapes import Sample, Shape, of_round, reason, sample
from tests.bench.compare.table import document
from tests.bench.phase import warm_up
from tests.bench.process import ProcessDied

# The short form's bounds on the gateway's CPU time, with its store, over the bare relay's in the same run.
MOST_PER_EVENT: Final = 5.0
MOST_PER_TURN: Final = 7.0
SHORT: Final = ("gateway", BASELINE)


class Comparison(msgspec.Struct, kw_only=True):
    """What a run was and what it showed."""

    command: str
    machine: str
    skipped: list[str]
    results: Results

    def write(self, directory: Path, shapes: Sequence[Shape]) -> None:
        """Write ``compare.md``, ``compare.svg`` and ``compare.json``, the last with every sample."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "compare.md").write_text(self.document(shapes), "utf-8")
        (directory / "compare.svg").write_text(plot(self.results), "utf-8")
        (directory / "compare.json").write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1))

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

    def past_bounds(self) -> list[str]:
        """Say which ratio to the bare relay is above its bound."""
        results, told = self.results, []
        for name, values, base, most in (
            ("an event", results.cpu_us("paced", "gateway"), results.cpu_us("paced", BASELINE), MOST_PER_EVENT),
            ("a turn", results.turn_us("gateway"), results.turn_us(BASELINE), MOST_PER_TURN),
        ):
            found = ratio(values, base)
            if found is not None and found > most:
                told.append(f"{name} costs {found:.2f} × what it costs the bare relay; the bound is {most:g} ×")
        return told


async def compare(
    shapes: Sequence[Shape],
    names: Collection[str] | None,
    programs: Sequence[Program],
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

    lines: list[Line] = []
    for number in range(rounds):
        async with contending(names, programs, note) as contenders:
            lines = [_line(one, programs) for one in contenders]
            ready = [one for one in contenders if await _warm(one, note)]
            for shape in of_round(shapes, number):
                for contender in ready:
                    if shape.fits(contender):
                        say(f"round {number + 1} of {rounds}: {shape.title}: {contender.title}")
                        samples.append(await sample(contender, shape, number))
    measured = {one.contender for one in samples}
    results = Results(rounds=rounds, lines=[one for one in lines if one.name in measured], samples=samples)
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
