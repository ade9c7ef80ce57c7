"""Two gateways behind each proxy, of which one is replaced while people talk: nobody loses an answer."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import signal
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import ClientSession

from gateway.simulator.server import Simulator, SimulatorSettings
from tests.conftest import PERSONA_ID, VENDOR_KEY
from tests.deploy.conftest import Front, StartFront
from tests.deploy.proxies import PROXIES, Proxy, Upstream
from tests.store.topologies import free_port
from tests.test_commands import Command, run
from tests.transports.client import ENDINGS, Event, Reader, check_log, eventually

HOSTS = ("127.0.0.11", "127.0.0.12")
WITHIN_S = 60.0
TENANT = """
[tenants.{name}]
limits.tenant = {{ requests_per_min = 0 }}
limits.user = {{ requests_per_min = 0, concurrent_turns = 0 }}
[tenants.{name}.personas.default]
persona_id = "{persona}"
"""


class Pair:
    """Two gateways on one store, on two addresses with the same ports, as two machines have them."""

    def __init__(self, directory: Path, store_url: str, simulator: Simulator, ports: tuple[int, int]) -> None:
        self.directory = directory
        self.ports = ports
        config = directory / "gateway.toml"
        config.write_text(TENANT.format(name=f"roll-{uuid.uuid4().hex[:8]}", persona=PERSONA_ID), "utf-8")
        self.environ = {
            "GATEWAY_CONFIG": str(config),
            "GATEWAY_REDIS_URL": store_url,
            "HYPERLEAP_BASE_URL": simulator.url,
            "HYPERLEAP_API_KEY": VENDOR_KEY,
            "GATEWAY_LOG_LEVEL": "warning",  # nobody reads what it says until it has ended
            "GATEWAY_DRAIN_S": "20",
            "GATEWAY_DRAIN_SPREAD_S": "1",
            "GATEWAY_STREAMS_RETRY_MS": "100",
        }
        for name in ("PEPPER", "SIGNING_KEY"):
            path = directory / name.lower()
            path.write_text(secrets.token_hex(32), "ascii")
            path.chmod(0o600)
            self.environ[f"GATEWAY_{name}_FILE"] = str(path)

    @contextlib.asynccontextmanager
    async def gateway(self, number: int, **environ: str) -> AsyncIterator[Command]:
        """Run one of them; it is killed when the context ends, unless it has ended."""
        directory = self.directory / f"gateway-{number}"
        directory.mkdir(exist_ok=True)
        host, (port, internal_port) = HOSTS[number], self.ports
        arguments = ("--port", str(port), "--internal-port", str(internal_port))
        env_file = ("--env-file", str(directory / "gateway.env")) if number == 0 else ()
        hosts = {"GATEWAY_HOST": host, "GATEWAY_INTERNAL_HOST": host}
        async with run(directory, "serve", *arguments, *env_file, **self.environ, **hosts, **environ) as command:
            await self.listening(number, command)
            yield command

    async def listening(self, number: int, command: Command) -> None:
        async def open_() -> bool:
            assert command.process.returncode is None, (await command.finish())[1]
            with contextlib.suppress(OSError):
                (await asyncio.open_connection(HOSTS[number], self.ports[1]))[1].close()
                return True
            return False

        await eventually(open_, "the gateway to listen", within_s=WITHIN_S)

    @property
    def upstreams(self) -> tuple[Upstream, Upstream]:
        return Upstream(HOSTS[0], *self.ports), Upstream(HOSTS[1], *self.ports)


class Talk:
    """Somebody who says one thing after another through the proxy, as ``client.js`` does.

    A stream that ends before its turn is followed on from its last event; a message that was refused because the
    gateway drains is sent again, under the same key.
    """

    def __init__(self, front: Front, secret_key: str) -> None:
        self.front, self.secret_key = front, secret_key
        self.refused = self.resumed = 0
        self.answers: list[list[Event]] = []
        self.user = f"u-{uuid.uuid4().hex[:8]}"

    async def go(self, done: asyncio.Event) -> None:
        async with self.front.session() as http:
            key = {"Authorization": f"Bearer {self.secret_key}"}
            url, mine = self.front.url, {"user_id": self.user}
            async with http.post(f"{url}/v1/sessions", json=mine, headers=key) as response:
                assert response.status == 201, await response.text()
                headers = {"Authorization": f"Bearer {(await response.json())['token']}"}
            async with http.post(f"{url}/v1/conversations", json={}, headers=headers) as response:
                assert response.status == 201, await response.text()
                conversation = (await response.json())["id"]
            headers["Accept"] = "text/event-stream"
            for number in itertools.count():
                if done.is_set():
                    return
                self.answers.append(await self._say(http, conversation, headers | {"Idempotency-Key": f"k{number}"}))

    async def _say(self, http: ClientSession, conversation: str, headers: dict[str, str]) -> list[Event]:
        url = f"{self.front.url}/v1/conversations/{conversation}/turns"
        while True:
            async with http.post(url, json={"message": "Tell me #tokens=90 #rate=20"}, headers=headers) as response:
                if response.status == 200:
                    reader = Reader(response)
                    events = list(await reader.rest(WITHIN_S))
                    break
                assert response.status == 503, await response.text()
                assert (await response.json())["code"] == "draining"
                self.refused += 1
                await asyncio.sleep(float(response.headers["Retry-After"]) / 2)  # our own clients come back as told
        while events[-1].name not in ENDINGS:
            self.resumed += 1
            follow = f"{self.front.url}/v1/turns/{reader.turn_id}/events"
            async with http.get(follow, headers=headers | {"Last-Event-ID": events[-1].id}) as response:
                assert response.status == 200, await response.text()
                events += await Reader(response).rest(WITHIN_S)
        return events


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("proxy", PROXIES, ids=lambda proxy: proxy.name)
async def test_replacing_a_gateway_behind_a_proxy_loses_no_answer(
    proxy: Proxy, front: StartFront, tmp_path: Path, store_url: str
) -> None:
    """While ten people talk, one of two gateways drains and ends: every answer is whole, read once and made once."""
    if proxy.program is None:
        pytest.skip(f"no {proxy.name}: install {proxy.package}")
    async with contextlib.AsyncExitStack() as stack:
        simulator = await stack.enter_async_context(Simulator(SimulatorSettings(api_key=VENDOR_KEY, h2c=True)))
        pair = Pair(tmp_path, store_url, simulator, (free_port(), free_port()))
        # A proxy that asks for readiness is given the time to; one that does not sees that nobody listens any more.
        notice = {"GATEWAY_DRAIN_NOTICE_S": "3" if proxy.ready_checks else "0"}
        leaving = await stack.enter_async_context(pair.gateway(0, **notice))
        facts = await leaving.facts()
        staying = await stack.enter_async_context(pair.gateway(1, **notice))
        to = await stack.enter_async_context(front(proxy, pair.upstreams))
        done, talks = asyncio.Event(), [Talk(to, facts["GATEWAY_SECRET_KEY"]) for _ in range(10)]
        async with asyncio.timeout(WITHIN_S * 2), asyncio.TaskGroup() as group:
            for talk in talks:
                group.create_task(talk.go(done))
            await eventually(lambda: len(simulator.bill) >= 10, "people to talk", within_s=WITHIN_S)
            leaving.process.send_signal(signal.SIGTERM)
            _, words = await leaving.finish()
            seen = len(simulator.bill)
            await eventually(lambda: len(simulator.bill) >= seen + 5, "people to talk on", within_s=WITHIN_S)
            done.set()
        assert leaving.process.returncode == 0, words
        answers = [answer for talk in talks for answer in talk.answers]
        assert [check_log(answer).name for answer in answers] == ["turn.completed"] * len(answers)
        assert len(simulator.bill) == len(answers)  # none was made twice
        assert sum(talk.resumed for talk in talks) > 0  # some were sent on, or nothing was shown here
        await staying.end()
