"""Tenants that change while they are served: workers follow within 2 s, what may not go on ends and says why."""

from __future__ import annotations

import asyncio
import random
import uuid
from pathlib import Path
from typing import Any

import pytest

from gateway.core.identity import TenantId
from gateway.core.keys import KeyKind
from gateway.store.tenants import RedisTenants
from tests.conftest import PERSONA_ID, Running, StartGateway
from tests.transports.client import Client, Closed, Socket, check_log, eventually

WITHIN_S = 2.0  # the promise
ENDLESS = "Hi #tokens=3000 #rate=20"
ORIGIN = "https://app.example"
OTHER_PERSONA = "0c5fdd25-6fd5-4dbb-b6a4-0a8b2ab9d3a7"


def table(*personas: str, **fields: Any) -> dict[str, Any]:
    ids = {"default": PERSONA_ID, "other": OTHER_PERSONA}
    return {
        "personas": {alias: {"persona_id": ids[alias]} for alias in personas or ("default", "other")},
        "origins": [ORIGIN],
        "anonymous": True,
        "limits": {"user": {"requests_per_min": 0, "concurrent_turns": 0}, "tenant": {"requests_per_min": 0}},
        **fields,
    }


@pytest.fixture
async def pair(start_gateway: StartGateway, stored_tenants: RedisTenants) -> tuple[Running, Running]:
    """Two workers of one gateway, which hear each other."""
    environ = {"GATEWAY_TURNS_RECOVERY_TIMEOUT_S": "1"}  # for an answer that the vendor does not finish
    here = await start_gateway(environ=environ)
    there = await start_gateway(tenant=here.tenant, simulator=here.simulator, environ=environ)
    for worker in (here, there):
        await eventually(lambda worker=worker: worker.gateway.inbox.hears, "the worker to hear")  # type: ignore[misc]  # a default that mypy cannot infer
    return here, there


@pytest.fixture
def name() -> TenantId:
    return TenantId(f"s-{uuid.uuid4().hex[:12]}")


async def put(worker: Running, name: TenantId, raw: dict[str, Any]) -> None:
    await worker.gateway.tenants.put(name, raw)


async def user_of(worker: Running, name: TenantId) -> Client:
    key = (await worker.gateway.auth.keys.mint(name, KeyKind.SECRET, "tests")).key
    answer = await Client(worker, {"Authorization": f"Bearer {key}"}).call("POST", "/v1/sessions", {"user_id": "u1"})
    assert answer.status == 201, answer.raw
    return Client(worker, {"Authorization": f"Bearer {answer.body['token']}"})


async def test_tenant_put_on_one_worker_is_served_by_the_other(pair: tuple[Running, Running], name: TenantId) -> None:
    """A new tenant, a change of it and its end are in force on every worker within 2 s."""
    here, there = pair
    await put(here, name, table())
    user = await user_of(here, name)
    elsewhere = Client(there, user.headers)

    async def refusal(client: Client, alias: str) -> str | None:
        answer = await client.call("POST", "/v1/conversations", {"persona": alias})
        return None if answer.status == 201 else str(answer.body["code"])

    async def served() -> bool:
        return await refusal(elsewhere, "other") is None

    async def changed() -> bool:
        return await refusal(elsewhere, "other") == "persona_unknown"

    async def gone() -> bool:
        return await refusal(elsewhere, "default") == "credential_invalid"

    await eventually(served, "the new tenant", within_s=WITHIN_S)
    await put(here, name, table("default"))
    await eventually(changed, "the change", within_s=WITHIN_S)
    await here.gateway.tenants.remove(name)
    await eventually(gone, "the end", within_s=WITHIN_S)


async def test_worker_that_hears_nothing_follows_too(pair: tuple[Running, Running], name: TenantId) -> None:
    """Word may be lost: a worker that knows itself to be deaf looks every second."""
    here, there = pair
    await there.gateway.inbox.aclose()
    there.gateway.inbox.hears = False
    there.gateway.tenants.heard()  # the look during which it finds out
    await put(here, name, table())
    await eventually(lambda: name in there.gateway.auth.tenants, "the tenant", within_s=WITHIN_S)


