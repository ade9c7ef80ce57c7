"""The admin API: who is let in, what an operator's program can do, and how it is told what is wrong."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import FormData

from gateway.core.identity import TenantId
from gateway.store.tenants import RedisTenants
from tests.conftest import PERSONA_ID, Running, StartGateway
from tests.transports.client import Answer, Client
from tests.transports.conftest import SignIn

TOKEN = "0123456789abcdef0123456789abcdef-of-an-operator"
ORIGIN = "https://new.example"
ROW = {"prompt_per_million": "1", "completion_per_million": "1"}
TABLE = {
    "personas": {"default": {"persona_id": PERSONA_ID}},
    "origins": [ORIGIN],
    "anonymous": True,
    "limits": {"user": {"requests_per_min": 0, "concurrent_turns": 0}},
}

Call = Callable[..., Awaitable[Answer]]


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "admin-token"
    path.write_text(TOKEN + "\n", "utf-8")
    path.chmod(0o600)
    return path


@pytest.fixture
async def running(start_gateway: StartGateway, stored_tenants: RedisTenants, token_file: Path) -> Running:
    """A gateway with an admin token, and one tenant of its settings."""
    return await start_gateway(environ={"GATEWAY_ADMIN_TOKEN_FILE": str(token_file)})


def caller(running: Running, token: str = TOKEN) -> Call:
    async def call(method: str, path: str, body: Any = None, **headers: str) -> Answer:
        shown = {"Authorization": f"Bearer {token}"} | {name.replace("_", "-"): v for name, v in headers.items()}
        url = f"{running.internal_url}/admin/v1{path}"
        async with running.http.request(method, url, json=body, headers=shown) as response:
            return Answer(response.status, response.headers, await response.read())

    return call


@pytest.fixture
def call(running: Running) -> Call:
    return caller(running)


async def test_operator_makes_a_tenant_that_works_changes_and_goes(
    running: Running, call: Call, stored_tenants: RedisTenants
) -> None:
    """A tenant is put, gets a key, opens sessions and chats, is changed and deleted; then it opens nothing any more."""
    made = await call("PUT", "/tenants/new", TABLE)
    assert (made.status, made.body["source"], made.body["state"]) == (201, "store", "active")
    assert made.body["settings"] == TABLE
    key = (await call("POST", "/tenants/new/keys", {"label": "backend", "ttl_s": 3600})).body
    assert key["secret"].startswith("hgs_new.")
    minted = await Client(running, {"Authorization": f"Bearer {key['secret']}"}).call(
        "POST", "/v1/sessions", {"user_id": "ada"}
    )
    user = Client(running, {"Authorization": f"Bearer {minted.body['token']}"})
    assert (await user.complete(await user.conversation(), "Hi #tokens=2"))[-1].name == "turn.completed"
    assert (await user.call("GET", "/v1/conversations", Origin=ORIGIN)).headers["Access-Control-Allow-Origin"] == ORIGIN

    changed = await call("PUT", "/tenants/new", {**TABLE, "origins": []})
    assert (changed.status, changed.body["origins"]) == (200, [])
    assert (await user.call("GET", "/v1/conversations", Origin=ORIGIN)).body["code"] == "origin_not_allowed"
    assert (await call("GET", "/tenants/new")).body == changed.body
    listed = (await call("GET", "/tenants")).body
    assert {each["tenant"]: each["source"] for each in listed["data"]} == {running.tenant: "settings", "new": "store"}
    assert listed["unreadable"] == {}

    assert (await call("DELETE", "/tenants/new")).status == 204
    assert (await user.call("GET", "/v1/conversations")).body["code"] == "credential_invalid"
    assert (await call("GET", "/tenants/new")).status == 404
    assert (await call("DELETE", "/tenants/new")).status == 404
    assert await stored_tenants.load() == {}


async def test_tenant_made_again_begins_without_keys_and_sessions(running: Running, call: Call) -> None:
    """What was given out by the deleted tenant of the same name opens nothing; what is given out now does."""
    keys, tokens = [], []
    for _ in range(2):
        assert (await call("PUT", "/tenants/again", TABLE)).status == 201
        keys.append((await call("POST", "/tenants/again/keys", {"label": "backend"})).body["secret"])
        session = Client(running, {"Authorization": f"Bearer {keys[-1]}"})
        tokens.append((await session.call("POST", "/v1/sessions", {"user_id": "ada"})).body["token"])
        if len(keys) == 1:
            assert (await call("POST", "/tenants/again/revoke")).status == 200
            assert (await call("DELETE", "/tenants/again")).status == 204
    assert await _refusals(running, keys[0], tokens[0]) == ["revoked", "revoked"]
    assert await _refusals(running, keys[1], tokens[1]) == [None, None]
    states = [key["state"] for key in (await call("GET", "/tenants/again/keys")).body["data"]]
    assert sorted(states) == ["active", "revoked"]


async def _refusals(running: Running, key: str, token: str) -> list[str | None]:
    """Show a key and a token where they belong; return the codes of the refusals."""
    by_key = await Client(running, {"Authorization": f"Bearer {key}"}).call("POST", "/v1/sessions", {"user_id": "bob"})
    by_token = await Client(running, {"Authorization": f"Bearer {token}"}).call("GET", "/v1/conversations")
    return [answer.body.get("code") for answer in (by_key, by_token)]


async def test_key_is_shown_once_rotated_and_revoked(running: Running, call: Call) -> None:
    """A key's whole life over the API, of a tenant of the settings too."""
    path = f"/tenants/{running.tenant}/keys"
    first = (await call("POST", path, {"label": "mine", "kind": "publishable"})).body
    assert first["secret"].startswith(f"hgp_{running.tenant}.")
    assert first["kind"] == "publishable"
    listed = await call("GET", path)
    assert first["secret"] not in listed.raw.decode()
    assert first["id"] in [key["id"] for key in listed.body["data"]]
    second = await call("POST", f"{path}/{first['id']}/rotate", {"overlap_s": 0})
    assert (second.status, second.body["kind"], second.body["label"]) == (201, "publishable", "mine")
    assert (await call("DELETE", f"{path}/{second.body['id']}")).status == 204
    states = {key["id"]: key["state"] for key in (await call("GET", path)).body["data"]}
    assert (states[first["id"]], states[second.body["id"]]) == ("expired", "revoked")


