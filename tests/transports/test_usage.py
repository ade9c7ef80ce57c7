"""Usage over HTTP: a tenant's backend is told of its own tenant, an operator of all, and both the same to the token."""

from __future__ import annotations

import csv
import io
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.core.identity import TenantId
from gateway.core.keys import KeyKind
from gateway.protocol.usage_answers import UsagePage, UsageReport
from gateway.store.ledger import RedisLedger
from gateway.store.tenants import RedisTenants
from tests.conftest import PERSONA_ID, TENANT_TOML, Running, StartGateway
from tests.transports.client import Answer, Client, eventually
from tests.transports.conftest import SignIn

TOKEN = "0123456789abcdef0123456789abcdef-of-an-operator"
TOML = """
[prices]
currency = "EUR"
prompt_per_million = "1000"
completion_per_million = "2000"
per_turn = "0.5"
[prices.personas.other]
prompt_per_million = "0"
completion_per_million = "1"
"""
HI = "Hi #tokens=3 #rate=0"


@pytest.fixture
async def running(start_gateway: StartGateway, stored_tenants: RedisTenants, tmp_path: Path) -> Running:
    """A gateway with two tenants, prices and an admin token."""
    token_file = tmp_path / "admin-token"
    token_file.write_text(TOKEN, "utf-8")
    token_file.chmod(0o600)
    names = sorted(f"t-{uuid.uuid4().hex[:12]}" for _ in range(2))
    toml = "".join(TENANT_TOML.format(tenant=name, persona=PERSONA_ID) for name in names)
    return await start_gateway(toml=toml + TOML, environ={"GATEWAY_ADMIN_TOKEN_FILE": str(token_file)})


def yesterday() -> str:
    return f"{datetime.now(UTC) - timedelta(days=1):%Y-%m-%d}"


async def ask(running: Running, query: str, *, credential: str | None = None, path: str = "", **headers: str) -> Answer:
    """Ask as the tenant's backend, or, at a path of the internal port, as an operator."""
    url = f"{running.internal_url}{path}" if path else f"{running.url}/v1/usage"
    shown = credential or (TOKEN if path else running.secret_key)
    async with running.http.get(f"{url}?{query}", headers={"Authorization": f"Bearer {shown}", **headers}) as response:
        return Answer(response.status, response.headers, await response.read())


async def use(running: Running, client: Client, count: int, persona: str = "default") -> None:
    """Have so many turns completed and settled."""
    ledger = RedisLedger(running.gateway.redis, ttl_s=100, retries_s=())
    tenant = TenantId(running.tenant)
    before = len(await ledger.settled(tenant, None, 1000))
    conversation = await client.conversation(persona=persona)
    for _ in range(count):
        assert (await client.complete(conversation, HI))[-1].name == "turn.completed"

    async def settled() -> bool:
        return len(await ledger.settled(tenant, None, 1000)) == before + count

    await eventually(settled, f"{count} turns to be settled")


async def test_backend_reads_what_its_tenant_used_and_what_it_cost(running: Running, sign_in: SignIn) -> None:
    """Sums by what is asked for, equal to what Hyperleap billed, priced by the table of each persona."""
    client = await sign_in(running)
    await use(running, client, 2)
    await use(running, client, 1, "other")
    answer = await ask(running, f"from={yesterday()}&by=persona,outcome")
    assert (answer.status, answer.headers["Cache-Control"]) == (200, "no-store")
    report = msgspec.convert(answer.body, UsageReport)
    assert [(row.persona, row.outcome, row.turns, row.completed) for row in report.data] == [
        ("default", "completed", 2, 2),
        ("other", "completed", 1, 1),
    ]
    first, second = report.data
    assert first.cost_micros == 1000 * first.prompt_tokens + 2000 * first.completion_tokens + 2 * 500_000
    assert second.cost_micros == second.completion_tokens
    (total,) = report.total
    runs = list(running.simulator.bill)
    assert total.prompt_tokens == sum(run.prompt_tokens for run in runs)
    assert total.completion_tokens == sum(run.completion_tokens for run in runs)
    assert (total.turns, total.estimated, total.currency) == (3, 0, "EUR")
    assert total.cost_micros == first.cost_micros + second.cost_micros


