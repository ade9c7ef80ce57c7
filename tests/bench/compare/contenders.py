"""What is compared, each as a rig that phases are measured on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx

from tests.bench.compare import proxies
from tests.bench.compare.proxies import Program
from tests.bench.compare.variants import Variant
from tests.bench.phase import Rig
from tests.bench.plan import Plan, Route
from tests.bench.process import Child, ProcessDied, free_port, tree
from tests.bench.stack import Runtime, clean_environ, clients, ready_url, running

OWN: Final = Runtime()
LISTENING_S: Final = 120.0  # LiteLLM imports for half a minute on a busy machine
POLL_S: Final = 0.05
SLOW: Final = "litellm"
# By module: name, title and route.
RELAYS: Final[dict[str, tuple[tuple[str, str, Route], ...]]] = {
    "relay": (("relay", "bare aiohttp relay, SSE", "relay"), ("relay-ws", "bare aiohttp relay, WebSocket", "relay-ws")),
    "callback_relay": (("callback", "callback relay, SSE", "relay"),),
}
CONTENDERS: Final = (
    "gateway",
    "gateway-ws",
    "gateway-2",
    *(name for lines in RELAYS.values() for name, _, _ in lines),
    *proxies.NAMES,
)


@dataclass(frozen=True, slots=True)
class Contender:
    """One line of the table. ``upstream`` names the line without anything between, whose delays are taken off."""

    name: str  # with @ and the name of its variant, if it is one
    title: str
    route: Route
    rig: Rig
    parts: tuple[str, ...]  # of the groups, whose CPU time is the contender's
    upstream: str

    @property
    def kind(self) -> str:
        """Its name, whatever it runs on."""
        return self.name.partition("@")[0]

    @property
    def slow(self) -> bool:
        """Whether it cannot carry the larger shapes on any machine that this is meant for."""
        return self.name == SLOW


@dataclass(frozen=True, slots=True)
class Proxied:
    """A rig with one process, or nothing, before the HTTP/1.1 source."""

    directory: Path
    url: str
    source_url: str
    source: Child
    proxy: Child | None
    key: str = "none"

    def groups(self, route: Route) -> dict[str, list[int]]:
        return {"proxy": self.remembering(route), "source": [self.source.pid]}

    def remembering(self, route: Route) -> list[int]:
        return [] if self.proxy is None else tree(self.proxy.pid)

    def plan(
        self,
        route: Route,
        *,
        streams: int,
        events: int,
        message: str,
        ramp_s: float,
        repeat: bool,
        readers: int = 1,
    ) -> Plan:
        return Plan(
            route=route,
            url=self.url,
            key=self.key,
            streams=streams,
            events=events,
            message=message,
            ramp_s=ramp_s,
            repeat=repeat,
            readers=readers,
        )

    def clients(self, plan: Plan) -> AbstractAsyncContextManager[Child]:
        return clients(plan, self.directory)

    async def metrics(self) -> dict[str, float]:
        return {}

    async def resets(self) -> dict[str, float]:
        async with httpx.AsyncClient() as http:
            lost: dict[str, float] = (await http.get(self.source_url)).raise_for_status().json()
            return lost


@asynccontextmanager
async def contending(
    names: Collection[str] | None,
    programs: Sequence[Program],
    variants: Sequence[Variant],
    absent: Callable[[str], None],
) -> AsyncIterator[list[Contender]]:
    """Start them all, those of ``names`` where it is given, and end them in the order of dependence.

    ``absent`` is told of each program that does not run.
    """

    def wanted(*any_of: str) -> bool:
        return names is None or any(name in names for name in any_of)

    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(running(rate_per_s=20.0, h2c=False, baseline=False))
        directory = gateway.directory
        whole = ("gateway", "valkey")
        found = [
            Contender("direct", "nothing, HTTP/2 over TLS", "direct", gateway, (), "direct"),
            Contender("gateway", "gateway, SSE", "sse", gateway, whole, "direct"),
            Contender("gateway-ws", "gateway, WebSocket", "ws", gateway, whole, "direct"),
        ]

        async def start(child: Child) -> Child:
            return await stack.enter_async_context(child)

        async def start_module(name: str, *arguments: str, runtime: Runtime = OWN) -> Child:
            command = [runtime.python, "-m", f"tests.bench.{name}", *arguments]
            return await start(Child(name, command, directory / f"{name}.log", {**clean_environ(), **runtime.environ}))

        if wanted("gateway-2"):
            two = await stack.enter_async_context(running(rate_per_s=20.0, h2c=False, baseline=False, workers=2))
            found.append(Contender("gateway-2", "gateway, SSE, 2 workers", "sse", two, whole, "direct"))
        for variant in variants if wanted("gateway") else ():
            rig_of = running(rate_per_s=20.0, h2c=False, baseline=False, runtime=variant.runtime)
            other = await stack.enter_async_context(rig_of)
            name, title = f"gateway@{variant.name}", f"gateway, SSE, {variant.name}"
            found.append(Contender(name, title, "sse", other, whole, "direct"))

        source = await start_module("source", "--rate", "20")
        source_url = await ready_url(source)
        nothing = Proxied(directory, source_url, source_url, source, None)
        found.append(Contender("source", "nothing, HTTP/1.1", "relay", nothing, (), "source"))
        parts = ("proxy",)
        for module, lines in RELAYS.items():
            if wanted(*(name for name, _, _ in lines)):
                child = await start_module(module, source_url)
                rig = Proxied(directory, await ready_url(child), source_url, source, child)
                found += [Contender(name, title, route, rig, parts, "source") for name, title, route in lines]
        for variant in variants if wanted("relay") else ():
            child = await start_module("relay", source_url, runtime=variant.runtime)
            rig = Proxied(directory, await ready_url(child), source_url, source, child)
            name, title = f"relay@{variant.name}", f"bare aiohttp relay, SSE, {variant.name}"
            found.append(Contender(name, title, "relay", rig, parts, "source"))
        source_port = urlsplit(source_url).port
        assert source_port is not None
        for program in programs:
            if wanted(program.name):
                port = free_port()
                command = program.command(directory / program.name, port, source_port)
                log, environ = directory / f"{program.name}.log", clean_environ() | program.environ
                child = await start(Child(program.name, command, log, environ, directory=proxies.ROOT))
                try:
                    await _listening(child, port)
                except ProcessDied as error:
                    absent(f"{program.title}: skipped, {str(error).splitlines()[0]}")
                    continue
                litellm = program.name == "litellm"
                key = proxies.LITELLM_KEY if litellm else "none"
                rig = Proxied(directory, f"http://127.0.0.1:{port}", source_url, source, child, key)
                route: Route = "openai" if litellm else "relay"
                found.append(Contender(program.name, program.title, route, rig, parts, "source"))
        yield [one for one in found if names is None or one.kind in (*names, "direct", "source")]


async def _listening(child: Child, port: int) -> None:
    """Wait until a port takes connections; raises ProcessDied with the end of the child's log."""
    try:
        async with asyncio.timeout(LISTENING_S):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except ConnectionRefusedError:
                    child.expect_alive()
                    await asyncio.sleep(POLL_S)
                else:
                    writer.close()
                    return
    except TimeoutError:
        raise ProcessDied(f"{child.name} does not listen after {LISTENING_S:g} s") from None