async def test_users_tokens_and_tenants_are_taken_back(running: Running, call: Call, sign_in: SignIn) -> None:
    """A token, a user and a tenant are taken back by the API, and a tenant is let in again."""
    first, second = await sign_in(running, "ada"), await sign_in(running, "bob")

    async def codes() -> list[str | None]:
        return [
            None if (answer := await who.call("GET", "/v1/conversations")).status == 200 else answer.body["code"]
            for who in (first, second)
        ]

    taken = await call("POST", "/tokens/revoke", {"token": first.token})
    assert (taken.status, taken.body["what"], taken.body["tenant"]) == (200, "token", running.tenant)
    assert await codes() == ["revoked", None]
    assert (await call("POST", f"/tenants/{running.tenant}/users/revoke", {"user_id": "bob"})).body["what"] == "user"
    assert await codes() == ["revoked", "revoked"]
    second = await sign_in(running, "bob")
    assert (await call("POST", f"/tenants/{running.tenant}/revoke")).body["what"] == "tenant"
    assert (await call("GET", f"/tenants/{running.tenant}")).body["state"] == "revoked"
    assert await codes() == ["revoked", "revoked"]
    for restored in (True, False):
        answer = await call("POST", f"/tenants/{running.tenant}/restore")
        assert answer.body == {"tenant": running.tenant, "restored": restored}
    assert await codes() == ["revoked", None]


