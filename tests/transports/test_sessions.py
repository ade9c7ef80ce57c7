"""Sessions: keys become short-lived tokens, for the user, the origin and the life that were asked for."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from tests.conftest import Running, StartGateway
from tests.transports.client import Answer, Client
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
    assert answer.body.keys() == {"token", "expires_at", "user_id"}
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
