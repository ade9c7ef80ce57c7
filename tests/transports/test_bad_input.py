"""Bad input: every wrong request has its own answer, with the code, the field, and nothing lost or leaked."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import io
import json
import time
import uuid
from collections.abc import Iterable
from typing import Any, NamedTuple

import jwt
import msgspec
import pytest

from gateway.core.errors import WIRE, Code
from tests.conftest import PERSONA_ID, SECRETS, TENANT_TOML, Running, StartGateway
from tests.transports.client import Answer, Client, check_log, metric
from tests.transports.conftest import SignIn

ORIGIN = "https://app.example"
NOBODY = "00000000-0000-4000-8000-000000000000"
ID = "11111111-2222-4333-8444-555555555555"


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One bad request and what it must be told. ``body`` is sent as JSON unless it is bytes."""

    method: str
    path: str
    body: Any
    status: int
    code: str
    field: str | None = None
    headers: dict[str, str] = dataclasses.field(default_factory=dict)


async def send(client: Client, row: Row, names: dict[str, str]) -> Answer:
    path, body = fill(row.path, names), row.body
    data = None
    headers = {"Origin": ORIGIN, "X-Request-Id": "req-1", **client.headers, **row.headers}
    if body is not None:
        data = body if isinstance(body, bytes) else fill(msgspec.json.encode(body).decode(), names).encode()
        headers.setdefault("Content-Type", "application/json")
    async with client.running.http.request(
        row.method, client.running.url + path, data=io.BytesIO(data) if data is not None else None, headers=headers
    ) as response:
        return Answer(response.status, response.headers, await response.read())


def fill(text: str, names: dict[str, str]) -> str:
    for name, value in names.items():
        text = text.replace("{" + name + "}", value)
    return text


def check_problem(answer: Answer, row: Row) -> str | None:
    """Return what is wrong with a refusal, or None. Every refusal is an RFC 9457 document, readable by the page."""
    if answer.headers.get("Content-Type") != "application/problem+json":
        return f"{answer.status} {answer.headers.get('Content-Type')} {answer.raw[:200]!r}"
    body = answer.body
    seen = (answer.status, body["code"], body.get("field"))
    if seen != (row.status, row.code, row.field):
        return f"{seen} instead of {(row.status, row.code, row.field)}: {body['detail']}"
    assert body["status"] == answer.status == WIRE[Code(row.code)].http
    assert body["type"].endswith(f"#{row.code}")
    assert body["title"] == WIRE[Code(row.code)].title
    assert body["detail"]
    assert body["request_id"] == answer.headers["X-Request-Id"] == "req-1"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    if answer.status == 401:
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    return None


async def check_rows(client: Client, rows: Iterable[Row], names: dict[str, str] | None = None) -> None:
    wrong = []
    for row in rows:
        told = check_problem(await send(client, row, names or {}), row)
        if told is not None:
            wrong.append(f"{row.method} {row.path} {str(row.body)[:60]} {row.headers or ''}: {told}")
    assert not wrong, "\n".join(wrong)


class Things(NamedTuple):
    """What a user has: a conversation with an ended turn."""

    client: Client
    names: dict[str, str]


@pytest.fixture
async def things(client: Client) -> Things:
    return Things(client, await make_things(client))


async def make_things(client: Client) -> dict[str, str]:
    conversation = await client.conversation()
    ending = (await client.complete(conversation, "Hi #tokens=3"))[-1]
    return {
        "c": conversation,
        "t": ending.turn_id,
        "m": ending.data["message_id"],
        "last": str(ending.position),
        "n": NOBODY,
    }


DOORS = [
    ("POST", "/v1/conversations", {}),
    ("GET", "/v1/conversations", None),
    ("GET", "/v1/conversations/{c}", None),
    ("POST", "/v1/conversations/{c}/turns", {"message": "Hi"}),
    ("GET", "/v1/conversations/{c}/events", None),
    ("GET", "/v1/turns/{t}/events", None),
    ("POST", "/v1/turns/{t}/stop", None),
    ("PUT", "/v1/conversations/{c}/messages/{m}/feedback", {"score": 1}),
]


# --- who is asking ----------------------------------------------------------------------------------------------------