async def test_tenant_of_the_settings_is_read_only(running: Running, call: Call) -> None:
    """What is written in the settings is changed there and nowhere else."""
    for method, body in (("PUT", TABLE), ("DELETE", None)):
        answer = await call(method, f"/tenants/{running.tenant}", body)
        assert (answer.status, answer.body["code"]) == (409, "tenant_fixed")
    assert (await call("GET", f"/tenants/{running.tenant}")).body["source"] == "settings"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "field"),
    [
        ("PUT", "/tenants/new", {}, 422, "invalid_value", "personas"),
        ("PUT", "/tenants/new", {**TABLE, "plan": "gold"}, 422, "invalid_value", "plan"),
        (
            "PUT",
            "/tenants/new",
            {**TABLE, "limits": {"user": {"requests_per_min": -1}}},
            422,
            "invalid_value",
            "limits.user.requests_per_min",
        ),
        (
            "PUT",
            "/tenants/new",
            {**TABLE, "prices": {"currency": "EUR", "prompt_per_million": "-1", "completion_per_million": "1"}},
            422,
            "invalid_value",
            "prices.prompt_per_million",
        ),
        (
            "PUT",
            "/tenants/new",
            {**TABLE, "prices": {"currency": "EUR", "personas": {"nobody": ROW}}},
            422,
            "invalid_value",
            "prices.personas.nobody",
        ),
        ("PUT", "/tenants/new", {**TABLE, "prices": {"currency": "euro"}}, 422, "invalid_value", "prices.currency"),
        ("PUT", "/tenants/new", {**TABLE, "colour": 1}, 422, "invalid_value", "colour"),
        ("PUT", "/tenants/new", [], 422, "wrong_type", None),
        ("PUT", "/tenants/New", TABLE, 422, "invalid_value", "tenant"),
        ("GET", "/tenants/New", None, 404, "not_found", None),
        ("GET", "/tenants/nobody", None, 404, "not_found", None),
        ("POST", "/tenants/nobody/keys", {"label": "x"}, 404, "not_found", None),
        ("POST", "/tenants/{}/keys", {}, 422, "missing_field", "label"),
        ("POST", "/tenants/{}/keys", {"label": ""}, 422, "invalid_value", "label"),
        ("POST", "/tenants/{}/keys", {"label": "x", "kind": "master"}, 422, "invalid_value", "kind"),
        ("POST", "/tenants/{}/keys", {"label": "x", "ttl_s": 0}, 422, "invalid_value", "ttl_s"),
        ("POST", "/tenants/{}/keys", {"label": "x", "colour": 1}, 422, "unknown_field", "colour"),
        ("DELETE", "/tenants/{}/keys/nokey123", None, 404, "not_found", None),
        ("DELETE", "/tenants/{}/keys/..%2f..", None, 404, "not_found", None),
        ("POST", "/tenants/{}/keys/nokey123/rotate", {}, 404, "not_found", None),
        ("POST", "/tenants/{}/keys/nokey123/rotate", {"overlap_s": -1}, 422, "invalid_value", "overlap_s"),
        ("POST", "/tenants/{}/users/revoke", {"user_id": ""}, 422, "invalid_value", "user_id"),
        ("POST", "/tokens/revoke", {"token": "hgt_nonsense"}, 422, "invalid_value", "token"),
        ("POST", "/tokens/revoke", {}, 422, "missing_field", "token"),
        ("POST", "/tenants/{}/revoke", {"user_id": "bob"}, 422, "unknown_field", "user_id"),
        ("POST", "/tenants/{}/revoke?until=tomorrow", None, 422, "unknown_field", "until"),
        ("POST", "/tenants/{}/restore", {"zz": 1}, 422, "unknown_field", "zz"),
        ("POST", "/tenants/{}/restore", [], 422, "wrong_type", None),
        ("GET", "/tenants?foo=1", None, 422, "unknown_field", "foo"),
        ("GET", "/tenants/{}?foo=1", None, 422, "unknown_field", "foo"),
        ("GET", "/tenants/{}/keys?state=active", None, 422, "unknown_field", "state"),
        ("POST", "/tenants/{}/keys?ttl_s=5", {"label": "x"}, 422, "unknown_field", "ttl_s"),
        ("DELETE", "/tenants/{}?really=no", None, 422, "unknown_field", "really"),
        ("POST", "/tenants", TABLE, 405, "method_not_allowed", None),
        ("GET", "/nowhere", None, 404, "not_found", None),
    ],
)
async def test_bad_request_is_told_by_code_and_field(
    running: Running, call: Call, method: str, path: str, body: Any, status: int, code: str, field: str | None
) -> None:
    """Errors are problem documents here as everywhere, with a request id, and nothing is changed."""
    answer = await call(method, path.replace("{}", running.tenant), body, X_Request_Id="an-id")
    assert (answer.status, answer.body["code"], answer.body.get("field")) == (status, code, field)
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.body["request_id"] == answer.headers["X-Request-Id"] == "an-id"
    assert answer.headers["Server"] == "hyperleap-gateway"
    assert list(running.gateway.auth.tenants) == [running.tenant]


async def test_body_is_bounded_and_json(
    start_gateway: StartGateway, stored_tenants: RedisTenants, token_file: Path
) -> None:
    """Bodies have the bounds of the public doors."""
    environ = {"GATEWAY_ADMIN_TOKEN_FILE": str(token_file), "GATEWAY_BODY_MAX_BYTES": "1000"}
    running = await start_gateway(environ=environ)
    url, headers = f"{running.internal_url}/admin/v1/tenants/new", {"Authorization": f"Bearer {TOKEN}"}
    for data, status in ((b"x" * 1001, 413), (b"{", 400), (FormData({"a": "b"}), 415)):
        kind = {} if isinstance(data, FormData) else {"Content-Type": "application/json"}
        async with running.http.put(url, data=data, headers=headers | kind) as response:
            assert response.status == status
            assert response.content_type == "application/problem+json"


