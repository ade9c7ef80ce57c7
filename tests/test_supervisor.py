"""``--workers N``: real processes that crash, are rolled under load and end, seen from outside."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import ClientSession, ClientTimeout, ClientWebSocketResponse, TCPConnector, WSMsgType
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from gateway.protocol.sse import SseDecoder
from gateway.simulator.server import Simulator, SimulatorSettings
from tests.conftest import PERSONA_ID, VENDOR_KEY
from tests.test_commands import (
    STEP_S,
    Command,
    chat,
    descendants,
    gone,
    kill_store,
    logged,
    ports,
    replay,
    run,
    store_pid,
    transcript,
    turn_runs,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and only Linux balances sockets"),
]

ADMIN_TOKEN = "0123456789abcdef0123456789abcdef-of-an-operator"
ENDINGS = {"turn.completed", "turn.stopped", "turn.failed"}


@contextlib.asynccontextmanager
async def demo(tmp_path: Path, *arguments: str, **environ: str) -> AsyncIterator[tuple[Command, dict[str, str]]]:
    """Run a demo of two workers that answers."""
    async with run(tmp_path, "demo", "--workers", "2", *ports(tmp_path), *arguments, **environ) as command:
        yield command, await command.facts()


def workers(pid: int) -> set[int]:
    """The worker processes below a supervisor."""
    found = set()
    for child in descendants(pid):
        with contextlib.suppress(OSError):
            if b"--control-fd" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.add(child)
    return found


async def until(what: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(STEP_S):
        while not await what():
            await asyncio.sleep(0.02)


def fresh() -> ClientSession:
    """A client that opens a connection for every request."""
    return ClientSession(connector=TCPConnector(force_close=True), timeout=ClientTimeout(total=STEP_S))


async def scrape(facts: dict[str, str], *, openmetrics: bool = False) -> list[Metric]:
    """Read the metrics as Prometheus does; no series may be told twice, and no family."""
    headers = {"Accept": "application/openmetrics-text; version=1.0.0"} if openmetrics else {}
    async with fresh() as http, http.get(f"{facts['GATEWAY_INTERNAL_URL']}/metrics", headers=headers) as response:
        assert response.status == 200
        text = await response.text()
    families = list(parse_openmetrics(text) if openmetrics else parse_text(text))  # type: ignore[no-untyped-call]  # the library's
    series = [(sample.name, tuple(sorted(sample.labels.items()))) for family in families for sample in family.samples]
    assert len(series) == len(set(series)) > 50
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
    return families


async def values(facts: dict[str, str], name: str) -> dict[str, float]:
    """Sum a metric by the label ``worker``."""
    sums: dict[str, float] = {}
    for family in await scrape(facts):
        for sample in family.samples:
            if sample.name == name:
                worker = sample.labels.get("worker", "")
                sums[worker] = sums.get(worker, 0) + sample.value
    return sums


async def readiness(facts: dict[str, str]) -> tuple[int, dict[str, str]]:
    async with fresh() as http, http.get(f"{facts['GATEWAY_INTERNAL_URL']}/readyz") as response:
        checks: dict[str, str] = (await response.json())["checks"]
        return response.status, checks


async def page(http: ClientSession, facts: dict[str, str], within_s: float) -> int:
    async with asyncio.timeout(within_s), http.get(f"{facts['GATEWAY_URL']}/") as response:
        return response.status


async def hears(facts: dict[str, str]) -> bool:
    """Whether every worker hears the others."""
    return (await readiness(facts))[1]["peers"] == "ok"


async def both_ready(facts: dict[str, str]) -> bool:
    status, checks = await readiness(facts)
    return status == 200 and set(checks.values()) == {"ok"}


class Reader:
    """A client of one conversation that does as an EventSource does: it comes back with its cursor."""

    def __init__(self, facts: dict[str, str], token: str, conversation: str) -> None:
        self.returns = 0  # how often a stream ended before its turn
        self.turns = 0
        self.refusals = 0
        self._url = facts["GATEWAY_URL"]
        self._headers = {"Authorization": f"Bearer {token}", "Accept": "text/event-stream"}
        self._conversation = conversation

    async def chat(self, message: str) -> None:
        """Run one turn and check that every event came once, in order, and the text is whole."""
        async with fresh() as http:
            events: list[tuple[str, str, dict[str, Any]]] = []
            url, method, body = f"{self._url}/v1/conversations/{self._conversation}/turns", "POST", {"message": message}
            headers = dict(self._headers)
            while not events or events[-1][1] not in ENDINGS:
                decoder = SseDecoder()
                async with http.request(
                    method, url, json=body if method == "POST" else None, headers=headers
                ) as response:
                    if method == "POST" and response.status == 503:
                        assert (await response.json())["code"] == "draining"
                        assert float(response.headers["Retry-After"]) >= 1
                        self.refusals += 1
                        continue
                    assert response.status == 200, await response.text()
                    method, url = "GET", f"{self._url}/v1/turns/{response.headers['x-turn-id']}/events"
                    async for data in response.content.iter_any():
                        for event in decoder.feed(data):
                            assert event.id is not None
                            events.append((event.id, event.event, msgspec.json.decode(event.data)))
                if events[-1][1] not in ENDINGS:
                    self.returns += 1
                    assert decoder.retry_ms is not None
                    await asyncio.sleep(decoder.retry_ms / 1000)
                    headers["Last-Event-ID"] = events[-1][0]
        positions = [int(event_id.rpartition(".")[2]) for event_id, _, _ in events]
        assert positions == sorted(set(positions))
        names = [name for _, name, _ in events]
        assert names.count("turn.started") == names.count("message.started") == 1
        assert names[-1] == "turn.completed"
        assert len(ENDINGS & set(names)) == 1
        assert "".join(data["text"] for _, name, data in events if name == "message.delta") == events[-1][2]["text"]
        self.turns += 1


@contextlib.contextmanager
def unchanged(path: Path) -> Iterator[None]:
    before = path.stat()
    yield
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


async def test_workers_share_new_connections_and_tell_their_metrics_apart(tmp_path: Path) -> None:
    """Both slots take connections; one port tells both workers' metrics, labelled, in either format."""
    async with demo(tmp_path, "--rate", "0") as (command, facts):
        assert len(workers(command.process.pid)) == 2
        async with fresh() as http:
            for _ in range(100):
                async with http.get(f"{facts['GATEWAY_URL']}/docs/errors") as response:
                    await response.read()
        taken = await values(facts, "gateway_requests_total")
        assert set(taken) == {"0", "1"}
        assert sum(taken.values()) >= 100
        assert min(taken.values()) >= 20
        assert (await chat(facts, "Hello"))["event"] == "turn.completed"
        families = {family.name: family for family in await scrape(facts, openmetrics=True)}
        assert {sample.labels["worker"] for sample in families["process_cpu_seconds"].samples} == {"0", "1"}
        buckets = [s for s in families["gateway_redis_call_seconds"].samples if s.name.endswith("_bucket")]
        assert {sample.labels["worker"] for sample in buckets} == {"0", "1"}
        ready = {sample.labels["worker"]: sample.value for sample in families["gateway_worker_ready"].samples}
        assert ready == {"0": 1, "1": 1}
        status, checks = await readiness(facts)
        assert (status, checks.pop("peers") in ("ok", "deaf")) == (200, True)
        assert checks == {"supervisor": "ok", "store": "ok", "worker_0": "ok", "worker_1": "ok"}
        await until(lambda: hears(facts))
        for pid in workers(command.process.pid):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[3:-1]
            assert words[:2] == [b"worker", b"--control-fd"]
            assert len(words) == 3  # nothing of the settings
        children = descendants(command.process.pid)
        out, err = await command.end()
        assert command.process.returncode == 0, err
        assert out.count("/#key=") == 1
        await gone(children)