async def test_turns_are_read_line_by_line(running: Running, sign_in: SignIn) -> None:
    """A bill can be checked: the pages of turns add up to the sums, in every form, and name no user."""
    await use(running, await sign_in(running, "ada-lovelace"), 3)
    query = f"from={yesterday()}&by=turn&limit=2"
    first = await ask(running, query)
    page = msgspec.convert(first.body, UsagePage)
    rest = msgspec.convert((await ask(running, f"{query}&cursor={page.next_cursor}")).body, UsagePage)
    records = [*page.data, *rest.data]
    assert (len(page.data), len(rest.data), rest.next_cursor) == (2, 1, None)
    assert len({record.turn_id for record in records}) == 3
    assert {record.user for record in records} == {
        running.gateway.auth.user_hash(TenantId(running.tenant), "ada-lovelace")
    }
    assert b"ada-lovelace" not in first.raw
    (total,) = msgspec.convert((await ask(running, f"from={yesterday()}")).body, UsageReport).total
    assert sum(record.cost_micros or 0 for record in records) == total.cost_micros
    for record in records:
        assert (record.vendor_key, record.source, record.state) == ("default", "reported", "completed")
        assert record.first_token_s is not None
        assert 0 <= record.first_token_s <= record.duration_s
    table = await ask(running, query, Accept="text/csv")
    assert table.headers["Content-Type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(table.raw.decode(), newline="")))
    following = await ask(running, f"{query}&format=csv&cursor={table.headers['x-next-cursor']}")
    rows += csv.DictReader(io.StringIO(following.raw.decode(), newline=""))
    assert [row["turn_id"] for row in rows] == [record.turn_id for record in records]
    assert "x-next-cursor" not in following.headers
    lines = (await ask(running, f"from={yesterday()}&by=turn", Accept="application/x-ndjson")).raw.splitlines()
    assert [msgspec.json.decode(line)["turn_id"] for line in lines] == [record.turn_id for record in records]


@pytest.mark.parametrize(
    ("query", "accept", "media"),
    [
        ("", "*/*", "application/json"),
        ("", "application/json, text/csv;q=0.5", "application/json"),
        ("", "text/html, text/csv;q=0.5, application/json", "text/csv"),
        ("", "application/jsonl", "application/jsonl"),
        ("&format=csv", "application/json", "text/csv"),
        ("&format=jsonl", "", "application/jsonl"),
    ],
)
async def test_report_comes_in_the_form_that_is_asked_for(
    running: Running, query: str, accept: str, media: str
) -> None:
    """By name in the address, else the first form of Accept that there is, else JSON."""
    answer = await ask(running, f"from={yesterday()}&by=day{query}", Accept=accept)
    assert (answer.status, answer.headers["Content-Type"].partition(";")[0]) == (200, media)


@pytest.mark.parametrize("whose", ["user", "site", "app", "nobody", "ticket", "neighbour"])
async def test_usage_is_told_to_the_tenants_backend_alone(running: Running, sign_in: SignIn, whose: str) -> None:
    """No user, page or app of a tenant learns what it costs, and another tenant's key tells that tenant's own."""
    client = await sign_in(running)
    await use(running, client, 1)
    keys = running.gateway.auth.keys
    (neighbour,) = (name for name in running.gateway.auth.tenants if name != running.tenant)
    credential, status, code = "", 403, "forbidden"
    match whose:
        case "user":
            credential = str(client.token)
        case "site":
            credential = running.publishable_key
        case "app":
            credential = (await keys.mint(TenantId(running.tenant), KeyKind.APP, "app")).key
        case "ticket":
            ticket = await client.call("POST", "/v1/tickets", {"path": "/v1/usage"})
            credential, status, code = str(ticket.body.get("ticket", "hgk_x.y.z")), 401, "credential_invalid"
        case "nobody":
            credential, status, code = "hgs_nobody.abcdefgh.secret", 401, "credential_invalid"
        case _:
            credential, status, code = (await keys.mint(neighbour, KeyKind.SECRET, "theirs")).key, 200, ""
    answer = await ask(running, f"from={yesterday()}&by=tenant,user", credential=credential)
    assert (answer.status, answer.body.get("code", "")) == (status, code)
    if status == 200:
        assert (answer.body["data"], answer.body["total"]) == ([], [])


@pytest.mark.parametrize(
    ("query", "status", "code", "field"),
    [
        ("", 422, "missing_field", "from"),
        ("from=", 422, "missing_field", "from"),
        ("from=2016-01-01", 422, "invalid_value", "from"),
        ("from=2016-01-01&to=2026-01-01", 422, "invalid_value", "to"),
        ("from={day}&to=1999-01-01", 422, "invalid_value", "to"),
        ("from={day}&from={day}", 422, "invalid_value", "from"),
        ("from={day}&colour=red", 422, "unknown_field", "colour"),
        ("from={day}&tenant=acme", 422, "unknown_field", "tenant"),
        ("from={day}&by=colour", 422, "invalid_value", "by"),
        ("from={day}&format=xml", 422, "invalid_value", "format"),
        ("from={day}&timezone=Nowhere", 422, "invalid_value", "timezone"),
        ("from={day}&cursor=x", 422, "invalid_value", "cursor"),
        ("from={day}&limit=5", 422, "invalid_value", "limit"),
        ("from={day}&by=turn&limit=0", 422, "invalid_value", "limit"),
        ("from={day}&by=turn&limit=1001", 422, "invalid_value", "limit"),
        ("from={day}&by=turn&limit=ten", 422, "invalid_value", "limit"),
        ("from={day}&by=turn&limit=%D9%A1", 422, "invalid_value", "limit"),
        ("from={day}&by=turn&cursor=other.1-1", 400, "invalid_cursor", "cursor"),
        ("from=%00%FF", 422, "invalid_value", "from"),
    ],
)
async def test_query_that_makes_no_sense_is_told_by_code_and_field(
    running: Running, query: str, status: int, code: str, field: str
) -> None:
    """Every mistake is named, and the same at both ports."""
    asked = query.format(day=yesterday())
    answer = await ask(running, asked)
    assert (answer.status, answer.body["code"], answer.body["field"]) == (status, code, field)
    if field != "tenant":
        of_operator = await ask(running, f"{asked}&tenant={running.tenant}", path="/admin/v1/usage")
        assert (of_operator.status, of_operator.body["code"], of_operator.body["field"]) == (status, code, field)


@pytest.mark.parametrize("path", ["/admin/usage", "/admin/v1/usage"])
async def test_operator_reads_what_all_tenants_used(running: Running, sign_in: SignIn, path: str) -> None:
    """All tenants together, or one; one's is what its own backend is told."""
    await use(running, await sign_in(running), 2)
    keys = running.gateway.auth.keys
    (neighbour,) = (name for name in running.gateway.auth.tenants if name != running.tenant)
    secret = (await keys.mint(neighbour, KeyKind.SECRET, "tests")).key
    minted = await Client(running, {"Authorization": f"Bearer {secret}"}).call(
        "POST", "/v1/sessions", {"user_id": "u1"}
    )
    other = Client(running, {"Authorization": f"Bearer {minted.body['token']}"})
    await other.complete(await other.conversation(), HI)

    async def both() -> bool:
        rows = (await ask(running, f"from={yesterday()}&by=tenant", path=path)).body["data"]
        turns = {row["tenant"]: row["turns"] for row in rows}
        return turns == {running.tenant: 2, neighbour: 1}

    await eventually(both, "both tenants' turns to be settled")
    one = await ask(running, f"from={yesterday()}&by=day&tenant={running.tenant}", path=path)
    own = await ask(running, f"from={yesterday()}&by=day")
    assert (one.body["data"], one.body["total"]) == (own.body["data"], own.body["total"])
    pages = await ask(running, f"from={yesterday()}&by=turn&limit=2", path=path)
    rest = await ask(running, f"from={yesterday()}&by=turn&limit=2&cursor={pages.body['next_cursor']}", path=path)
    records = [*pages.body["data"], *rest.body["data"]]
    assert sorted(record["tenant"] for record in records) == sorted([running.tenant] * 2 + [neighbour])


@pytest.mark.parametrize("path", ["/admin/usage", "/admin/v1/usage"])
async def test_usage_of_all_is_told_to_the_operator_alone(running: Running, path: str) -> None:
    """No key of a tenant opens it, the public port does not have it, and an unknown tenant is told to be that."""
    refused = await ask(running, f"from={yesterday()}", path=path, credential=running.secret_key)
    assert (refused.status, refused.body["code"]) == (401, "credential_invalid")
    async with running.http.get(f"{running.url}{path}?from={yesterday()}") as response:
        assert response.status == 404
    unknown = await ask(running, f"from={yesterday()}&tenant=nobody", path=path)
    assert (unknown.status, unknown.body["code"], unknown.body["field"]) == (404, "not_found", "tenant")


async def test_no_admin_token_no_usage(start_gateway: StartGateway) -> None:
    """Where there is no admin token, nothing of it is found at the internal port."""
    running = await start_gateway()
    for path in ("/admin/usage", "/admin/v1/usage"):
        assert (await ask(running, f"from={yesterday()}", path=path)).status == 404


async def test_prices_that_change_change_no_record(
    running: Running, sign_in: SignIn, stored_tenants: RedisTenants
) -> None:
    """A tenant's new prices hold for its next turn; what was settled stays as it was billed."""
    table: dict[str, Any] = {
        "personas": {"default": {"persona_id": PERSONA_ID}},
        "limits": {"user": {"requests_per_min": 0}},
        "prices": {"currency": "CHF", "prompt_per_million": "0", "completion_per_million": "0", "per_turn": "1"},
    }
    name = f"{running.tenant}-p"[:32]

    async def admin(method: str, path: str, body: Any) -> Any:
        shown = {"Authorization": f"Bearer {TOKEN}"}
        url = f"{running.internal_url}/admin/v1{path}"
        async with running.http.request(method, url, json=body, headers=shown) as response:
            assert response.status in (200, 201), await response.text()
            return await response.json()

    await admin("PUT", f"/tenants/{name}", table)
    secret = (await admin("POST", f"/tenants/{name}/keys", {"label": "backend"}))["secret"]
    opened = await Client(running, {"Authorization": f"Bearer {secret}"}).call(
        "POST", "/v1/sessions", {"user_id": "u1"}
    )
    client = Client(running, {"Authorization": f"Bearer {opened.body['token']}"})
    conversation = await client.conversation()
    for turn in ("1", "2.5"):
        table["prices"]["per_turn"] = turn
        await admin("PUT", f"/tenants/{name}", table)
        await client.complete(conversation, HI)

    async def settled() -> bool:
        answer = await ask(running, f"from={yesterday()}&by=turn", credential=secret)
        return [record["cost_micros"] for record in answer.body["data"]] == [1_000_000, 2_500_000]

    await eventually(settled, "both turns to be settled, each at its price")