@pytest.mark.parametrize(
    ("shown", "code"),
    [
        ([], "credential_missing"),
        (["Bearer wrong"], "credential_invalid"),
        ([f"Bearer {TOKEN}x"], "credential_invalid"),
        ([f"Bearer {TOKEN[:-1]}"], "credential_invalid"),
        ([f"Basic {TOKEN}"], "credential_invalid"),
        ([f"Bearer {TOKEN}", f"Bearer {TOKEN}"], "credential_invalid"),
        (["Bearer töken"], "credential_invalid"),
    ],
)
@pytest.mark.parametrize("path", ["/tenants", "/tenants/nobody", "/nowhere"])
async def test_wrong_admin_token_opens_nothing(
    running: Running, shown: list[str], code: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Missing, wrong, near and doubled tokens are refused alike, whatever is asked; none is logged."""
    caplog.set_level(logging.DEBUG)
    headers = [("Authorization", value) for value in shown]
    async with running.http.get(f"{running.internal_url}/admin/v1{path}", headers=headers) as response:
        assert (response.status, (await response.json())["code"]) == (401, code)
    assert TOKEN[:-1] not in caplog.text + repr([vars(record) for record in caplog.records])


async def test_secret_key_or_session_is_no_admin_token(running: Running, sign_in: SignIn) -> None:
    """What opens the public port opens nothing here."""
    for token in (running.secret_key, (await sign_in(running)).token):
        assert (await caller(running, token)("GET", "/tenants")).body["code"] == "credential_invalid"


async def test_no_admin_api_without_a_token(start_gateway: StartGateway) -> None:
    """Where no token is given nothing is found, whoever asks for it."""
    running = await start_gateway()
    for path in ("/tenants", "/nowhere"):
        answer = await caller(running)("GET", path)
        assert (answer.status, answer.body["code"]) == (404, "not_found")


async def test_admin_api_is_not_on_the_public_port(running: Running) -> None:
    """Browsers cannot reach it, with the right token neither."""
    for method, path in (
        ("GET", "/admin/v1/tenants"),
        ("PUT", "/admin/v1/tenants/new"),
        ("POST", "/admin/v1/tokens/revoke"),
    ):
        answer = await Client(running, {"Authorization": f"Bearer {TOKEN}"}).call(method, path, {})
        assert (answer.status, answer.body["code"]) == (404, "not_found")


async def test_no_page_can_use_the_admin_api(running: Running, call: Call) -> None:
    """No answer names an origin, of a tenant neither."""
    for method in ("GET", "OPTIONS"):
        answer = await call(method, "/tenants", Origin="https://app.example", Access_Control_Request_Method="GET")
        assert not [name for name in answer.headers if name.lower().startswith("access-control-")]


async def test_admin_calls_are_counted_by_route(running: Running, call: Call) -> None:
    """Metrics name the route's template, never a tenant's or a key's id."""
    await call("GET", f"/tenants/{running.tenant}")
    await call("GET", "/nowhere")
    async with running.http.get(f"{running.internal_url}/metrics") as response:
        text = await response.text()
    assert 'route="/admin/v1/tenants/{tenant}",status="200"' in text.replace('method="GET",', "")
    assert "/nowhere" not in text


async def test_gateway_without_tenants_starts_and_gets_its_first(
    start_gateway: StartGateway, stored_tenants: RedisTenants, token_file: Path
) -> None:
    """With an admin token a gateway needs no tenant to start; the first one comes over the API."""
    seeded = await start_gateway(environ={"GATEWAY_ADMIN_TOKEN_FILE": str(token_file)})
    await seeded.gateway.tenants.put(TenantId("first"), TABLE)
    empty = await start_gateway(toml="# none", environ={"GATEWAY_ADMIN_TOKEN_FILE": str(token_file)}, load_stored=True)
    assert list(empty.gateway.auth.tenants) == ["first"]
    call = caller(empty)
    assert (await call("DELETE", "/tenants/first")).status == 204
    assert (await call("GET", "/tenants")).body["data"] == []
    assert (await call("PUT", "/tenants/second", TABLE)).status == 201


async def test_change_made_elsewhere_is_found_at_once(
    running: Running, call: Call, stored_tenants: RedisTenants
) -> None:
    """A tenant that another worker was told of a moment ago is found by this one, before word of it has come."""
    running.gateway.tenants._hears = lambda: True
    await running.gateway.inbox.aclose()  # deaf, without knowing
    await stored_tenants.put(TenantId("fresh"), b'{"personas":{"default":{"persona_id":"%b"}}}' % PERSONA_ID.encode())
    assert (await call("POST", "/tenants/fresh/keys", {"label": "x"})).status == 201