async def test_crashed_worker_is_restarted_and_the_others_are_told(tmp_path: Path) -> None:
    """After ``kill -9`` of a worker every connection is answered in time, and a new worker takes its slot."""
    async with demo(tmp_path, "--rate", "0") as (command, facts):
        before = workers(command.process.pid)
        with unchanged(tmp_path / "gateway.env"):
            os.kill(min(before), signal.SIGKILL)
            await gone({min(before)})
            # Half of these wait in the dead worker's queue, for its replacement or for the other worker.
            async with fresh() as http:
                assert await asyncio.gather(*(page(http, facts, 2.0) for _ in range(40))) == [200] * 40
            await until(lambda: both_ready(facts))
        after = workers(command.process.pid)
        assert len(after) == 2
        assert len(after & before) == 1
        lost = await values(facts, "gateway_worker_lost_total")
        assert sorted(lost.values()) == [0, 1]
        assert (await chat(facts, "Hello"))["event"] == "turn.completed"
        _, err = await command.end()
        events = [msgspec.json.decode(line) for line in err.splitlines()]
        died = next(event for event in events if event["event"] == "worker.lost")
        told = [event for event in events if event["event"] == "peer.lost"]
        # The other worker at once, and the new one when it is ready: it may be all that is left.
        assert [event["worker_id"] for event in told] == [died["worker_id"]] * 2
        assert [event["worker"] == str(died["slot"]) for event in told] == [False, True]


