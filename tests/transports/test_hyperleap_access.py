"""Who gets in by the drop-in, as whom, and to what: tokens, keys that everybody has, and what cannot be forged."""

from __future__ import annotations

import uuid
from typing import Any, Final

import httpx
import msgspec
import pytest

from gateway.core.identity import TenantId
from gateway.core.keys import KeyKind
from gateway.core.revocation import Revoked
from gateway.simulator.answers import answer as said
from tests.conftest import OTHER_PERSONA_ID, PERSONA_ID, Running, StartGateway
from tests.transports.client import eventually
from tests.transports.conftest import SignIn
from tests.transports.dropin import (
    DATASPACE_ID,
    NO_LIMITS,
    ORIGIN,
    PINNED_ID,
    PROMPT_ID,
    VERSION_ID,
    App,
    error_of,
    start,
    text_of,
    toml,
)

HI: Final = "Hi #tokens=5"
LONG: Final = "Hi #rate=20 #tokens=900"


@pytest.fixture
async def shop(start_gateway: StartGateway) -> Running:
    """A gateway whose tenant lists personas, prompts and models."""
    return await start(start_gateway)


def visitor(running: Running, *, origin: str | None = ORIGIN, key: str | None = None) -> App:
    headers = {"Origin": origin} if origin is not None else {}
    return App(running, key or running.publishable_key, **headers)


async def test_page_with_a_publishable_key_chats_as_it_always_did(shop: Running) -> None:
    """Create, continue, read, score: with the key alone, from a listed origin, and CORS on every answer."""
    async with visitor(shop) as page:
        conversation = await page.create(externalUserId="whoever")
        first = await page.chat(conversation, HI)
        second = await page.chat(conversation, HI, "continue-sync")
        entry = await page.call("GET", f"/conversations/{conversation}")
        message = second.json()["messageId"]
        scored = await page.call("PATCH", f"/conversations/{conversation}/set-score/{message}", {"score": 3})
        named = await page.call(
            "PATCH", f"/conversations/{conversation}/set-conversation-name", {"conversationName": "n"}
        )
        ran = await page.run(HI)
        run_score = await page.call("PATCH", f"/prompt-runs/{ran.json()['runId']}/set-score", {"score": 3})
        answers = [first, second, entry, scored, named, ran, run_score]
    assert [answer.status_code for answer in answers] == [200] * 7
    assert {answer.headers["access-control-allow-origin"] for answer in answers} == {ORIGIN}
    assert text_of(first.json()) == said(HI).text
    assert entry.json()["chatMessagesCount"] == 4
    assert named.json()["conversationName"] == "n"


async def test_page_goes_on_after_the_cache_has_forgotten_its_conversation(shop: Running) -> None:
    """What left the cache is read back from the vendor, and still proves whose it is; another worker knows, too."""
    async with visitor(shop) as page:
        conversation = await page.create()
        await page.chat(conversation, HI)
        await shop.gateway.redis.call("DEL", f"hg:{{{shop.tenant}}}:conv:{conversation}")
        again = await page.chat(conversation, HI)
        entry = (await page.call("GET", f"/conversations/{conversation}")).json()
    assert again.status_code == 200
    assert entry["chatMessagesCount"] == 4


async def test_visitors_of_one_key_see_nothing_of_each_other(shop: Running) -> None:
    """Who shows a key has no list; each conversation is a user of its own at the vendor, and has its own limits."""
    async with visitor(shop) as page:
        conversations = [await page.create() for _ in range(3)]
        lists = [
            (await page.call("GET", path)).json()
            for path in ("/conversations", f"/conversations/persona/{PERSONA_ID}", "/conversations/user/whoever")
        ]
    assert lists == [{"data": [], "continuationToken": None}] * 3
    kept = [shop.simulator.conversations.get(one) for one in conversations]
    users = {one.external_user_id for one in kept if one is not None}
    assert len(users) == 3
    assert all(user is not None and user.startswith(f"{shop.tenant}:") for user in users)


async def test_page_that_guesses_ids_is_held_back_by_its_address(start_gateway: StartGateway) -> None:
    """Each request by a publishable key is a new visitor; what it asks Hyperleap counts for where it comes from."""
    limits = NO_LIMITS.replace("address = { requests_per_min = 0 }", "address = { requests_per_min = 3 }")
    shop = await start(start_gateway, limits=limits)
    async with visitor(shop) as page:
        before = shop.simulator.state.requests
        answers = [await page.call("GET", f"/conversations/{uuid.uuid4()}") for _ in range(8)]
    assert [answer.status_code for answer in answers] == [404] * 3 + [429] * 5
    assert shop.simulator.state.requests == before + 3


