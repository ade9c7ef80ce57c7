"""Live turns in the admin API: what an operator sees of every worker's, and how one of them is stopped."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.core.identity import TenantId
from gateway.core.turn import TurnId
from gateway.services.live_turns import LiveTurns
from gateway.store.live_turns import RedisLiveTurns
from gateway.telemetry.logging import AUDIT
from tests.conftest import OTHER_PERSONA_ID, PERSONA_ID, Running, StartGateway
from tests.transports.client import Answer, Client, check_log, eventually
from tests.transports.conftest import SignIn

TOKEN = "0123456789abcdef0123456789abcdef-of-an-operator"
STRANGE = "5f0d3f3e-0000-4000-8000-000000000000"
LONG = "Tell me a secret #tokens=4000 #rate=20"
TWO_TENANTS = f"""
[tenants.{{first}}.personas.default]
persona_id = "{PERSONA_ID}"
[tenants.{{second}}.personas.default]
persona_id = "{OTHER_PERSONA_ID}"
"""

Call = Callable[..., Awaitable[Answer]]


def caller(running: Running) -> Call:
    async def call(method: str, path: str, **query: str) -> Answer:
        shown = {"Authorization": f"Bearer {TOKEN}"}
        url = f"{running.internal_url}/admin/v1{path}"
        async with running.http.request(method, url, params=query, headers=shown) as response:
            return Answer(response.status, response.headers, await response.read())

    return call


@dataclass
class Pair:
    """Two workers on one store, with a user of theirs and an operator at each."""

    owner: Client
    other: Client
    at_owner: Call
    at_other: Call


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    path = tmp_path / "admin-token"
    path.write_text(TOKEN, "utf-8")
    path.chmod(0o600)
    return {"GATEWAY_ADMIN_TOKEN_FILE": str(path)}


@pytest.fixture
async def pair(start_gateway: StartGateway, sign_in: SignIn, environ: dict[str, str]) -> Pair:
    first = await start_gateway(environ=environ)
    client = await sign_in(first, "zoe")
    second = await start_gateway(simulator=first.simulator, tenant=first.tenant, environ=environ)
    await eventually(lambda: first.gateway.inbox.hears and second.gateway.inbox.hears, "workers to hear each other")
    return Pair(client, Client(second, client.headers), caller(first), caller(second))


async def listed(call: Call, **query: str) -> list[dict[str, Any]]:
    """Return all pages' turns; every page is a good answer."""
    rows: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        page = await call("GET", "/turns", **query, **cursor)
        assert page.status == 200, page.raw
        rows += page.body["data"]
        if page.body["next_cursor"] is None:
            return rows
        cursor = {"cursor": page.body["next_cursor"]}


@pytest.mark.parametrize("where", ["at_owner", "at_other"])
async def test_live_turn_is_shown_by_every_worker_without_its_words(pair: Pair, where: str) -> None:
    """Whose it is, where it runs, how far it is and how many read it, and nothing of what is said."""
    call: Call = getattr(pair, where)
    owner = pair.owner.running.gateway
    async with pair.owner.ask(await pair.owner.conversation(), LONG) as reader:
        while (event := await reader.next()) is not None and event.name != "message.delta":
            pass

        async def streams() -> bool:
            return [row["state"] for row in await listed(call)] == ["streaming"]

        await eventually(streams, "the turn to be shown as it streams")
        page = await call("GET", "/turns")
        (row,) = page.body["data"]
        turn = owner.turns.find(TurnId(reader.turn_id))
        assert turn is not None
        assert (row["tenant"], row["turn_id"], row["persona"]) == (
            pair.owner.running.tenant,
            reader.turn_id,
            "default",
        )
        assert (row["user"], row["worker"], row["readers"]) == (turn.heading.owner, owner.worker_id, 1)
        assert row["conversation_id"] == turn.heading.conversation_id
        assert 0 < row["position"] <= turn.live.position
        assert row["started_at"][:10] == str(turn.heading.message.created_at)[:10]
        assert set(row) == {
            *("tenant", "turn_id", "conversation_id", "persona", "user", "state", "started_at", "position"),
            *("readers", "worker"),
        }
        text = page.raw.decode()
        assert "zoe" not in text
        assert "secret" not in text
        assert page.headers["Cache-Control"] == "no-store"
        async with pair.other.follow(reader.turn_id):

            async def two() -> bool:
                return [row["readers"] for row in await listed(call)] == [2]

            await eventually(two, "the reader on the other worker to be counted")
        assert (await pair.owner.call("POST", f"/v1/turns/{reader.turn_id}/stop")).status == 200
    await eventually(_none(call), "the ended turn to be gone from the list")


