"""Sessions: keys become short-lived tokens, for the user, the origin and the life that were asked for."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime

import msgspec

from tests.conftest import Running, StartGateway
from tests.transports.client import Answer, Client, Closed
from tests.transports.conftest import SignIn

ORIGIN = {"Origin": "https://app.example"}


async def open_session(running: Running, key: str, body: object, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await Client(running, {"Authorization": f"Bearer {key}"}).call("POST", "/v1/sessions", body, **named)


async def test_session_with_secret_key_gives_token_of_the_named_user(running: Running) -> None:
    """A secret key mints a token for a user; it opens the doors and says when it ends."""
    asked_at = datetime.now(UTC)
    answer = await open_session(running, running.secret_key, {"user_id": "u1", "ttl_s": 120})
    assert answer.status == 201
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.body.keys() == {"token", "token_id", "expires_at", "user_id"}
    assert answer.body["token"].startswith("hgt_")
    assert answer.body["user_id"] == "u1"
    life_s = (datetime.fromisoformat(answer.body["expires_at"]) - asked_at).total_seconds()
    assert 117 <= life_s <= 121
    client = Client(running, {"Authorization": f"Bearer {answer.body['token']}"})
    assert (await client.call("GET", "/v1/conversations")).status == 200


async def test_session_without_ttl_lives_fifteen_minutes(running: Running) -> None:
    """The default life of a token is 900 s, and its size is far below 4 KiB."""
    asked_at = datetime.now(UTC)
    answer = await open_session(running, running.secret_key, {"user_id": "u1"})
    life_s = (datetime.fromisoformat(answer.body["expires_at"]) - asked_at).total_seconds()
    assert 897 <= life_s <= 901
    assert len(answer.body["token"]) < 4096


async def test_session_of_visitor_from_listed_origin_is_anonymous(running: Running) -> None:
    """A publishable key opens an anonymous session with a visitor id, and two visitors are two users."""
    one = await open_session(running, running.publishable_key, {}, **ORIGIN)
    two = await open_session(running, running.publishable_key, {}, **ORIGIN)
    assert (one.status, two.status) == (201, 201)
    assert one.body["visitor_id"].startswith("hgv_")
    assert one.body["user_id"] != two.body["user_id"]


async def test_session_of_returning_visitor_is_the_same_user(running: Running) -> None:
    """A visitor who sends the visitor id back is the same user and finds the conversation again."""
    first = await open_session(running, running.publishable_key, {}, **ORIGIN)
    client = Client(running, {"Authorization": f"Bearer {first.body['token']}"})
    conversation = await client.conversation()
    again = await open_session(running, running.publishable_key, {"visitor_id": first.body["visitor_id"]}, **ORIGIN)
    assert again.body["user_id"] == first.body["user_id"]
    returned = Client(running, {"Authorization": f"Bearer {again.body['token']}"})
    assert (await returned.call("GET", f"/v1/conversations/{conversation}")).status == 200


async def test_session_of_visitor_of_another_tenant_begins_anew(start_gateway: StartGateway) -> None:
    """A visitor id of one tenant says nothing to another."""
    here, there = await start_gateway(), await start_gateway()
    visitor = await open_session(there, there.publishable_key, {}, **ORIGIN)
    answer = await open_session(here, here.publishable_key, {"visitor_id": visitor.body["visitor_id"]}, **ORIGIN)
    assert answer.status == 201
    assert answer.body["user_id"] != visitor.body["user_id"]


async def test_session_from_the_page_of_the_gateway_needs_no_listing(running: Running) -> None:
    """The gateway's own page may open anonymous sessions."""
    answer = await open_session(running, running.publishable_key, {}, Origin=running.url)
    assert answer.status == 201


async def test_session_where_anonymous_is_not_switched_on_is_refused(start_gateway: StartGateway) -> None:
    """Anonymous sessions are off unless the tenant switches them on."""
    toml = '[tenants.quiet]\norigins = ["https://app.example"]\n[tenants.quiet.personas.default]\n'
    running = await start_gateway(toml=toml + 'persona_id = "6f1c8f0e-4f3e-4a9e-9d2c-0d4b1f0a2b3c"\n')
    answer = await open_session(running, running.publishable_key, {}, **ORIGIN)
    assert (answer.status, answer.body["code"]) == (403, "anonymous_disabled")


async def test_session_for_one_persona_reaches_no_other(running: Running, sign_in: SignIn) -> None:
    """A token minted for one persona neither opens nor sees conversations of another."""
    broad = await sign_in(running)
    narrow = await sign_in(running, personas=["other"])
    default, other = await broad.conversation(persona="default"), await broad.conversation(persona="other")
    turn = await broad.start(default, "Hi #tokens=2")
    assert (await narrow.call("GET", f"/v1/conversations/{other}")).status == 200
    listed = await narrow.call("GET", "/v1/conversations")
    assert [entry["id"] for entry in listed.body["data"]] == [other]
    listed = await broad.call("GET", "/v1/conversations")
    assert {entry["id"] for entry in listed.body["data"]} == {default, other}  # what is left out is not taken off
    refused = await narrow.call("POST", "/v1/conversations", {"persona": "default"})
    assert (refused.status, refused.body["code"]) == (422, "persona_unknown")
    for method, path, body in (
        ("GET", f"/v1/conversations/{default}", None),
        ("GET", f"/v1/conversations/{default}/events", None),
        ("GET", f"/v1/turns/{turn}/events", None),
        ("POST", f"/v1/turns/{turn}/stop", None),
        ("POST", f"/v1/conversations/{default}/turns", {"message": "Hi"}),
    ):
        answer = await narrow.call(method, path, body)
        assert (answer.status, answer.body["code"]) == (404, "not_found"), (method, path)