async def test_key_opens_nothing_of_who_signed_in(shop: Running, sign_in: SignIn) -> None:
    """The id of a user's conversation or run is not found with the publishable key, nor the other way round."""
    async with App(shop, (await sign_in(shop)).token) as user, visitor(shop) as page:
        of_user, of_page = await user.create(), await page.create()
        run_of_user, run_of_page = [(await app.run(HI)).json()["runId"] for app in (user, page)]
        answers = [
            await page.chat(of_user, HI),
            await page.call("GET", f"/conversations/{of_user}"),
            await page.call("PATCH", f"/conversations/{of_user}/set-active", {}),
            await page.call("PATCH", f"/prompt-runs/{run_of_user}/set-score", {"score": 1}),
            await user.chat(of_page, HI),
            await user.call("GET", f"/conversations/{of_page}"),
            await user.call("PATCH", f"/prompt-runs/{run_of_page}/set-score", {"score": 1}),
            await user.call("PATCH", f"/prompt-runs/{uuid.uuid4()}/set-score", {"score": 1}),
        ]
    assert {(answer.status_code, answer.text) for answer in answers} == {
        (404, '{"error":{"code":"not_found","message":"Not found.","details":[]}}')
    }


async def test_key_of_another_tenant_opens_nothing(start_gateway: StartGateway) -> None:
    """A visitor's conversation is found by its own tenant's key alone."""
    one, two = (f"t-{uuid.uuid4().hex[:12]}" for _ in range(2))
    running = await start_gateway(toml=toml(one) + toml(two))
    foreign = (await running.gateway.auth.keys.mint(TenantId(two), KeyKind.PUBLISHABLE, "tests")).key
    async with visitor(running) as page, visitor(running, key=foreign) as stranger:
        conversation = await page.create()
        assert (await stranger.call("GET", f"/conversations/{conversation}")).status_code == 404
        assert (await page.call("GET", f"/conversations/{conversation}")).status_code == 200


@pytest.mark.parametrize(
    ("key", "origin", "status", "lines"),
    [
        (KeyKind.PUBLISHABLE, "https://evil.example", 403, "anonymous = true"),
        (KeyKind.PUBLISHABLE, None, 403, "anonymous = true"),
        (KeyKind.APP, None, 200, "anonymous = true"),
        (KeyKind.APP, "https://evil.example", 403, "anonymous = true"),
        (KeyKind.PUBLISHABLE, ORIGIN, 403, "anonymous = false"),
    ],
)
async def test_publishable_key_works_where_sessions_would_open(
    start_gateway: StartGateway, key: KeyKind, origin: str | None, status: int, lines: str
) -> None:
    """From a listed origin, or in an app with a key of its kind; not where the tenant wants no visitors."""
    settings = toml().replace("anonymous = true", lines)
    running = await start_gateway(toml=settings)
    minted = (await running.gateway.auth.keys.mint(TenantId(running.tenant), key, "x")).key
    async with visitor(running, origin=origin, key=minted) as page:
        answer = await page.call("POST", "/conversations/persona", {"personaId": PERSONA_ID})
    assert answer.status_code == status
    assert status == 200 or error_of(answer)["code"] == "forbidden"


async def test_revoked_key_lets_nobody_go_on(shop: Running) -> None:
    """A key that is taken back opens nothing from then on, and stops what it began."""
    async with visitor(shop) as page:
        conversation = await page.create()
        path = f"/conversations/{conversation}/continue"
        async with page.http.stream("PATCH", path, json={"message": LONG}) as response:
            assert response.status_code == 200
            key_id = shop.publishable_key.split(".")[1]
            await shop.gateway.auth.keys.revoke(TenantId(shop.tenant), key_id)
            await shop.gateway.auth.revocations.revoke(Revoked.KEY, TenantId(shop.tenant), key_id)
            with pytest.raises(httpx.RemoteProtocolError):
                await response.aread()
        assert (await page.chat(conversation, HI)).status_code == 401
    await eventually(lambda: not shop.gateway.turns.running, "its turn to be stopped")


