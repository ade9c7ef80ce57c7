"""What the shipped proxies add to the way of an event: ``python -m tests.deploy.delay``.

A demo gateway, its stand-in for Hyperleap and the proxy run in processes of their own; streams are read over TLS here,
those without a proxy as they come from the gateway. Each delta tells when it was made (``#clock``).
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import trustme
from aiohttp import ClientSession

from gateway.protocol.sse import SseDecoder
from tests.deploy.conftest import Front
from tests.deploy.proxies import HOST, PROXIES, Proxy, Setting, Upstream
from tests.store.topologies import free_port
from tests.test_commands import ports, run
from tests.transports.client import eventually

STREAMS = 20
EVENTS = 60
RATE_PER_S = 20
ROUNDS = 3


async def main() -> None:
    """Print a row a proxy: median and 90th percentile of the delay, over all rounds, less those of no proxy."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        async with run(directory, "demo", *ports(directory), GATEWAY_LOG_LEVEL="error") as command:
            facts = await command.facts()
            found: dict[str, list[float]] = {}
            for _ in range(ROUNDS):
                async with ClientSession() as http:
                    found.setdefault("none", []).extend(await delays_ms(http, facts["GATEWAY_URL"], facts))
                for proxy in PROXIES:
                    if proxy.program is None:
                        continue
                    async with fronted(proxy, directory, facts) as front, front.session() as http:
                        found.setdefault(proxy.name, []).extend(await delays_ms(http, front.url, facts))
            await command.end()
    nothing = quantiles(found["none"])
    print(f"{'none':8} p50 {nothing[0]:6.2f} ms  p90 {nothing[1]:6.2f} ms")
    for one, all_ms in found.items():
        if one != "none":
            median, late = quantiles(all_ms)
            print(f"{one:8} p50 {median - nothing[0]:+5.2f} ms  p90 {late - nothing[1]:+5.2f} ms")


@contextlib.asynccontextmanager
async def fronted(proxy: Proxy, directory: Path, facts: dict[str, str]) -> AsyncIterator[Front]:
    """Run a proxy in front of the demo."""
    address, internal = urlsplit(facts["GATEWAY_URL"]), urlsplit(facts["GATEWAY_INTERNAL_URL"])
    assert address.port is not None
    assert internal.port is not None
    gateway, authority = Upstream("127.0.0.1", address.port, internal.port), trustme.CA()
    made = Setting(
        directory=Path(tempfile.mkdtemp(dir=directory)),
        port=free_port(),
        gateways=(gateway, gateway),
        certificate=authority.issue_cert(HOST),
    )
    async with proxy.run(made) as log:
        root = made.directory / "caddy/pki/authorities/local/root.crt" if proxy.name == "caddy" else None
        if root is not None:
            await eventually(root.exists, "Caddy's own authority", within_s=10)
        front = Front(port=made.port, log=log, authority=authority, root=root)
        await front.answers()
        yield front


async def delays_ms(http: ClientSession, url: str, facts: dict[str, str]) -> list[float]:
    """Read some streams at a time; return how long after it was made each event came."""
    async with http.post(
        f"{url}/v1/sessions",
        json={"user_id": "ada"},
        headers={"Authorization": f"Bearer {facts['GATEWAY_SECRET_KEY']}"},
    ) as response:
        headers = {"Authorization": f"Bearer {(await response.json())['token']}", "Accept": "text/event-stream"}

    async def one() -> list[float]:
        async with http.post(f"{url}/v1/conversations", json={}, headers=headers) as response:
            conversation = (await response.json())["id"]
        found, decoder = [], SseDecoder()
        message = {"message": f"#clock #tokens={EVENTS} #rate={RATE_PER_S}"}
        async with http.post(f"{url}/v1/conversations/{conversation}/turns", json=message, headers=headers) as response:
            async for data in response.content.iter_any():
                came_ns = time.monotonic_ns()
                for event in decoder.feed(data):
                    if event.event == "message.delta":
                        made = msgspec.json.decode(event.data)["text"].split("@")[-1]
                        found.append((came_ns - int(made)) / 1e6)
        return found

    return [ms for all_ms in await asyncio.gather(*(one() for _ in range(STREAMS))) for ms in all_ms]


def quantiles(all_ms: list[float]) -> tuple[float, float]:
    tenths = statistics.quantiles(all_ms, n=10)
    return tenths[4], tenths[8]


if __name__ == "__main__":
    asyncio.run(main())