async def test_removed_tenant_ends_like_a_revoked_one(pair: tuple[Running, Running], name: TenantId) -> None:
    """Streams tell ``revoked``, sockets close with 4503, turns stop with ``revoked``, on every worker within 2 s."""
    here, there = pair
    await put(here, name, table())
    await eventually(lambda: name in there.gateway.auth.tenants, "the tenant")
    user = await user_of(here, name)
    elsewhere = Client(there, user.headers)
    conversation = await user.conversation()
    waiting = asyncio.create_task(
        user.call("POST", f"/v1/conversations/{await user.conversation()}/turns", {"message": ENDLESS})
    )
    async with elsewhere.socket() as socket, user.ask(conversation, ENDLESS) as reader:
        await reader.until("message.delta")
        await socket.reply("subscribe", turn_id=reader.turn_id)
        async with elsewhere.follow(reader.turn_id) as remote:
            await remote.until("message.delta")
            async with asyncio.timeout(WITHIN_S):
                closing = asyncio.create_task(socket.closed())
                await there.gateway.tenants.remove(name)
                for stream in (reader, remote):
                    assert (await stream.rest())[-1].name == "stream.error"
                    assert stream.seen[-1].data["code"] == "revoked"
                assert await closing == Closed(4503, "revoked")
                assert (await waiting).body["code"] == "revoked"
                await eventually(lambda: here.gateway.turns.running == 0, "the turns to stop")
    record = await here.gateway.turns._log.record(name, reader.turn_id)  # type: ignore[arg-type]  # a plain id
    assert record is not None
    assert record.state == "stopped"
    assert not here.gateway.edge.open
    assert not there.gateway.edge.open


async def test_lost_turn_of_a_removed_tenant_still_gets_its_ending(
    pair: tuple[Running, Running], name: TenantId
) -> None:
    """A worker dies with a turn, and then its tenant is removed: the others bring the turn to its end all the same."""
    here, there = pair
    await put(here, name, table())
    await eventually(lambda: name in there.gateway.auth.tenants, "the tenant")
    user = await user_of(here, name)
    turn = await user.start(await user.conversation(), "Hi #tokens=3000 #rate=20")
    lost = here.gateway.turns.find(turn)  # type: ignore[arg-type]  # a plain id
    assert lost is not None
    await eventually(lambda: lost.live.position > 10, "the answer to begin")
    lost.let_go()  # as if killed: it writes no more
    await eventually(lambda: here.gateway.turns.running == 0, "the owner to be gone")
    await there.gateway.tenants.remove(name)

    async def ended() -> bool:
        record = await there.gateway.turns._log.record(name, turn)  # type: ignore[arg-type]  # a plain id
        return record is not None and record.state.ended

    await there.gateway.recovery.worker_lost(here.gateway.worker_id)
    await eventually(ended, "the ending", within_s=10)


async def test_open_socket_follows_its_tenant(pair: tuple[Running, Running], name: TenantId) -> None:
    """New turns on a socket that was open before have the new plan, and personas that are gone answer no more."""
    here, there = pair
    await put(here, name, table())
    await eventually(lambda: name in there.gateway.auth.tenants, "the tenant")
    user = await user_of(here, name)
    kept, dropped = await user.conversation(persona="default"), await user.conversation(persona="other")
    async with Client(there, user.headers).socket() as socket:
        first = await socket.reply("turn.start", conversation_id=dropped, message="Hi #tokens=1")
        check_log(await socket.ending(first["data"]["turn_id"]))
        await put(here, name, table("default", limits={"user": {"requests_per_min": 1, "concurrent_turns": 0}}))
        await eventually(lambda: "other" not in there.gateway.auth.tenants[name].personas, "the change")
        refused = await socket.reply("turn.start", conversation_id=dropped, message="Hi")
        assert refused["data"]["code"] == "persona_unknown"
        second = await socket.reply("turn.start", conversation_id=kept, message="Hi #tokens=1")
        check_log(await socket.ending(second["data"]["turn_id"]))
        limited = await socket.reply("turn.start", conversation_id=kept, message="Hi")
        assert (limited["data"]["code"], limited["data"]["limit"]) == ("rate_limited", "user_requests_per_min")
        assert (await user.call("GET", f"/v1/conversations/{dropped}")).status == 200  # what was said can be read