def unsigned(claims: dict[str, Any]) -> str:
    def part(value: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"hgt_{part({'alg': 'none', 'typ': 'JWT'})}.{part(claims)}."


def bad_credentials(running: Running, good: str) -> dict[str, tuple[str | None, int, str]]:
    """Name every bad credential: the Authorization header and what it must be told."""
    now_s = int(time.time())
    claims = {"aud": "hyperleap-gateway", "ten": running.tenant, "sub": "u1", "iat": now_s, "exp": now_s + 600}
    kid = jwt.get_unverified_header(good.removeprefix("hgt_"))["kid"]

    def signed(algorithm: str = "HS256", key: bytes = SECRETS.signing_key, **changes: Any) -> str:
        told = {name: value for name, value in {**claims, **changes}.items() if value is not None}
        return "Bearer hgt_" + jwt.encode(told, key, algorithm=algorithm, headers={"kid": kid})

    head, payload, signature = good.removeprefix("hgt_").split(".")
    return {
        "missing": (None, 401, "credential_missing"),
        "empty": ("", 401, "credential_invalid"),
        "scheme only": ("Bearer", 401, "credential_invalid"),
        "basic": ("Basic dTpw", 401, "credential_invalid"),
        "no scheme": (good, 401, "credential_invalid"),
        "nonsense": ("Bearer nonsense", 401, "credential_invalid"),
        "prefix only": ("Bearer hgt_", 401, "credential_invalid"),
        "two parts": (f"Bearer hgt_{head}.{payload}", 401, "credential_invalid"),
        "huge": ("Bearer hgt_" + "a" * 5000, 401, "credential_invalid"),
        "non-ASCII": ("Bearer hgt_é", 401, "credential_invalid"),
        "secret key": (f"Bearer {running.secret_key}", 403, "forbidden"),
        "publishable key": (f"Bearer {running.publishable_key}", 403, "forbidden"),
        "alg none": (f"Bearer {unsigned(claims)}", 401, "credential_invalid"),
        "alg none, kid": (
            "Bearer hgt_" + jwt.encode(claims, "", algorithm="none", headers={"kid": kid}),
            401,
            "credential_invalid",
        ),
        "another algorithm": (signed("HS512"), 401, "credential_invalid"),
        "another key": (signed(key=b"another key of thirty-two bytes!!"), 401, "credential_invalid"),
        "no signature": (f"Bearer hgt_{head}.{payload}.", 401, "credential_invalid"),
        "changed payload": (f"Bearer hgt_{head}.{payload[:-4]}AAAA.{signature}", 401, "credential_invalid"),
        "expired": (signed(exp=now_s - 60), 401, "token_expired"),
        "not yet issued": (signed(iat=now_s + 600), 401, "credential_invalid"),
        "without expiry": (signed(exp=None), 401, "credential_invalid"),
        "without user": (signed(sub=None), 401, "credential_invalid"),
        "user of a wrong type": (signed(sub=7), 401, "credential_invalid"),
        "for others": (signed(aud="someone-else"), 401, "credential_invalid"),
        "a visitor's id": (signed(aud="hyperleap-gateway-visitor"), 401, "credential_invalid"),
        "unknown tenant": (signed(ten="nobody"), 401, "credential_invalid"),
        "without tenant": (signed(ten=None), 401, "credential_invalid"),
    }


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
async def test_bad_credential_is_refused_at_every_door(running: Running, things: Things) -> None:
    """No door opens to any credential but a good token, and no refusal repeats what was shown."""
    wrong = []
    for name, (header, status, code) in bad_credentials(running, things.client.token).items():
        anyone = Client(running, {} if header is None else {"Authorization": header})
        for method, path, body in DOORS:
            answer = await send(anyone, Row(method, path, body, status, code), things.names)
            told = check_problem(answer, Row(method, path, body, status, code))
            if told is not None:
                wrong.append(f"{name}: {method} {path}: {told}")
            shown = (header or "").removeprefix("Bearer ")
            if len(shown) > 8 and shown.encode() in answer.raw:
                wrong.append(f"{name}: the refusal repeats it")
    assert not wrong, "\n".join(wrong)
    assert len(running.simulator.bill) == 1


async def test_good_credential_opens_what_the_bad_ones_did_not(running: Running, things: Things) -> None:
    """The token that the bad ones are made from is itself good, and one just before its expiry is too."""
    now_s = int(time.time())
    claims = {"aud": "hyperleap-gateway", "ten": running.tenant, "sub": "u1", "iat": now_s, "exp": now_s + 5}
    kid = jwt.get_unverified_header(things.client.token.removeprefix("hgt_"))["kid"]
    token = jwt.encode(claims, SECRETS.signing_key, algorithm="HS256", headers={"kid": kid})
    for shown in (things.client.token, f"hgt_{token}"):
        answer = await Client(running, {"Authorization": f"Bearer {shown}"}).call(
            "GET", f"/v1/conversations/{things.names['c']}"
        )
        assert answer.status == 200


async def test_bad_credential_twice_is_refused(running: Running, client: Client) -> None:
    """Two Authorization headers are one too many, even when the first is good."""
    host, port = "127.0.0.1", int(running.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection(host, port)
    line = f"Authorization: Bearer {client.token}\r\n"
    writer.write(f"GET /v1/conversations HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{line}{line}\r\n".encode())
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 401"))


async def test_bad_session_request_is_refused_with_code_and_field(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """Every wrong way to open a session has its answer."""
    running, other = await start_gateway(), await start_gateway()
    client = await sign_in(running)
    secret = {"Authorization": f"Bearer {running.secret_key}"}
    public = {"Authorization": f"Bearer {running.publishable_key}"}
    tampered = running.secret_key[:-1] + ("A" if running.secret_key[-1] != "A" else "B")
    foreign = other.secret_key.replace(other.tenant, running.tenant)
    swapped = running.secret_key.replace("hgs_", "hgp_")
    unknown = running.secret_key.replace(running.tenant, "nobody")

    def row(who: dict[str, str], body: Any, status: int, code: str, named: str | None = None) -> Row:
        return Row("POST", "/v1/sessions", body, status, code, named, who)

    def limited(**limits: int) -> dict[str, Any]:
        return {"user_id": "u1", "limits": limits}

    rows = [
        row({}, {"user_id": "u1"}, 401, "credential_missing"),
        *(
            row({"Authorization": f"Bearer {key}"}, {"user_id": "u1"}, 401, "credential_invalid")
            for key in ("hgs_", "hgs_x", "hgs_t.id.secret", tampered, foreign, swapped, unknown)
        ),
        row({"Authorization": f"Bearer {client.token}"}, {"user_id": "u1"}, 403, "forbidden"),
        row(secret, {}, 422, "missing_field", "user_id"),
        row(secret, {"user_id": ""}, 422, "invalid_value", "user_id"),
        row(secret, {"user_id": "u" * 257}, 422, "invalid_value", "user_id"),
        row(secret, {"user_id": "u\n1"}, 422, "invalid_value", "user_id"),
        row(secret, {"user_id": 1}, 422, "wrong_type", "user_id"),
        row(secret, {"user_id": "u1", "ttl_s": 29}, 422, "invalid_value", "ttl_s"),
        row(secret, {"user_id": "u1", "ttl_s": 86_401}, 422, "invalid_value", "ttl_s"),
        row(secret, {"user_id": "u1", "ttl_s": "900"}, 422, "wrong_type", "ttl_s"),
        row(secret, {"user_id": "u1", "personas": ["nobody"]}, 422, "persona_unknown", "personas"),
        row(secret, {"user_id": "u1", "personas": "default"}, 422, "wrong_type", "personas"),
        row(secret, {"user_id": "u1", "visitor_id": "hgv_x"}, 403, "forbidden", "visitor_id"),
        row(secret, {"user_id": "u1", "role": "admin"}, 422, "unknown_field", "role"),
        row(secret, {"user_id": "u1", "origins": ["https://a.example"] * 33}, 422, "invalid_value", "origins"),
        row(secret, {"user_id": "u1", "origins": [f"https://{'a' * 200}.example"] * 32}, 422, "invalid_value"),
        row(secret, {"user_id": "u1", "origins": ["https://A.example"]}, 422, "invalid_value", "origins"),
        row(secret, {"user_id": "u1", "origins": ["https://a.example/"]}, 422, "invalid_value", "origins"),
        row(secret, {"user_id": "u1", "origins": ["https://\u0430.example"]}, 422, "invalid_value", "origins"),
        row(secret, {"user_id": "u1", "origins": ["*"]}, 422, "invalid_value", "origins"),
        row(secret, {"user_id": "u1", "personas": []}, 422, "invalid_value", "personas"),
        row(secret, {"user_id": "u1", "single_use": 1}, 422, "wrong_type", "single_use"),
        row(secret, limited(requests_per_min=0), 422, "invalid_value", "limits.requests_per_min"),
        row(secret, limited(tokens_per_min=10**9), 422, "invalid_value", "limits.tokens_per_min"),
        row(secret, limited(concurrent_turns=-1), 422, "invalid_value", "limits.concurrent_turns"),
        row(secret, limited(concurrent_turns=10**9), 422, "invalid_value", "limits.concurrent_turns"),
        row(secret, limited(tokens_per_day=1), 422, "unknown_field", "limits.tokens_per_day"),
        row(secret, {"user_id": "u1", "limits": []}, 422, "wrong_type", "limits"),
        row(public, {"single_use": True}, 403, "forbidden", "single_use"),
        row(public, {"limits": {"requests_per_min": 1}}, 403, "forbidden", "limits.requests_per_min"),
        row(public, {"user_id": "u1"}, 403, "forbidden", "user_id"),
        row(public, {"personas": ["default"]}, 403, "forbidden", "personas"),
        row(public, {"origins": [ORIGIN]}, 403, "forbidden", "origins"),
        row(public, {"visitor_id": "x"}, 422, "invalid_value", "visitor_id"),
        row(public, {"visitor_id": "hgv_a.b.c"}, 422, "invalid_value", "visitor_id"),
    ]
    await check_rows(Client(running, {}), rows)
    for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {}):
        answer = await Client(running, {**public, **headers}).call("POST", "/v1/sessions", {})
        assert (answer.status, answer.body["code"]) == (403, "origin_not_allowed"), headers
        assert "Access-Control-Allow-Origin" not in answer.headers


# --- what is not there, or not theirs ---------------------------------------------------------------------------------


async def test_things_of_others_are_not_found_at_every_door(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """A conversation, turn or message of another user or tenant is 404 exactly as one that never was."""
    running, elsewhere = await start_gateway(), await start_gateway()
    owner, stranger = await sign_in(running), await sign_in(running, "u2")
    foreigner, namesake = await sign_in(elsewhere, "u2"), await sign_in(elsewhere, "u1")
    theirs = await make_things(owner)
    wrong = []
    for who in (stranger, foreigner, namesake):
        mine = await make_things(who)
        for method, path, body in DOORS[2:]:
            real = await send(who, Row(method, path, body, 404, "not_found"), theirs)
            never = await send(who, Row(method, path, body, 404, "not_found"), dict.fromkeys(theirs, NOBODY))
            if (real.status, real.body["code"]) != (404, "not_found"):
                wrong.append(f"{method} {path}: {real.status} {real.raw[:100]!r}")
            if real.raw != never.raw:
                wrong.append(f"{method} {path}: {real.raw!r} differs from {never.raw!r}")
        mixed = [
            Row(
                "PUT",
                f"/v1/conversations/{mine['c']}/messages/{{m}}/feedback",
                {"score": 1},
                404,
                "not_found",
                "message_id",
            ),
            Row("PUT", f"/v1/conversations/{{c}}/messages/{mine['m']}/feedback", {"score": 1}, 404, "not_found"),
            Row("GET", f"/v1/conversations/{mine['c']}/events?after={{t}}.2", None, 404, "not_found"),
            Row("GET", f"/v1/turns/{mine['t']}/events?after={{t}}.2", None, 400, "invalid_cursor", "after"),
        ]
        await check_rows(who, mixed, theirs)
        listed = (await who.call("GET", "/v1/conversations")).body["data"]
        assert [entry["id"] for entry in listed] == [mine["c"]]
    assert not wrong, "\n".join(wrong)
    kept = running.simulator.conversations.get(theirs["c"])
    assert kept is not None
    rated = kept.message(theirs["m"])
    assert rated is not None
    assert rated.feedbacks == []
    assert check_log(await owner.replay(theirs["t"])).name == "turn.completed"


async def test_guessing_ids_spends_the_callers_cap_and_not_the_vendors(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """The vendor is asked for another's conversation as for one that nobody has, while the caller's cap allows."""
    tenant = f"t-{uuid.uuid4().hex[:12]}"
    toml = TENANT_TOML.format(tenant=tenant, persona=PERSONA_ID).replace("requests_per_min = 0", "requests_per_min = 5")
    running = await start_gateway(toml=toml.replace("limits.tenant = { requests_per_min = 5 }", ""))
    conversation = await (await sign_in(running)).conversation()
    for stranger, wanted in (("u2", conversation), ("u3", NOBODY)):
        client, before = await sign_in(running, stranger), running.simulator.state.requests
        statuses = [(await client.call("GET", f"/v1/conversations/{wanted}")).status for _ in range(10)]
        assert statuses == [404] * 5 + [429] * 5
        assert running.simulator.state.requests == before + 5


# --- what was asked ---------------------------------------------------------------------------------------------------

CREATE = "/v1/conversations"
LONG = "x" * 32_001
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
REFUSED = "replacement_not_allowed"
TURNS = "/v1/conversations/{c}/turns"
FEEDBACK = "/v1/conversations/{c}/messages/{m}/feedback"
EVENTS = "/v1/turns/{t}/events"

BODIES = [
    Row("POST", TURNS, b"", 400, "malformed_json"),
    Row("POST", TURNS, b"{", 400, "malformed_json"),
    Row("POST", TURNS, b'{"message":"Hi"', 400, "malformed_json"),
    Row("POST", TURNS, b'{"message":"Hi"} {}', 400, "malformed_json"),
    Row("POST", TURNS, b"{'message':'Hi'}", 400, "malformed_json"),
    Row("POST", TURNS, b'{"message":"\xff"}', 400, "malformed_json"),
    Row("POST", TURNS, b'{"message":"\\ud800"}', 400, "malformed_json"),
    Row("POST", TURNS, b'{"message":"\\x"}', 400, "malformed_json"),
    Row("POST", TURNS, b'{"message":NaN}', 400, "malformed_json"),
    Row("POST", TURNS, b"[" * 100_000, 422, "wrong_type"),
    Row("POST", "/v1/conversations", b'{"metadata":' + b'{"a":' * 50_000, 400, "malformed_json"),
    Row("POST", TURNS, [], 422, "wrong_type"),
    Row("POST", TURNS, "Hi", 422, "wrong_type"),
    Row("POST", TURNS, b"null", 422, "wrong_type"),
    Row("POST", TURNS, {}, 422, "missing_field", "message"),
    Row("POST", TURNS, {"message": None}, 422, "wrong_type", "message"),
    Row("POST", TURNS, {"message": 7}, 422, "wrong_type", "message"),
    Row("POST", TURNS, {"message": ["Hi"]}, 422, "wrong_type", "message"),
    Row("POST", TURNS, {"message": "Hi", "persona_id": ID}, 422, "unknown_field", "persona_id"),
    Row("POST", TURNS, {"message": ""}, 422, "message_empty", "message"),
    Row("POST", TURNS, {"message": " \n\t\u00a0\u2003"}, 422, "message_empty", "message"),
    Row("POST", TURNS, {"message": LONG}, 413, "message_too_long", "message"),
    Row("POST", TURNS, b'{"message":"' + b"x" * 1_048_577 + b'"}', 413, "body_too_large"),
    Row("POST", TURNS, {"message": "Hi"}, 415, "unsupported_media_type", None, {"Content-Type": "text/plain"}),
    Row("POST", TURNS, b"message=Hi", 415, "unsupported_media_type", None, FORM),
    Row("POST", TURNS, {"message": "Hi"}, 415, "unsupported_media_type", None, {"Content-Type": "nonsense"}),
    Row("POST", TURNS, {"message": "Hi"}, 422, "invalid_value", "Idempotency-Key", {"Idempotency-Key": "k" * 256}),
    Row("POST", "/v1/conversations", {"persona": "nobody"}, 422, "persona_unknown", "persona"),
    Row("POST", "/v1/conversations", {"persona": PERSONA_ID}, 422, "persona_unknown", "persona"),
    Row("POST", "/v1/conversations", {"persona": 1}, 422, "wrong_type", "persona"),
    Row("POST", "/v1/conversations", {"replacements": {"system": "x"}}, 422, REFUSED, "replacements.system"),
    Row("POST", CREATE, {"persona": "other", "replacements": {"name": "x"}}, 422, REFUSED, "replacements.name"),
    Row("POST", "/v1/conversations", {"replacements": []}, 422, "wrong_type", "replacements"),
    Row("POST", "/v1/conversations", {"replacements": {"name": {"a": 1}}}, 422, "wrong_type", "replacements[...]"),
    Row("POST", "/v1/conversations", {"metadata": "x"}, 422, "wrong_type", "metadata"),
    Row("POST", "/v1/conversations", {"metadata": {str(n): n for n in range(33)}}, 422, "invalid_value", "metadata"),
    Row("POST", "/v1/conversations", {"externalUserId": "x"}, 422, "unknown_field", "externalUserId"),
    Row("PUT", FEEDBACK, {}, 422, "missing_field", "score"),
    Row("PUT", FEEDBACK, {"score": 11}, 422, "invalid_value", "score"),
    Row("PUT", FEEDBACK, {"score": -11}, 422, "invalid_value", "score"),
    Row("PUT", FEEDBACK, {"score": 2**70}, 422, "invalid_value", "score"),
    Row("PUT", FEEDBACK, {"score": 1.5}, 422, "wrong_type", "score"),
    Row("PUT", FEEDBACK, {"score": True}, 422, "wrong_type", "score"),
    Row("PUT", FEEDBACK, {"score": "8"}, 422, "wrong_type", "score"),
    Row("PUT", FEEDBACK, {"score": 1, "confidence": 1.01}, 422, "invalid_value", "confidence"),
    Row("PUT", FEEDBACK, {"score": 1, "confidence": -0.1}, 422, "invalid_value", "confidence"),
    Row("PUT", FEEDBACK, {"score": 1, "tags": "clear"}, 422, "wrong_type", "tags"),
    Row("PUT", FEEDBACK, {"score": 1, "tags": [1]}, 422, "wrong_type", "tags[0]"),
    Row("PUT", FEEDBACK, {"score": 1, "tags": [""]}, 422, "invalid_value", "tags"),
    Row("PUT", FEEDBACK, {"score": 1, "tags": ["t"] * 17}, 422, "invalid_value", "tags"),
    Row("PUT", FEEDBACK, {"score": 1, "comments": "x" * 4001}, 422, "invalid_value", "comments"),
    Row("PUT", FEEDBACK, {"score": 1, "feedbackId": ID}, 422, "unknown_field", "feedbackId"),
    Row("PUT", "/v1/conversations/{c}/messages/{n}/feedback", {"score": 1}, 404, "not_found", "message_id"),
]  # fmt: skip

PATHS = [
    *(
        Row(method, path.replace(name, bad), body, 400, "invalid_id", named)
        for method, path, body in DOORS
        for name, named in (("{c}", "conversation_id"), ("{t}", "turn_id"), ("{m}", "message_id"))
        if name in path
        for bad in ("7", "not-a-uuid", ID + "0", ID[:-1], ID.replace("-", ""), "%C3%A9")
    ),
    Row("GET", EVENTS + "?after=17", None, 400, "invalid_cursor", "after"),
    Row("GET", EVENTS + "?after={t}", None, 400, "invalid_cursor", "after"),
    Row("GET", EVENTS + "?after={t}.", None, 400, "invalid_cursor", "after"),
    Row("GET", EVENTS + "?after={t}.-1", None, 400, "invalid_cursor", "after"),
    Row("GET", EVENTS + "?after={t}.1.5", None, 400, "invalid_cursor", "after"),
    Row("GET", EVENTS + "?after={t}.1e3", None, 400, "invalid_cursor", "after"),
    Row("GET", EVENTS + "?after={t}.9999999999999999999999", None, 400, "invalid_cursor", "after"),
    Row("GET", EVENTS + "?after={t}.%D9%A3", None, 400, "invalid_cursor", "after"),
    Row("GET", EVENTS + "?after={n}.1", None, 400, "invalid_cursor", "after"),
    Row("GET", EVENTS + "?after={t}.999999", None, 400, "invalid_cursor", "after"),
    Row("GET", EVENTS, None, 400, "invalid_cursor", "Last-Event-ID", {"Last-Event-ID": "17"}),
    Row("GET", EVENTS, None, 400, "invalid_cursor", "Last-Event-ID", {"Last-Event-ID": f"{NOBODY}.3"}),
    Row("GET", EVENTS, None, 400, "invalid_cursor", "Last-Event-ID", {"Last-Event-ID": "{t}.999999"}),
    Row("GET", "/v1/conversations/{c}/events?after=x", None, 400, "invalid_cursor", "after"),
    Row("GET", "/v1/conversations/{c}/events?after={n}.1", None, 404, "not_found"),
    Row("GET", "/v1/conversations/{c}/events?after={other}.2", None, 400, "invalid_cursor", "after"),
    Row("GET", "/v1/conversations/{c}/events?after={t}.999999", None, 400, "invalid_cursor", "after"),
    Row("GET", "/v1/conversations?cursor=x", None, 400, "invalid_cursor", "cursor"),
    Row("GET", "/v1/conversations?cursor=1.2", None, 400, "invalid_cursor", "cursor"),
    Row("GET", "/v1/conversations?limit=0", None, 422, "invalid_value", "limit"),
    Row("GET", "/v1/conversations?limit=101", None, 422, "invalid_value", "limit"),
    Row("GET", "/v1/conversations?limit=ten", None, 422, "invalid_value", "limit"),
    Row("GET", "/v1/conversations?limit=%D9%A3", None, 422, "invalid_value", "limit"),
    Row("GET", "/v1", None, 404, "not_found"),
    Row("GET", "/v2/conversations", None, 404, "not_found"),
    Row("GET", "/v1/conversations/", None, 404, "not_found"),
    Row("GET", "/page/../settings.py", None, 404, "not_found"),
    Row("GET", "/page/%2e%2e/settings.py", None, 404, "not_found"),
]


async def test_bad_body_is_refused_with_code_and_field(running: Running, things: Things) -> None:
    """Each bad body is told what is wrong and where; none of them reaches the vendor."""
    spent = len(running.simulator.bill)
    await check_rows(things.client, BODIES, things.names)
    assert len(running.simulator.bill) == spent


async def test_bad_path_query_or_header_is_refused_with_code_and_field(things: Things) -> None:
    """Each bad id, cursor, page and route is told what is wrong and where."""
    other = (await things.client.complete(await things.client.conversation(), "Hi #tokens=1"))[0].turn_id
    rows = []
    for row in PATHS:
        headers = {name: fill(value, things.names) for name, value in row.headers.items()}
        rows.append(dataclasses.replace(row, headers=headers))
    await check_rows(things.client, rows, {**things.names, "other": other})


async def test_bad_method_is_refused_with_what_is_allowed(things: Things) -> None:
    """405 names the methods that the path has; HEAD of a stream, which is all body, is among what it has not."""
    rows = [
        ("DELETE", "/v1/conversations/{c}", {"GET"}),
        ("PUT", "/v1/conversations", {"GET", "POST"}),
        ("GET", "/v1/sessions", {"POST"}),
        ("GET", "/v1/conversations/{c}/turns", {"POST"}),
        ("POST", "/v1/turns/{t}/events", {"GET"}),
        ("GET", "/v1/turns/{t}/stop", {"POST"}),
        ("POST", "/v1/conversations/{c}/messages/{m}/feedback", {"PUT"}),
        ("REPORT", "/v1/conversations", {"GET", "POST"}),
        ("OPTIONS", "/v1/conversations", {"GET", "POST"}),
    ]
    for method, path, allowed in rows:
        row = Row(method, path, None, 405, "method_not_allowed")
        answer = await send(things.client, row, things.names)
        assert check_problem(answer, row) is None, (method, path, answer)
        assert {name.strip() for name in answer.headers["Allow"].split(",")} >= allowed
    for path in ("/v1/turns/{t}/events", "/v1/conversations/{c}/events", "/v1/ws"):
        answer = await send(things.client, Row("HEAD", path, None, 405, ""), things.names)
        assert (answer.status, answer.raw) == (405, b""), path
    assert (await things.client.call("GET", "/v1/conversations")).status == 200  # the connection still makes sense


async def exchange(running: Running, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send raw bytes and read one answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(running.url.rpartition(":")[2]))
    try:
        writer.write(request)
        async with asyncio.timeout(5):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            status, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
        return int(status.split()[1]), headers, body
    finally:
        writer.close()


async def test_body_without_length_is_411(running: Running, things: Things) -> None:
    """A chunked body is refused before it is read, however small it is."""
    for body in (b"f\r\n" + b'{"message":"Hi"}'[:15] + b"\r\n1\r\n}\r\n0\r\n\r\n", b""):
        head = (
            f"POST /v1/conversations/{things.names['c']}/turns HTTP/1.1\r\nHost: x\r\nOrigin: {ORIGIN}\r\n"
            f"Authorization: Bearer {things.client.token}\r\nContent-Type: application/json\r\n"
            "Transfer-Encoding: chunked\r\n\r\n"
        )
        status, headers, told = await exchange(running, head.encode() + body)
        assert (status, msgspec.json.decode(told)["code"]) == (411, "length_required")
        assert headers["content-type"] == "application/problem+json"
        assert headers["access-control-allow-origin"] == ORIGIN


async def test_body_declared_too_large_is_413_before_it_is_sent(running: Running, things: Things) -> None:
    """The declared length is enough to refuse: nobody has to send a gigabyte to hear no."""
    head = (
        f"POST /v1/conversations/{things.names['c']}/turns HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {things.client.token}\r\nContent-Type: application/json\r\n"
        "Content-Length: 1073741824\r\n\r\n"
    )
    status, _, told = await exchange(running, head.encode())
    assert (status, msgspec.json.decode(told)["code"]) == (413, "body_too_large")


async def test_body_that_never_arrives_is_given_up(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """A client that declares a body and does not send it is answered after the time allowed."""
    running = await start_gateway(environ={"GATEWAY_BODY_TIMEOUT_S": "0.2"})
    client = await sign_in(running)
    head = (
        "POST /v1/conversations HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {client.token}\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{{"
    )
    status, _, told = await exchange(running, head.encode())
    assert 400 <= status < 500
    assert msgspec.json.decode(told)["code"]


@pytest.mark.parametrize("shown", ["", "a b", "x" * 65, "é", "evil<script>"])
async def test_request_id_that_is_no_id_is_replaced(shown: str, client: Client) -> None:
    """A request id is echoed when it is a plain word of up to 64 characters; anything else gets one of ours."""
    answer = await client.call("GET", "/v1/nowhere", X_Request_Id=shown)
    assert answer.headers["X-Request-Id"] != shown
    assert answer.body["request_id"] == answer.headers["X-Request-Id"] != ""


async def test_trace_of_the_caller_is_continued(client: Client) -> None:
    """The answer's ``traceparent`` has the caller's trace and a span of ours; a bad one begins a new trace."""
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    answer = await client.call("GET", "/v1/conversations", traceparent=f"00-{trace}-00f067aa0ba902b7-01")
    version, told, span, flags = answer.headers["traceparent"].split("-")
    assert (version, told, flags) == ("00", trace, "01")
    assert span != "00f067aa0ba902b7"
    fresh = await client.call("GET", "/v1/conversations", traceparent="00-nonsense")
    assert trace not in fresh.headers["traceparent"]


async def test_words_at_their_largest_are_taken(things: Things) -> None:
    """What is just inside every bound is accepted: the bounds are those that are documented."""
    client, names = things
    rows: list[tuple[str, str, Any]] = [
        ("POST", "/v1/conversations", {"metadata": {str(n): n for n in range(32)}}),
        ("POST", "/v1/conversations", {"persona": "default", "replacements": {"name": None}}),
        ("POST", TURNS, {"message": "x" * 31_990 + " #tokens=1"}),
        ("PUT", FEEDBACK, {"score": -10}),
        ("PUT", FEEDBACK, {"score": 10, "confidence": 1, "tags": ["t" * 64] * 16, "comments": "x" * 4000}),
        ("PUT", FEEDBACK, {"score": 0, "confidence": 0, "tags": []}),
        ("GET", "/v1/conversations?limit=100", None),
        ("GET", EVENTS.replace("{t}", "{T}"), None),
    ]
    for method, path, body in rows:
        path = fill(path, {**names, "T": names["t"].upper()})
        answer = await client.call(method, path, body)
        assert answer.status in (200, 201), (path, answer.raw)


async def test_error_is_counted_by_its_code(running: Running, client: Client) -> None:
    """Every refusal is counted under its code."""
    await client.call("GET", "/v1/nowhere")
    assert await metric(running, "gateway_errors_total", code="not_found") == 1
