"""What every command shares: its options, its settings, and how its work is run and its failure told in one line."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from gateway.settings import Settings

T = TypeVar("T")

CONFIG = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="TOML file with settings (GATEWAY_CONFIG).",
)
REDIS_URL = click.option("--redis-url", help="Use this Redis or Valkey instead of the embedded one.")


def load_settings(
    config: Path | None, environ: Mapping[str, str], overrides: Mapping[str, object], *, vendor_key: bool = True
) -> Settings:
    """Load the settings and send the log where they say; raises click.ClickException.

    ``vendor_key``: the command is of no use without the keys that its tenants ask Hyperleap with.
    """
    from gateway.sections import SettingsError
    from gateway.settings import load
    from gateway.store.embedded import is_gone
    from gateway.telemetry.logging import configure
    from gateway.upstream.key_files import KeyFiles

    if is_gone(environ.get("GATEWAY_REDIS_URL", "")):  # a shell that has sourced an env file may start anew
        environ = {name: value for name, value in environ.items() if name != "GATEWAY_REDIS_URL"}
    try:
        settings = load(config, environ, overrides)
        keys = KeyFiles(settings.upstream).require(settings.tenant_values()) if vendor_key else {}
        configure(settings.logging, secrets=list(keys.values()))
    except SettingsError as error:
        raise click.ClickException(str(error)) from None
    return settings


def perform(work: Coroutine[Any, Any, T]) -> T:
    """Run the work on uvloop where it exists, and say in one line what ended it."""
    from gateway.core.errors import GatewayError
    from gateway.sections import SettingsError
    from gateway.store.embedded import EmbeddedError
    from gateway.supervisor import StartFailed

    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(work)
    except SettingsError as error:
        raise click.ClickException(str(error)) from None
    except (GatewayError, EmbeddedError, StartFailed, OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:  # Windows, PyPy
        return asyncio.new_event_loop
    return uvloop.new_event_loop