async def test_session_for_one_origin_is_refused_from_another(running: Running) -> None:
    """A token bound to an origin is refused from others, also from those that its tenant lists."""
    answer = await open_session(running, running.secret_key, {"user_id": "u1", "origins": ["https://one.example"]})
    client = Client(running, {"Authorization": f"Bearer {answer.body['token']}"})
    refused = await client.call("GET", "/v1/conversations", **ORIGIN)
    assert (refused.status, refused.body["code"]) == (403, "origin_not_allowed")


async def test_session_token_of_another_signing_key_is_refused(running: Running) -> None:
    """A token with one character of its signature changed opens nothing."""
    token = (await open_session(running, running.secret_key, {"user_id": "u1"})).body["token"]
    forged = token[:-2] + ("A" if token[-2] != "A" else "B") + token[-1]
    answer = await Client(running, {"Authorization": f"Bearer {forged}"}).call("GET", "/v1/conversations")
    assert (answer.status, answer.body["code"]) == (401, "credential_invalid")
    assert msgspec.json.encode(answer.body).find(forged.encode()) == -1


async def test_session_with_a_limit_keeps_to_it(running: Running, sign_in: SignIn) -> None:
    """A token may carry a tighter cap than its user's; the user's other tokens keep the tenant's."""
    tight, free = await sign_in(running, limits={"requests_per_min": 2}), await sign_in(running)
    conversation = await tight.conversation()
    for _ in range(2):
        await tight.complete(conversation, "Hi #tokens=1")
    refused = await tight.call("POST", f"/v1/conversations/{conversation}/turns", {"message": "Hi"})
    assert (refused.status, refused.body["code"]) == (429, "rate_limited")
    assert int(refused.headers["Retry-After"]) > 0
    await free.complete(conversation, "Hi #tokens=1")


async def test_session_limit_beyond_the_tenants_is_refused(running: Running) -> None:
    """Limits of a session only ever tighten, and an unknown one is not passed over in silence."""
    for limits, code, field in (
        ({"requests_per_min": 6_000_001}, "invalid_value", "limits.requests_per_min"),
        ({"requests_per_min": 0}, "invalid_value", "limits.requests_per_min"),
        ({"requests_per_min": "2"}, "wrong_type", "limits.requests_per_min"),
        ({"tokens_per_day": 2}, "unknown_field", "limits.tokens_per_day"),
    ):
        answer = await open_session(running, running.secret_key, {"user_id": "u1", "limits": limits})
        assert (answer.status, answer.body["code"], answer.body["field"]) == (422, code, field)


async def test_session_of_a_visitor_has_the_tenants_tighter_limit(start_gateway: StartGateway) -> None:
    """An anonymous visitor may do less in a minute than a named user, and cannot ask for more."""
    toml = """
        [tenants.shop]
        origins = ["https://app.example"]
        anonymous = true
        limits.anonymous.requests_per_min = 2
        [tenants.shop.personas.default]
        persona_id = "6f1c8f0e-4f3e-4a9e-9d2c-0d4b1f0a2b3c"
    """
    running = await start_gateway(toml=toml.replace("shop", f"t-{uuid.uuid4().hex[:12]}"))
    opened = await open_session(running, running.publishable_key, {}, **ORIGIN)
    visitor = Client(running, {"Authorization": f"Bearer {opened.body['token']}"})
    conversation = await visitor.conversation()
    for _ in range(2):
        await visitor.complete(conversation, "Hi #tokens=1")
    refused = await visitor.call("POST", f"/v1/conversations/{conversation}/turns", {"message": "Hi"})
    assert (refused.status, refused.body["code"]) == (429, "rate_limited")
    more = await open_session(running, running.publishable_key, {"limits": {"requests_per_min": 50}}, **ORIGIN)
    assert (more.status, more.body["code"]) == (403, "forbidden")


async def test_session_for_one_use_opens_one_thing(start_gateway: StartGateway) -> None:
    """Of many simultaneous requests with a single-use token, on two workers, one is answered; later ones are not."""
    here = await start_gateway()
    there = await start_gateway(tenant=here.tenant, simulator=here.simulator)
    headers = await here.user(single_use=True)
    answers = await asyncio.gather(
        *(Client(running, headers).call("GET", "/v1/conversations") for running in (here, there) * 10)
    )
    assert sorted(answer.status for answer in answers) == [200] + [401] * 19
    assert {answer.body.get("code") for answer in answers} == {None, "credential_used"}
    async with Client(here, headers).socket() as socket:
        assert await socket.closed() == Closed(4401, "credential_used")
    fresh = Client(here, await here.user(single_use=True))
    async with fresh.socket() as socket:
        assert (await socket.reply("ping"))["event"] == "pong"
        assert (await socket.reply("ping"))["event"] == "pong"
    assert (await fresh.call("GET", "/v1/conversations")).body["code"] == "credential_used"


async def test_session_for_one_use_is_not_used_up_by_a_foreign_origin(running: Running) -> None:
    """A page of another site that got hold of a single-use token takes nothing away from its owner."""
    client = Client(running, await running.user(single_use=True))
    assert (await client.call("GET", "/v1/conversations", Origin="https://evil.example")).status == 403
    assert (await client.call("GET", "/v1/conversations", **ORIGIN)).status == 200