async def test_slot_that_cannot_be_served_is_closed_and_opened_again(tmp_path: Path) -> None:
    """While no replacement gets ready, new connections go to the other slot after a second, and none waits."""
    config = tmp_path / "gateway.toml"
    config.write_text("[logging]\nlevel = 'info'\n", "utf-8")
    async with demo(tmp_path, "--config", str(config)) as (command, facts):
        config.write_text("[logging]\nlevel = 'chatty'\n", "utf-8")  # nothing can start with this
        killed = min(workers(command.process.pid))
        os.kill(killed, signal.SIGKILL)
        await gone({killed})
        async with fresh() as http:
            # Half of these wait in the dead worker's queue, until it is closed and the other worker gets them.
            assert await asyncio.gather(*(page(http, facts, 2.0) for _ in range(40))) == [200] * 40
            assert [await page(http, facts, 0.5) for _ in range(40)] == [200] * 40
        status, checks = await readiness(facts)
        assert status == 200
        assert sorted(state for name, state in checks.items() if name.startswith("worker_")) == ["ok", "starting"]
        config.write_text("[logging]\nlevel = 'info'\n", "utf-8")
        command.process.send_signal(signal.SIGHUP)  # tries at once, whatever the pause has grown to
        await until(lambda: both_ready(facts))
        await command.end()


