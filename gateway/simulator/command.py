"""Command: ``hyperleap-gateway simulate`` runs the stand-in until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import click

from gateway.simulator.faults import MEANINGS, Fault, FaultName, parse_fault
from gateway.simulator.server import DEFAULT_API_KEY, Simulator, SimulatorSettings

DEFAULT_PORT = 8443


class _FaultType(click.ParamType[Fault]):
    name = "NAME[:PARAM][@EVERY]"

    def convert(self, value: str | Fault, param: click.Parameter | None, ctx: click.Context | None) -> Fault:
        if isinstance(value, Fault):
            return value
        try:
            return parse_fault(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _list_faults(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    for name in FaultName:
        meaning = MEANINGS[name]
        default = "" if meaning.default is None or meaning.param == "unused" else f" [{meaning.default:g}]"
        takes = "" if meaning.param == "unused" else f"  PARAM: {meaning.param}{default}"
        click.echo(f"{name:<18}{meaning.does}.{takes}")
    ctx.exit(0)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=DEFAULT_PORT, show_default=True, help="0 picks a free one."
)
@click.option("--h2c", is_flag=True, help="HTTP/2 without TLS (prior knowledge) instead of TLS with ALPN.")
@click.option("--api-key", default=DEFAULT_API_KEY, show_default=True, help="The key that callers must show.")
@click.option("--more-api-key", "more_api_keys", multiple=True, help="Another key of the same workspace.")
@click.option(
    "--other-workspace", "other_workspaces", multiple=True, metavar="KEY[,KEY…]",
    help="The keys of another workspace, which finds only its own conversations.",
)  # fmt: skip
@click.option(
    "--rate", type=click.FloatRange(0), default=25.0, show_default=True, help="Items a second and stream; 0: no limit."
)
@click.option(
    "--first-token-s", type=click.FloatRange(0), default=0.3, show_default=True, help="Seconds before the first item."
)
@click.option("--fault", "faults", type=_FaultType(), multiple=True, help="Misbehave on purpose; may be repeated.")
@click.option(
    "--list-faults", is_flag=True, expose_value=False, is_eager=True, callback=_list_faults, help="Explain the faults."
)
@click.option("--max-streams", type=click.IntRange(1), default=100, show_default=True, help="MAX_CONCURRENT_STREAMS.")
@click.option(
    "--on-disconnect", type=click.Choice(["finish", "drop"]), default="finish", show_default=True,
    help="Whether an answer whose reader left is completed, or kept as far as it was sent.",
)  # fmt: skip
@click.option("--persona", "personas", multiple=True, help="A known persona id; without any, every UUID is one.")
@click.option("--prompt", "prompts", multiple=True, help="A known prompt id; without any, every UUID is one.")
@click.option("--blob", is_flag=True, help="Keep messages behind a blob URI.")
@click.option("--raw-utf8", is_flag=True, help="Send non-ASCII as UTF-8 instead of escapes.")
@click.option("--limit-per-minute", type=click.IntRange(0), default=0, help="Plan limit of each key; 0: none.")
@click.option(
    "--data-dir", type=click.Path(path_type=Path, file_okay=False), default=None,
    help="Keeps the CA and certificate over restarts (otherwise a temporary directory).",
)  # fmt: skip
@click.option(
    "--ca-file", type=click.Path(path_type=Path, dir_okay=False), default=None,
    help="Also write the CA certificate there.",
)  # fmt: skip
@click.option(
    "--ready-file", type=click.Path(path_type=Path, dir_okay=False), default=None,
    help="Write the URL there once the port is open.",
)  # fmt: skip
@click.option(
    "--until-stdin-closes", is_flag=True,
    help="End when standard input does, so that a child never outlives the process that started it.",
)  # fmt: skip
def simulate(
    host: str,
    port: int,
    h2c: bool,
    api_key: str,
    more_api_keys: tuple[str, ...],
    other_workspaces: tuple[str, ...],
    rate: float,
    first_token_s: float,
    faults: tuple[Fault, ...],
    max_streams: int,
    on_disconnect: Literal["finish", "drop"],
    personas: tuple[str, ...],
    prompts: tuple[str, ...],
    blob: bool,
    raw_utf8: bool,
    limit_per_minute: int,
    data_dir: Path | None,
    ca_file: Path | None,
    ready_file: Path | None,
    until_stdin_closes: bool,
) -> None:
    """Run a stand-in Hyperleap that speaks the vendor's contract over HTTP/2.

    Once it listens, one line `ready URL` goes to standard output. SIGINT and SIGTERM end it with status 0. What it was
    asked and what that cost is at /_simulator/bill and /_simulator/state (no key needed).
    """
    try:
        settings = SimulatorSettings(
            host=host,
            port=port,
            h2c=h2c,
            api_key=api_key,
            more_api_keys=more_api_keys,
            other_workspaces=tuple(tuple(keys.split(",")) for keys in other_workspaces),
            rate_per_s=rate,
            first_token_s=first_token_s,
            faults=faults,
            max_concurrent_streams=max_streams,
            on_disconnect=on_disconnect,
            personas=personas,
            prompts=prompts,
            blob=blob,
            raw_utf8=raw_utf8,
            limit_per_minute=limit_per_minute,
            data_dir=data_dir,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    try:
        _run(settings, ca_file, ready_file, until_stdin_closes)
    except OSError as error:
        raise click.ClickException(f"cannot listen on {host} port {port}: {error.strerror or error}") from None


def _run(settings: SimulatorSettings, ca_file: Path | None, ready_file: Path | None, until_stdin_closes: bool) -> None:
    # Event loops warn about each write to a peer that has just left; here peers leave in mid-answer all the time.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(settings, ca_file, ready_file, until_stdin_closes))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:  # where there is none (Windows, PyPy), asyncio's own loop does
        return asyncio.new_event_loop
    return uvloop.new_event_loop


async def _serve(
    settings: SimulatorSettings, ca_file: Path | None, ready_file: Path | None, until_stdin_closes: bool
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with Simulator(settings) as simulator:
        _announce(simulator, ca_file, ready_file)
        if until_stdin_closes:
            await loop.connect_read_pipe(lambda: _StdinWatch(stop), sys.stdin)
        await stop.wait()


class _StdinWatch(asyncio.Protocol):
    def __init__(self, stop: asyncio.Event) -> None:
        self._stop = stop

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop.set()


def _announce(simulator: Simulator, ca_file: Path | None, ready_file: Path | None) -> None:
    if ca_file is not None and simulator.ca_file is not None:
        ca_file.write_bytes(simulator.ca_file.read_bytes())
    click.echo(f"url      {simulator.url}")
    click.echo(f"key      {simulator.settings.api_key}")
    click.echo(f"ca file  {ca_file or simulator.ca_file or '(none: no TLS)'}")
    if ready_file is not None:
        temporary = ready_file.with_name(ready_file.name + ".part")
        temporary.write_text(simulator.url + "\n", encoding="utf-8")
        temporary.replace(ready_file)  # a parent that waits for the file never reads half of it
    click.echo(f"ready {simulator.url}")


if __name__ == "__main__":
    simulate()