@pytest.mark.parametrize(("fields", "code"), [({"origins": []}, "origin_not_allowed"), ({"doors": []}, "door_closed")])
async def test_connection_that_its_tenant_lets_in_no_more_ends(
    pair: tuple[Running, Running], name: TenantId, fields: dict[str, Any], code: str
) -> None:
    """Open streams of an origin or by a door that was taken away end with that code, sockets with 4504; turns go on."""
    here, there = pair
    await put(here, name, table())
    await eventually(lambda: name in there.gateway.auth.tenants, "the tenant")
    user = await user_of(here, name)
    from_page = Client(there, {**user.headers, "Origin": ORIGIN})
    async with (
        user.running.http.ws_connect(
            f"{there.url}/v1/ws", protocols=("hyperleap.chat.v1", f"hgt.{user.token}"), origin=ORIGIN
        ) as ws,
        from_page.ask(await user.conversation(), "Hi #tokens=60 #rate=20") as reader,
    ):
        socket = Socket(ws)
        assert (await socket.reply("ping"))["event"] == "pong"
        await reader.until("message.delta")
        turn = reader.turn_id
        async with asyncio.timeout(WITHIN_S):
            closing = asyncio.create_task(socket.closed())
            await put(here, name, table(**fields))
            assert (await reader.rest())[-1].data["code"] == code
            assert await closing == Closed(4504, code)
    await put(here, name, table())
    await eventually(
        lambda: there.gateway.auth.tenants[name].origins and len(there.gateway.auth.tenants[name].doors), "it"
    )
    assert check_log(await Client(there, user.headers).replay(turn)).name == "turn.completed"


@pytest.mark.parametrize("door", ["sse", "websocket"])
async def test_closed_door_is_refused_and_the_others_work(
    pair: tuple[Running, Running], name: TenantId, door: str
) -> None:
    """Only the doors that a tenant opens let its users in; HTTP calls need none, and no turn begins in vain."""
    here, _ = pair
    other = "websocket" if door == "sse" else "sse"
    await put(here, name, table(doors=[other]))
    user = await user_of(here, name)
    conversation = await user.conversation()
    answer = await user.call("POST", f"/v1/conversations/{conversation}/turns", {"message": "Hi #tokens=1"})
    assert (answer.status, answer.body["event"]) == (200, "turn.completed")
    turn = answer.body["turn_id"]
    streamed = await user.call(
        "POST", f"/v1/conversations/{conversation}/turns", {"message": "Hi #tokens=1"}, Accept="text/event-stream"
    )
    followed = [
        await user.call("GET", path)
        for path in (f"/v1/turns/{turn}/events", f"/v1/conversations/{conversation}/events")
    ]
    async with user.socket() as socket:
        if door == "websocket":
            assert await socket.closed() == Closed(4504, "door_closed")
            assert [answer.status for answer in (streamed, *followed)] == [200, 200, 204]
        else:
            assert (await socket.reply("ping"))["event"] == "pong"
            for refused in (streamed, *followed):
                assert (refused.status, refused.body["code"]) == (403, "door_closed")
    record = (await user.call("GET", f"/v1/conversations/{conversation}")).body
    assert record["active_turn_id"] is None
    assert len(record["messages"]) == (2 if door == "sse" else 4)


async def test_preflight_of_an_unknown_origin_asks_no_store(pair: tuple[Running, Running], name: TenantId) -> None:
    """What any tenant allows is known in memory, also of tenants in the store; a stranger's preflight costs no call."""
    here, there = pair
    await put(here, name, table(origins=["https://stored.example"]))
    await eventually(lambda: name in there.gateway.auth.tenants, "the tenant")
    await there.gateway.inbox.aclose()
    for part in (there.gateway.tenants, there.gateway.revocations, there.gateway.sweeper):
        await part.aclose()  # who asks by themselves
    calls: list[int] = []
    there.gateway.redis._observer = lambda *call: calls.append(1)
    anyone = Client(there, {})
    for origin, allowed in (("https://evil.example", False), ("https://stored.example", True)):
        answer = await anyone.call("OPTIONS", "/v1/conversations", Origin=origin, Access_Control_Request_Method="POST")
        assert ("Access-Control-Allow-Origin" in answer.headers) is allowed
    assert calls == []
    await there.gateway.redis.call("PING")
    assert calls == [1]  # it would have been seen