async def test_roll_under_load_loses_no_connection_and_no_event(tmp_path: Path) -> None:
    """SIGHUP replaces both workers while clients connect, chat and read: no reset, no refusal, each event once."""
    options = {"GATEWAY_DRAIN_SPREAD_S": "0.7", "GATEWAY_DRAIN_S": "15", "GATEWAY_STREAMS_RETRY_MS": "200"}
    options["GATEWAY_LOG_LEVEL"] = "warning"  # a line a request would fill the pipe that nobody reads yet
    async with demo(tmp_path, "--rate", "20", **options) as (command, facts), contextlib.AsyncExitStack() as stack:
        before = workers(command.process.pid)
        opened = [await chat(facts, "Hello #rate=0", user=f"u{n}") for n in range(6)]
        readers = [Reader(facts, session["token"], session["conversation"]) for session in opened]
        headers = {"Authorization": f"Bearer {opened[0]['token']}"}
        url = f"{facts['GATEWAY_URL']}/v1/conversations"
        sessions = [await stack.enter_async_context(ClientSession()) for _ in range(6)]
        sockets: list[ClientWebSocketResponse] = [
            await stack.enter_async_context(
                http.ws_connect(f"{facts['GATEWAY_URL']}/v1/ws", protocols=("hyperleap.chat.v1",), headers=headers)
            )
            for http in sessions
        ]
        closings = [asyncio.create_task(socket.receive()) for socket in sockets]  # answers the close in time
        over = asyncio.Event()
        seen: set[str] = set()
        asked = 0

        async def talk(reader: Reader) -> None:
            while not over.is_set():
                await reader.chat("Tell me #tokens=30")

        async def ask(http: ClientSession) -> None:
            nonlocal asked
            while not over.is_set():
                async with http.get(url, headers=headers) as response:
                    assert response.status == 200
                    await response.read()
                asked += 1
                await asyncio.sleep(0.005)

        async def watch() -> None:
            while not over.is_set():
                assert (await readiness(facts))[0] == 200
                seen.update(await values(facts, "process_start_time_seconds"))
                if (await values(facts, "gateway_worker_rolls_total")).get("", 0) == 1:
                    over.set()

        with unchanged(tmp_path / "gateway.env"):
            async with asyncio.timeout(2 * STEP_S), asyncio.TaskGroup() as group:
                for reader in readers:
                    group.create_task(talk(reader))
                for http in (await stack.enter_async_context(fresh()), sessions[0], sessions[1]):
                    group.create_task(ask(http))
                await until(lambda: _live(facts))
                command.process.send_signal(signal.SIGHUP)
                group.create_task(watch())
        assert not workers(command.process.pid) & before
        assert len(workers(command.process.pid)) == 2
        assert sum(reader.returns for reader in readers) > 0
        assert all(reader.turns > 0 for reader in readers)
        assert asked > 100
        assert seen == {"0", "1", "0-old", "1-old"}
        async with asyncio.timeout(STEP_S):
            assert [message.type for message in await asyncio.gather(*closings)] == [WSMsgType.CLOSE] * 6
        assert {socket.close_code for socket in sockets} == {1012}
        assert await both_ready(facts)
        await command.end()


async def _live(facts: dict[str, str]) -> bool:
    live = await values(facts, "gateway_turns_live")
    return sum(live.values()) >= 4


async def test_roll_with_settings_that_cannot_be_used_keeps_the_old_workers(tmp_path: Path) -> None:
    """A rolling restart into a mistake changes nothing but is told."""
    config = tmp_path / "gateway.toml"
    config.write_text("", "utf-8")
    async with demo(tmp_path, "--rate", "0", "--config", str(config)) as (command, facts):
        before = workers(command.process.pid)
        config.write_text("[turns]\nlease_s = -1\n", "utf-8")
        command.process.send_signal(signal.SIGHUP)

        async def abandoned() -> bool:
            return (await values(facts, "gateway_worker_rolls_total")).get("", 0) == 1

        await until(abandoned)
        assert workers(command.process.pid) == before
        assert await both_ready(facts)
        assert (await chat(facts, "Hello"))["event"] == "turn.completed"
        _, err = await command.end()
        assert "turns.lease_s" in err


async def test_supervisor_killed_outright_leaves_no_process(tmp_path: Path) -> None:
    """SIGKILL of the supervisor leaves neither workers nor the store nor the stand-in behind."""
    async with demo(tmp_path) as (command, _):
        children = descendants(command.process.pid)
        assert len(children) >= 4
        command.process.kill()
        await command.process.wait()
        await gone(children)


async def test_supervisor_told_to_end_while_it_starts_leaves_no_process(tmp_path: Path) -> None:
    """SIGTERM before the workers are ready ends them too, quietly."""
    async with run(tmp_path, "demo", "--workers", "2", *ports(tmp_path)) as command:

        async def started() -> bool:
            return len(workers(command.process.pid)) > 0

        await until(started)
        children = descendants(command.process.pid)
        _, err = await command.end()
        assert command.process.returncode == 0, err
        assert "Unclosed" not in err
        assert not (tmp_path / "gateway.env").exists()
        await gone(children)


async def test_second_gateway_on_the_same_port_is_refused(tmp_path: Path) -> None:
    """Slots share the port with each other and with no other gateway, which is told so and leaves nothing."""
    async with demo(tmp_path) as (command, facts):
        port = facts["GATEWAY_URL"].rpartition(":")[2]
        (tmp_path / "other").mkdir()
        arguments = ("demo", "--workers", "2", "--port", port, "--internal-port", "0")
        async with run(tmp_path / "other", *arguments) as second:
            _, err = await second.finish()
            assert second.process.returncode == 1
            assert f"port {port}" in err
        await command.end()