@pytest.mark.parametrize("path", ["/conversations/persona", "/conversations"])
async def test_external_user_id_cannot_be_forged(shop: Running, sign_in: SignIn, path: str) -> None:
    """Whatever an app says of who asks, the vendor is told what the token proves; and another's is an empty list."""
    mine, other = await sign_in(shop, "ada"), await sign_in(shop, "bob")
    hashes = {name: shop.gateway.auth.user_hash(TenantId(shop.tenant), name) for name in ("ada", "bob")}
    body = {"personaId": PERSONA_ID} if path.endswith("persona") else {"aiSystem": 1, "model": "m-1"}
    async with App(shop, mine.token) as ada, App(shop, other.token) as bob:
        forged = [f"{shop.tenant}:{hashes['bob']}", "bob", "", None]
        entries = [
            (
                await ada.call("POST", path, {**body, "externalUserId": name, "metadata": {"externalUserId": name}})
            ).json()
            for name in forged
        ]
        assert (await bob.call("GET", "/conversations")).json()["data"] == []
        for name in ("ada", f"{shop.tenant}:{hashes['ada']}"):
            assert (await bob.call("GET", f"/conversations/user/{name}")).json()["data"] == []
            assert len((await ada.call("GET", f"/conversations/user/{name}")).json()["data"]) == 4
    kept = [shop.simulator.conversations.get(entry["conversationId"]) for entry in entries]
    assert {one.external_user_id for one in kept if one} == {f"{shop.tenant}:{hashes['ada']}"}
    assert {entry["externalUserId"] for entry in entries} == {f"{shop.tenant}:{hashes['ada']}"}


async def test_personas_and_prompts_pass_by_id_and_version(shop: Running, sign_in: SignIn) -> None:
    """A pinned version is what is asked for, whether the app names it or not; another one does not pass."""
    rows: list[tuple[str, dict[str, Any], int]] = [
        ("/conversations/persona", {"personaId": OTHER_PERSONA_ID}, 200),
        ("/conversations/persona", {"personaId": OTHER_PERSONA_ID.upper(), "personaVersionId": VERSION_ID}, 200),
        ("/conversations/persona", {"personaId": OTHER_PERSONA_ID, "personaVersionId": PROMPT_ID}, 422),
        ("/prompt-runs/run-sync", {"promptId": PINNED_ID}, 200),
        ("/prompt-runs/run-sync", {"promptId": PINNED_ID, "promptVersionId": VERSION_ID}, 200),
        ("/prompt-runs/run-sync", {"promptId": PINNED_ID, "promptVersionId": PROMPT_ID}, 422),
    ]
    async with App(shop, (await sign_in(shop)).token) as app:
        told = [(path, body, (await app.call("POST", path, body)).status_code) for path, body, _ in rows]
    assert told == rows
    kept = list(shop.simulator.conversations.newest())
    assert {one.persona_version_id for one in kept} == {VERSION_ID}


async def test_token_for_some_aliases_reaches_no_others(shop: Running, sign_in: SignIn) -> None:
    """A token may be narrowed to personas, models and prompts by their aliases."""
    async with App(shop, (await sign_in(shop, personas=["other", "pinned"])).token) as app:
        answers = {
            name: (await app.call("POST", path, body)).status_code
            for name, path, body in (
                ("other", "/conversations/persona", {"personaId": OTHER_PERSONA_ID}),
                ("default", "/conversations/persona", {"personaId": PERSONA_ID}),
                ("plain", "/conversations", {"aiSystem": 1, "model": "m-1", "dataspaceIds": [DATASPACE_ID]}),
                ("pinned", "/prompts", {"promptId": PINNED_ID}),
                ("summary", "/prompts", {"promptId": PROMPT_ID}),
            )
        }
    assert answers == {"other": 200, "default": 422, "plain": 422, "pinned": 200, "summary": 422}


async def test_keys_of_repeats_are_each_users_own(shop: Running, sign_in: SignIn) -> None:
    """The same idempotency key leads two users to two conversations and two runs, and each to his own again."""
    made: list[tuple[str, str]] = []
    for user in ("ada", "bob", "ada", "bob"):
        async with App(shop, (await sign_in(shop, user)).token) as app:
            body = {"promptId": PROMPT_ID, "replacements": {"topic": HI}}
            run = await app.call("POST", "/prompts", body, Idempotency_Key="k")
            entry = await app.call("POST", "/conversations/persona", {"personaId": PERSONA_ID}, Idempotency_Key="k")
            made.append((run.headers["x-turn-id"], entry.json()["conversationId"]))
    assert made[:2] == made[2:]
    assert len({one for pair in made for one in pair}) == 4
    assert len(shop.simulator.bill) == 2