def _none(call: Call) -> Callable[[], Awaitable[bool]]:
    async def none() -> bool:
        return await listed(call) == []

    return none


@pytest.mark.parametrize("where", ["at_owner", "at_other"])
async def test_operator_stops_a_turn_on_any_worker_and_its_reader_is_told(
    pair: Pair, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The reader's stream ends with ``turn.stopped`` and the reason ``admin``, whoever was asked; it is audited."""
    caplog.set_level(logging.INFO, AUDIT)
    call: Call = getattr(pair, where)
    async with pair.owner.ask(await pair.owner.conversation(), LONG) as reader:
        while (event := await reader.next()) is not None and event.name != "message.delta":
            pass
        path = f"/tenants/{pair.owner.running.tenant}/turns/{reader.turn_id}/stop"
        stopped = await call("POST", path)
        assert (stopped.status, stopped.body["state"], stopped.body["turn_id"]) == (200, "stopping", reader.turn_id)
        await reader.rest()
    ending = check_log(reader.seen)
    assert (ending.name, ending.data["reason"]) == ("turn.stopped", "admin")
    again = await call("POST", path)
    assert (again.status, again.body["state"]) == (200, "stopped")
    told = [record for record in caplog.records if record.getMessage() == "turn.stop_asked"]
    assert [record.name for record in told] == [AUDIT, AUDIT]


async def test_turn_whose_worker_is_gone_is_lost_and_can_be_stopped(pair: Pair) -> None:
    """One that nobody owns any more is shown as such; stopped elsewhere, it gets its ending from there."""
    owner, other = pair.owner.running.gateway, pair.other.running.gateway
    turn_id = TurnId(await pair.owner.start(await pair.owner.conversation(), LONG))
    turn = owner.turns.find(turn_id)
    assert turn is not None
    await other.sweeper.aclose()
    turn.hand_over()  # as a worker does that ends

    async def lost() -> bool:
        return [row["state"] for row in await listed(pair.at_other)] == ["lost"]

    await eventually(lost, "the turn to be shown as lost")
    stopped = await pair.at_other("POST", f"/tenants/{pair.owner.running.tenant}/turns/{turn_id}/stop")
    assert (stopped.status, stopped.body["state"]) == (200, "stopping")
    *_, ending = await pair.other.replay(turn_id)
    assert (ending.name, ending.data["reason"]) == ("turn.stopped", "admin")


async def test_list_is_paged_by_tenant_and_turn_and_each_turn_comes_once(
    start_gateway: StartGateway, environ: dict[str, str]
) -> None:
    """Pages of any length hold, together, every turn of both tenants exactly once; of one tenant, its own."""
    first, second = sorted(f"t-{uuid.uuid4().hex[:12]}" for _ in range(2))
    running = await start_gateway(environ=environ, toml=TWO_TENANTS.format(first=first, second=second))
    call = caller(running)
    started: dict[str, set[str]] = {}
    for name, count in ((first, 3), (second, 2)):
        key = (await call_post(running, f"/tenants/{name}/keys", {"label": "backend"}))["secret"]
        minted = await Client(running, {"Authorization": f"Bearer {key}"}).call(
            "POST", "/v1/sessions", {"user_id": "ada"}
        )
        user = Client(running, {"Authorization": f"Bearer {minted.body['token']}"})
        started[name] = {str(await user.start(await user.conversation(), LONG)) for _ in range(count)}
    for limit in ("1", "2", "3", "500"):
        rows = await listed(call, limit=limit)
        assert len(rows) == 5
        assert {row["turn_id"] for row in rows} == started[first] | started[second]
        assert [row["tenant"] for row in rows] == [first] * 3 + [second] * 2
    assert {row["turn_id"] for row in await listed(call, tenant=second, limit="1")} == started[second]


async def call_post(running: Running, path: str, body: dict[str, Any]) -> dict[str, Any]:
    url, shown = f"{running.internal_url}/admin/v1{path}", {"Authorization": f"Bearer {TOKEN}"}
    async with running.http.post(url, json=body, headers=shown) as response:
        assert response.status == 201, await response.text()
        answer: dict[str, Any] = await response.json()
        return answer


async def test_worker_that_does_not_say_leaves_its_readers_unknown(pair: Pair) -> None:
    """A worker that is deaf or gone holds the list up for half a second at most; its readers are null, not 0."""
    running = pair.other.running
    gateway = running.gateway
    store = RedisLiveTurns(gateway.redis, gateway.worker_id)
    turn_id = await pair.owner.start(await pair.owner.conversation(), LONG)
    unheard = LiveTurns(store, gateway.turns._roster, gateway.worker_id, gateway.auth.tenants)
    found, more = await unheard.page(TenantId(running.tenant), None, 10)  # no inbox tells it anything
    assert [(shown.turn.turn_id, shown.readers) for shown in found] == [(turn_id, None)]
    assert more is None
    assert unheard._told == {}


@pytest.mark.parametrize(
    ("method", "path", "query", "status", "code", "field"),
    [
        ("GET", "/turns", {"tenant": "nobody"}, 404, "not_found", None),
        ("GET", "/turns", {"tenants": "x"}, 422, "unknown_field", "tenants"),
        ("GET", "/turns", {"limit": "0"}, 422, "invalid_value", "limit"),
        ("GET", "/turns", {"limit": "501"}, 422, "invalid_value", "limit"),
        ("GET", "/turns", {"limit": "many"}, 422, "invalid_value", "limit"),
        ("GET", "/turns", {"cursor": "nonsense"}, 400, "invalid_cursor", "cursor"),
        ("GET", "/turns", {"cursor": "NO.x"}, 400, "invalid_cursor", "cursor"),
        ("POST", f"/tenants/nobody/turns/{STRANGE}/stop", {}, 404, "not_found", None),
        ("POST", f"/tenants/TENANT/turns/{STRANGE}/stop", {}, 404, "not_found", None),
        ("POST", "/tenants/TENANT/turns/7/stop", {}, 400, "invalid_id", "turn_id"),
    ],
)
async def test_unknown_tenant_turn_or_parameter_is_told(
    pair: Pair, method: str, path: str, query: dict[str, str], status: int, code: str, field: str | None
) -> None:
    """Every wrong call gets a problem that names its code, and the parameter where one is to blame."""
    answer = await pair.at_owner(method, path.replace("TENANT", pair.owner.running.tenant), **query)
    assert (answer.status, answer.body["code"], answer.body.get("field")) == (status, code, field)


async def test_turn_of_another_tenant_is_not_found_under_this_one(
    start_gateway: StartGateway, environ: dict[str, str]
) -> None:
    """A turn's id alone does not say whose it is: under a tenant that has no such turn nothing is stopped."""
    first, second = sorted(f"t-{uuid.uuid4().hex[:12]}" for _ in range(2))
    running = await start_gateway(environ=environ, toml=TWO_TENANTS.format(first=first, second=second))
    user = Client(running, await running.user())
    turn_id = TurnId(await user.start(await user.conversation(), LONG))
    other = second if running.tenant == first else first
    assert (await caller(running)("POST", f"/tenants/{other}/turns/{turn_id}/stop")).status == 404
    turn = running.gateway.turns.find(turn_id)
    assert turn is not None
    assert not turn.stopping