async def test_start_that_fails_says_why_and_leaves_no_process(tmp_path: Path) -> None:
    """What keeps the workers from starting ends the command with their words."""
    missing = str(tmp_path / "missing.pem")
    environ = {
        "HYPERLEAP_API_KEY": VENDOR_KEY,
        "HYPERLEAP_PERSONA_ID": PERSONA_ID,
        "HYPERLEAP_CA_FILE": missing,
        "GATEWAY_WORKERS": "2",
    }
    async with run(tmp_path, "serve", "--port", "0", "--internal-port", "0", **environ) as command:
        _, err = await command.finish()
        assert command.process.returncode == 1
        assert "Error: " in err
        assert VENDOR_KEY not in err


async def test_store_killed_under_workers_is_restarted_and_they_find_it(tmp_path: Path) -> None:
    """``kill -9`` of the store that all workers share: each finds the next one, with everything in it."""
    async with demo(tmp_path, "--rate", "0") as (command, facts):
        await command.shown()
        before = workers(command.process.pid)
        done = await chat(facts, "Hello")
        in_flight = asyncio.create_task(chat(facts, "Tell me #tokens=120 #rate=60", user="bob"))
        await turn_runs(facts)
        await kill_store(tmp_path)
        assert not in_flight.done()
        await until(lambda: both_ready(facts))
        for _ in range(10):  # on either worker
            assert (await replay(facts, done))["text"] == done["text"]
            assert (await transcript(facts, done))[1] == done["text"]
        assert (await in_flight)["event"] == "turn.completed"
        assert (await chat(facts, "Hello again"))["event"] == "turn.completed"
        assert workers(command.process.pid) == before
        children = descendants(command.process.pid)
        _, err = await command.end()
        assert command.process.returncode == 0, err
        assert len(logged(err, "store.died", "store.restarted")) == 2
        await gone(children)


async def test_store_killed_again_and_again_ends_supervisor_and_workers(tmp_path: Path) -> None:
    """A store that is given up ends all of the gateway, and the reason is told."""
    async with demo(tmp_path) as (command, _):
        await command.shown()
        for _ in range(5):
            await kill_store(tmp_path)
        children = descendants(command.process.pid)
        os.kill(store_pid(tmp_path), signal.SIGKILL)
        _, err = await command.finish()
        assert command.process.returncode == 1
        assert "Error: gave up after 5 restarts" in err
        await gone(children)