async def test_prompt_run_is_in_no_list_and_no_conversation_to_chat_in(shop: Running, sign_in: SignIn) -> None:
    """What holds a run's log is its user's, and nothing that a message can be sent to."""
    client = await sign_in(shop)
    async with App(shop, client.token) as app:
        turn = (await app.run(HI)).headers["x-turn-id"]
        events = await client.replay(turn)
        conversation = events[0].data["conversation_id"]
        lists = [(await app.call("GET", "/conversations")).json()["data"]]
        refused = await app.chat(conversation, HI)
    lists.append((await client.call("GET", "/v1/conversations")).body["data"])
    assert events[-1].data["text"] == said(HI).text
    assert lists == [[], []]
    assert refused.status_code == 422


def keys_of(running: Running, token: str) -> dict[str, dict[str, str]]:
    return {
        "nothing": {},
        "empty": {"x-hl-api-key": ""},
        "nonsense": {"x-hl-api-key": "nonsense"},
        "both": {"x-hl-api-key": token, "Authorization": f"Bearer {token}"},
        "basic": {"Authorization": "Basic dTpw"},
        "secret": {"x-hl-api-key": running.secret_key},
        "bearer": {"Authorization": f"Bearer {token}"},
        "header": {"x-hl-api-key": token},
    }


async def test_credential_comes_in_one_header(shop: Running, sign_in: SignIn) -> None:
    """The vendor's header or a bearer's, not both; a secret key opens no user's operation."""
    told = {}
    for name, headers in keys_of(shop, (await sign_in(shop)).token).items():
        async with httpx.AsyncClient(base_url=shop.url + "/hyperleap", headers=headers, trust_env=False) as http:
            answer = await http.get("/conversations")
        told[name] = answer.status_code, error_of(answer)["code"] if answer.status_code != 200 else ""
    refused = (401, "unauthorized")
    assert told == {
        **dict.fromkeys(("nothing", "empty", "nonsense", "both", "basic"), refused),
        "secret": (403, "forbidden"),
        "bearer": (200, ""),
        "header": (200, ""),
    }


async def test_preflight_allows_the_vendors_header(shop: Running) -> None:
    """A page of a listed origin may send what a Hyperleap widget sends."""
    headers = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "PATCH",
        "Access-Control-Request-Headers": "content-type,x-hl-api-key",
    }
    path = f"{shop.url}/hyperleap/conversations/{uuid.uuid4()}/continue"
    async with shop.http.options(path, headers=headers) as response:
        assert response.status == 204
        assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert "x-hl-api-key" in response.headers["Access-Control-Allow-Headers"]
        assert "PATCH" in response.headers["Access-Control-Allow-Methods"]


async def test_closed_door_refuses_before_anything_begins(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """A tenant without the door is told so by every operation, whoever asks; its native door stays open."""
    running = await start(start_gateway, lines='doors = ["sse"]')
    client = await sign_in(running)
    conversation = await client.conversation()
    for key, headers in (
        (client.token, {}),
        (running.publishable_key, {"Origin": ORIGIN}),
    ):
        async with App(running, key, **headers) as app:
            answers = [
                await app.call("GET", "/conversations"),
                await app.chat(conversation, HI),
                await app.run(HI),
                await app.call("POST", "/moderations", {"input": "x"}),
            ]
        assert [answer.status_code for answer in answers] == [403] * 4
    async with App(running, running.secret_key) as backend:
        assert (await backend.call("POST", "/audit/conversations", {})).status_code == 403
    assert len(running.simulator.bill) == 0
    assert (await client.complete(conversation, HI))[-1].name == "turn.completed"


async def test_door_that_closes_ends_what_came_in_by_it(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """Streams of the drop-in end when their tenant closes it, without the end of their body."""
    running = await start(start_gateway)
    client = await sign_in(running)
    async with App(running, client.token) as app:
        path = f"/conversations/{await app.create()}/continue"
        async with app.http.stream("PATCH", path, json={"message": LONG}) as response:
            tables, name = running.gateway.tenants._fixed, TenantId(running.tenant)
            closed = msgspec.structs.replace(tables.tenants[name], doors=("sse",))
            running.gateway.tenants.fix(msgspec.structs.replace(tables, tenants={name: closed}))
            with pytest.raises(httpx.RemoteProtocolError):
                await response.aread()