# --- the tenants file -------------------------------------------------------------------------------------------------


def toml(*names: str, **fields: str) -> str:
    return "".join(
        f'[tenants.{name}]\norigins = ["{ORIGIN}"]\nlimits.user = {{ requests_per_min = 0, concurrent_turns = 0 }}\n'
        f'limits.tenant.requests_per_min = 0\npersonas.default.persona_id = "{PERSONA_ID}"\n'
        for name in names
    )


@pytest.fixture
async def by_file(
    start_gateway: StartGateway, stored_tenants: RedisTenants, tmp_path: Path
) -> tuple[Running, Path, str]:
    """A gateway with a tenants file that names one steady tenant."""
    steady = f"steady-{uuid.uuid4().hex[:8]}"
    path = tmp_path / "tenants.toml"
    path.write_text(toml(steady))
    running = await start_gateway(toml="# none", environ={"GATEWAY_TENANTS_FILE": str(path)})
    return running, path, steady


async def test_tenants_file_is_followed_within_the_promise(by_file: tuple[Running, Path, str]) -> None:
    """A tenant that is written into the file is served within 2 s, and one that is taken out of it ends as revoked."""
    running, path, steady = by_file
    path.write_text(toml(steady, "added"))
    await eventually(lambda: "added" in running.gateway.auth.tenants, "the tenant", within_s=WITHIN_S)
    user = await user_of(running, TenantId("added"))
    async with user.socket() as socket, user.ask(await user.conversation(), ENDLESS) as reader:
        await reader.until("message.delta")
        path.write_text(toml(steady))
        async with asyncio.timeout(WITHIN_S):
            closing = asyncio.create_task(socket.closed())
            assert (await reader.rest())[-1].data["code"] == "revoked"
            assert await closing == Closed(4503, "revoked")


async def test_storm_of_tenants_files_is_not_felt_by_a_tenant_that_stays(by_file: tuple[Running, Path, str]) -> None:
    """Files good, bad, torn and gone, with requests in flight: no error, no cut stream, and the last good one holds."""
    running, path, steady = by_file
    running.gateway.tenants_file._look_s = 0.01  # type: ignore[union-attr]  # it is there
    user = await user_of(running, TenantId(steady))
    dice, over = random.Random(7), asyncio.Event()

    async def ask() -> int:
        turns = 0
        conversation = await user.conversation()
        while not over.is_set():
            check_log(await user.complete(conversation, "Hi #tokens=5"))
            assert (await user.call("GET", "/v1/conversations", Origin=ORIGIN)).status == 200
            turns += 1
        return turns

    async with user.socket() as socket, asyncio.TaskGroup() as group:
        askers = [group.create_task(ask()) for _ in range(4)]
        for number in range(80):
            whole = toml(steady, *(f"t{number}-{n}" for n in range(dice.randrange(4))))
            match dice.randrange(4):
                case 0:
                    path.write_text(whole)
                case 1:
                    path.write_text(whole[: dice.randrange(60)])
                case 2:
                    path.unlink(missing_ok=True)
                case _:
                    draft = path.with_name("draft")
                    draft.write_text(whole + dice.choice(["", "[tenants.bad]\n", "nonsense"]))
                    draft.replace(path)
            await asyncio.sleep(0.02)
        path.write_text(toml(steady, "last"))
        await eventually(lambda: set(running.gateway.auth.tenants) == {steady, "last"}, "the last file")
        over.set()
        assert (await socket.reply("ping"))["event"] == "pong"
    assert all(asker.result() > 3 for asker in askers)


async def test_tenant_of_the_file_is_read_only_to_operators(by_file: tuple[Running, Path, str]) -> None:
    """What the file names is changed in the file."""
    running, _, steady = by_file
    with pytest.raises(Exception, match="tenant_fixed: The tenant is written in the file"):
        await put(running, TenantId(steady), table())
