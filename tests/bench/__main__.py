"""``python -m tests.bench turn``: see README.md beside this file."""

from __future__ import annotations

import asyncio
import logging
import resource
import shlex
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from gateway.store.embedded import EmbeddedError
from tests.bench import admit as admit_bench
from tests.bench import doors as doors_bench
from tests.bench import export as export_bench
from tests.bench import layouts as layouts_bench
from tests.bench import profile as profiler
from tests.bench import survive as survive_bench
from tests.bench.compare import goals, proxies, shapes
from tests.bench.compare import run as compare_bench
from tests.bench.compare.contenders import CONTENDERS
from tests.bench.compare.variants import Variant, VariantType
from tests.bench.phase import Work, measure, wait_idle, warm_up
from tests.bench.plan import DOORS, Door, Through
from tests.bench.process import ProcessDied, fast_loop
from tests.bench.report import Report
from tests.bench.stack import running
from tests.bench.survival.field import Load
from tests.bench.survival.strikes import STRIKES

T = TypeVar("T")


@click.group()
def main() -> None:
    """Benchmarks on this machine, simulator and clients included. Nothing leaves loopback."""


@main.command()
@click.option("--streams", type=click.IntRange(1, 5000), default=200, show_default=True)
@click.option("--rate", type=click.FloatRange(0.1, 1000), default=20.0, show_default=True, help="Events a second each.")
@click.option("--events-per-turn", type=click.IntRange(1, 100_000), help="Short turns over and over [one long turn].")
@click.option("--transport", type=click.Choice(["sse", "ws"]), default="sse", show_default=True, help="Native.")
@click.option("--door", type=click.Choice(list(DOORS)), default="native", show_default=True)
@click.option("--seconds", type=click.FloatRange(0.5, 120), default=10.0, show_default=True, help="Of each window.")
@click.option("--rounds", type=click.IntRange(1, 20), default=2, show_default=True, help="Direct, gateway, direct, …")
@click.option("--h2c", is_flag=True, help="No TLS between simulator and gateway.")
@click.option("--baseline", is_flag=True, help="Measure a bare aiohttp relay too.")
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write every figure there.")
@click.option(
    "--profile", "profile_path", type=click.Path(path_type=Path, dir_okay=False),
    help="Profile the gateway with py-spy in a round of its own: .svg flame graph, .txt raw, .json speedscope.",
)  # fmt: skip
def turn(
    streams: int,
    rate: float,
    events_per_turn: int | None,
    transport: Literal["sse", "ws"],
    door: Door,
    seconds: float,
    rounds: int,
    h2c: bool,
    baseline: bool,
    json_path: Path | None,
    profile_path: Path | None,
) -> None:
    """Stream turns to many clients at once and tell what that costs."""
    work = Work(streams=streams, rate_per_s=rate, events_per_turn=events_per_turn, seconds=seconds)
    route: Through = transport if door == "native" else DOORS[door]
    _raise_open_files()
    try:
        with asyncio.Runner() as runner:
            report = runner.run(
                _until_terminated(_run(work, route, rounds, h2c=h2c, baseline=baseline, profile_path=profile_path))
            )
    except (ProcessDied, FileNotFoundError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    except asyncio.CancelledError:
        sys.exit(143)
    click.echo(report.table())
    if profile_path is not None and profile_path.suffix == ".txt":
        click.echo("\n" + profiler.top(profile_path))
    if json_path is not None:
        json_path.write_bytes(report.as_json())
    if report.summary["lost"] or report.summary["duplicated"] or report.summary["faults"]:
        sys.exit(1)


@main.command()
@click.option("--streams", type=click.IntRange(1, 5000), default=100, show_default=True)
@click.option("--rate", type=click.FloatRange(0.1, 1000), default=20.0, show_default=True, help="Events a second each.")
@click.option("--events-per-turn", type=click.IntRange(1, 100_000), help="Short turns over and over [one long turn].")
@click.option("--seconds", type=click.FloatRange(0.5, 120), default=3.0, show_default=True, help="Of each window.")
@click.option("--rounds", type=click.IntRange(1, 20), default=1, show_default=True, help="Native, door, native, …")
@click.option("--h2c", is_flag=True, help="No TLS between simulator and gateway.")
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write every figure there.")
def doors(
    streams: int,
    rate: float,
    events_per_turn: int | None,
    seconds: float,
    rounds: int,
    h2c: bool,
    json_path: Path | None,
) -> None:
    """Stream turns by every door, native in between, and tell what an event costs to native's."""
    work = Work(streams=streams, rate_per_s=rate, events_per_turn=events_per_turn, seconds=seconds)
    _raise_open_files()
    try:
        with asyncio.Runner() as runner:
            report = runner.run(_until_terminated(doors_bench.run(work, rounds, h2c=h2c)))
    except (ProcessDied, FileNotFoundError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    except asyncio.CancelledError:
        sys.exit(143)
    click.echo(report.table())
    if json_path is not None:
        json_path.write_bytes(report.as_json())
    if report.wrong:
        sys.exit(1)


@main.command()
@click.option("--settlements", type=click.IntRange(100, 1_000_000), default=50_000, show_default=True)
@click.option("--tenants", type=click.IntRange(1, 1000), default=20, show_default=True)
@click.option("--batch", type=click.IntRange(1, 10_000), default=500, show_default=True, help="ledger.export_batch")
@click.option("--rounds", type=click.IntRange(1, 20), default=3, show_default=True)
def export(settlements: int, tenants: int, batch: int, rounds: int) -> None:
    """Export a ledger to PostgreSQL and tell what that costs; needs Debian's postgresql."""
    for _ in range(rounds):
        with asyncio.Runner(loop_factory=fast_loop()) as runner:
            click.echo(str(runner.run(export_bench.run(settlements, tenants, batch))))


@main.command()
@click.option("--short", is_flag=True, help="A few seconds, the gateway against the bare relay; 1 when past a bound.")
@click.option("--rounds", type=click.IntRange(1, 20), help="Each of fresh processes [3; 2 if short].")
@click.option("--seconds", type=click.FloatRange(0.5, 120), help="Of each window [5; 2 if short].")
@click.option("--shape", "shape_names", type=click.Choice(shapes.NAMES), multiple=True, help="May be repeated [all].")
@click.option("--contender", "names", type=click.Choice(CONTENDERS), multiple=True, help="May be repeated [all].")
@click.option(
    "--variant",
    "variants",
    type=VariantType(),
    multiple=True,
    metavar="NAME=[PYTHON][,VARIABLE=VALUE…]",
    help="Gateway and bare relay once more, on another Python or in another environment; may be repeated.",
)
@click.option("--litellm", type=click.Path(path_type=Path), help="The virtual environment that LiteLLM is in.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Write table, plot and raw data there.")
def compare(
    short: bool,
    rounds: int | None,
    seconds: float | None,
    shape_names: tuple[str, ...],
    names: tuple[str, ...],
    variants: tuple[Variant, ...],
    litellm: Path | None,
    out: Path | None,
) -> None:
    """Set the gateway beside relays and proxies, in one run on this machine.

    Exit status 1 means that a short run's ratio is past its bound, 2 that the gateway lost, repeated or got wrong
    something, or that something could not be measured.
    """
    _raise_open_files()
    chosen = shapes.shapes(shape_names or (shapes.SHORT if short else shapes.NAMES), seconds or (2.0 if short else 5.0))
    only = {*names, *compare_bench.SHORT} if names or short else None
    programs, missing = ([], []) if short else proxies.installed(litellm)
    try:
        with asyncio.Runner() as runner:
            comparison = runner.run(
                _until_terminated(
                    compare_bench.compare(
                        chosen,
                        only,
                        programs,
                        variants,
                        missing,
                        rounds or (2 if short else 3),
                        shlex.join(["python", "-m", "tests.bench", *sys.argv[1:]]),
                        lambda words: click.echo(words, err=True),
                    )
                )
            )
    except ProcessDied as error:
        raise click.ClickException(str(error)) from None
    except asyncio.CancelledError:
        sys.exit(143)
    click.echo(comparison.document(chosen))
    if out is not None:
        comparison.write(out, chosen)
    past, broken = goals.past_bounds(comparison.results) if short else [], comparison.broken()
    for words in (*past, *broken):
        click.echo(words, err=True)
    if past or broken:
        sys.exit(1 if past else 2)


@main.command()
@click.option("--turns", type=click.IntRange(1, 5000), default=1000, show_default=True, help="That stream at once.")
@click.option("--seconds", type=click.FloatRange(0.1, 60), default=2.5, show_default=True, help="Of each window.")
@click.option("--rounds", type=click.IntRange(1, 20), default=3, show_default=True, help="Each layout in turn, again …")
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write every figure there.")
def layouts(turns: int, seconds: float, rounds: int, json_path: Path | None) -> None:
    """Append to, publish from and replay logs that are laid out in several ways, and tell what each costs."""
    try:
        with asyncio.Runner(loop_factory=fast_loop()) as runner:
            work = layouts_bench.Work(turns=turns, seconds=seconds, rounds=rounds)
            report = runner.run(_until_terminated(layouts_bench.run(work)))
    except (ProcessDied, EmbeddedError) as error:
        raise click.ClickException(str(error)) from None
    except asyncio.CancelledError:
        sys.exit(143)
    click.echo(report.table())
    if json_path is not None:
        json_path.write_bytes(report.as_json())
    if any(one.lost for one in report.publishes):
        sys.exit(1)


@main.command()
@click.option(
    "--concurrency", type=click.IntRange(1, 5000), default=100, show_default=True, help="Decisions at a time."
)
@click.option("--seconds", type=click.FloatRange(0.1, 60), default=3.0, show_default=True, help="Of each window.")
@click.option("--rounds", type=click.IntRange(1, 20), default=3, show_default=True, help="Each plan in turn, again …")
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write every figure there.")
def admit(concurrency: int, seconds: float, rounds: int, json_path: Path | None) -> None:
    """Decide on limits, many requests at a time, and tell what a decision costs beside a plain aiohttp handler."""
    try:
        with asyncio.Runner(loop_factory=fast_loop()) as runner:
            report = runner.run(_until_terminated(admit_bench.run(concurrency, seconds, rounds)))
    except (ProcessDied, EmbeddedError) as error:
        raise click.ClickException(str(error)) from None
    except asyncio.CancelledError:
        sys.exit(143)
    click.echo(report.table())
    if json_path is not None:
        json_path.write_bytes(report.as_json())


@main.command()
@click.option("--turns", type=click.IntRange(1, 5000), default=200, show_default=True, help="That are struck at once.")
@click.option("--stops", type=click.IntRange(1, 20_000), default=2000, show_default=True, help="Turns that users stop.")
@click.option("--fault", "faults", type=click.Choice(list(STRIKES)), multiple=True, help="May be repeated [all].")
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write every figure there.")
def survive(turns: int, stops: int, faults: tuple[str, ...], json_path: Path | None) -> None:
    """Kill, stall and roll what stands between readers and the vendor; tell what readers and the ledger then hold.

    Every turn has two readers.
    """
    _raise_open_files()
    logging.getLogger("gateway").setLevel(logging.CRITICAL)  # here that is the harness's client of the store
    load = Load(turns=turns, late_turns=max(1, turns // 10), stops=stops)
    try:
        with asyncio.Runner(loop_factory=fast_loop()) as runner:
            report = runner.run(
                _until_terminated(
                    survive_bench.run(load, faults or tuple(STRIKES), lambda words: click.echo(words, err=True))
                )
            )
    except (ProcessDied, AssertionError, TimeoutError) as error:
        raise click.ClickException(str(error) or type(error).__name__) from None
    except asyncio.CancelledError:
        sys.exit(143)
    click.echo(report.table())
    if json_path is not None:
        json_path.write_bytes(report.as_json())
    if report.broken:
        sys.exit(1)


async def _run(
    work: Work, transport: Through, rounds: int, *, h2c: bool, baseline: bool, profile_path: Path | None
) -> Report:
    async with running(rate_per_s=work.rate_per_s, h2c=h2c, baseline=baseline) as stack:
        profile = profiler.command(stack.gateway.pid, work.seconds, profile_path) if profile_path is not None else None
        await warm_up(stack, transport)
        waiting = await wait_idle(stack, transport, work)
        phases = []
        for _ in range(rounds):
            phases.append(await measure(stack, "direct", work))
            phases.append(await measure(stack, transport, work))
            if baseline:
                phases.append(await measure(stack, "relay", work))
        if profile is not None:
            await measure(stack, transport, work, beside=profile)
        upstream = "h2c" if h2c else "HTTP/2 over TLS"
        return Report(work=work, transport=transport, upstream=upstream, waiting=waiting, phases=phases)


async def _until_terminated(work: Coroutine[Any, Any, T]) -> T:
    """SIGTERM cancels as Ctrl-C does, so that every process is ended on the way out."""
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


def _raise_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    main()