async def test_admin_api_of_several_workers_is_served_on_the_one_internal_port(tmp_path: Path) -> None:
    """The supervisor passes the API on to a worker; what is changed by it holds on every worker within 2 s."""
    (tmp_path / "admin-token").write_text(ADMIN_TOKEN)
    audit = tmp_path / "audit.jsonl"
    environ = {"GATEWAY_ADMIN_TOKEN_FILE": str(tmp_path / "admin-token"), "GATEWAY_AUDIT_LOG": str(audit)}
    async with demo(tmp_path, "--rate", "0", **environ) as (_, facts), fresh() as http:
        await until(lambda: hears(facts))
        url, shown = f"{facts['GATEWAY_INTERNAL_URL']}/admin/v1", {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        table = {"personas": {"default": {"persona_id": PERSONA_ID}}}
        async with http.put(f"{url}/tenants/new", json=table, headers=shown | {"X-Request-Id": "an-id"}) as response:
            assert response.status == 201, await response.text()
            assert (await response.json())["source"] == "store"
            assert response.headers["X-Request-Id"] == "an-id"
            assert response.headers["Cache-Control"] == "no-store"
        async with http.post(f"{url}/tenants/new/keys", json={"label": "backend"}, headers=shown) as response:
            key = (await response.json())["secret"]
        told = [json.loads(line) for line in audit.read_text("utf-8").splitlines()]  # by whichever worker it came to
        assert [(line["event"], line["address"]) for line in told if line["actor"] == "admin"] == [
            ("tenant.put", "127.0.0.1"),
            ("key.created", "127.0.0.1"),
        ]
        assert {line["event"] for line in told if line["actor"] == "start"} == {"key.created"}

        async def held(status: int) -> bool:
            """Whether many new connections, which both workers get some of, are all answered alike."""
            for _ in range(16):
                async with http.post(
                    f"{facts['GATEWAY_URL']}/v1/sessions",
                    json={"user_id": "ada"},
                    headers={"Authorization": f"Bearer {key}"},
                ) as response:
                    if response.status != status:
                        return False
            return True

        async with asyncio.timeout(2):
            await until(lambda: held(201))
        async with http.delete(f"{url}/tenants/new", headers=shown) as response:
            assert response.status == 204
        async with asyncio.timeout(2):
            await until(lambda: held(401))
        for address in (f"{url}/usage", f"{facts['GATEWAY_INTERNAL_URL']}/admin/usage"):
            query = f"?from={datetime.now(UTC):%Y-%m-%d}&by=tenant"
            async with http.get(address + query, headers=shown | {"Accept": "text/csv"}) as response:
                assert (response.status, response.content_type) == (200, "text/csv")
                assert (await response.text()).startswith("tenant,turns,")
        for headers, path, data, status, code in (
            ({}, "/tenants", None, 401, "credential_missing"),
            ({"Authorization": "Bearer nonsense"}, "/tenants", None, 401, "credential_invalid"),
            (shown, "/tenants/default", io.BytesIO(b"x" * 2_000_000), 413, "body_too_large"),
            (shown, "/tenants/default", b"{}", 409, "tenant_fixed"),
            (shown, "/nowhere", None, 404, "not_found"),
        ):
            async with http.request(
                "PUT" if data else "GET", url + path, data=data, headers={**headers, "Content-Type": "application/json"}
            ) as response:
                assert (response.status, (await response.json())["code"]) == (status, code)
                assert response.content_type == "application/problem+json"
        doubled = [("Authorization", f"Bearer {ADMIN_TOKEN}")] * 2
        async with http.get(f"{url}/tenants", headers=doubled) as response:
            assert response.status == 401


async def test_tenants_file_is_followed_by_every_worker(tmp_path: Path) -> None:
    """Both workers take a new version in without a restart, and a roll with a bad one leaves the old workers."""
    file, name = tmp_path / "tenants.toml", "[tenants.{}]\npersonas.default.persona_id = '{}'\n"
    file.write_text(name.format("first", PERSONA_ID))
    async with Simulator(SimulatorSettings(api_key=VENDOR_KEY, rate_per_s=0, h2c=True)) as upstream:
        environ = {
            "HYPERLEAP_API_KEY": VENDOR_KEY,
            "HYPERLEAP_BASE_URL": upstream.url,
            "GATEWAY_TENANTS_FILE": str(file),
        }
        async with run(tmp_path, "serve", "--workers", "2", *ports(tmp_path), **environ) as command:
            facts = await command.facts()
            file.write_text(name.format("first", PERSONA_ID) + name.format("second", PERSONA_ID))

            async def tenants() -> dict[str, float]:
                return await values(facts, "gateway_tenants")

            async def both(count: int) -> bool:
                return await tenants() == {"0": count, "1": count}

            async with asyncio.timeout(3):
                await until(lambda: both(2))
            before = workers(command.process.pid)
            file.write_text("nonsense")

            async def told() -> bool:
                return await values(facts, "gateway_tenants_file_valid") == {"0": 0, "1": 0}

            await until(told)
            command.process.send_signal(signal.SIGHUP)

            async def abandoned() -> bool:
                return (await values(facts, "gateway_worker_rolls_total")).get("") == 1

            await until(abandoned)
            assert workers(command.process.pid) == before
            assert await both(2)
            file.write_text(name.format("third", PERSONA_ID))
            await until(lambda: both(1))
            assert await values(facts, "gateway_tenants_file_valid") == {"0": 1, "1": 1}
