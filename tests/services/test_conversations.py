"""Conversations: created under an alias, read back from the vendor only for their owner, once however many ask."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.core.conversation import ConversationId, Message
from gateway.core.errors import Code, GatewayError
from gateway.core.identity import Principal
from gateway.core.plan import Plan, ScopeLimits
from gateway.store.redis import Keys
from tests.services.conftest import SetStage
from tests.services.stage import ADDRESS, OTHER_PERSONA_ID, PERSONA_ID, Stage

NO_ONE = ConversationId("00000000-0000-4000-8000-000000000000")


async def refusal(work: object) -> GatewayError:
    with pytest.raises(GatewayError) as error:
        await work  # type: ignore[misc]  # any awaitable
    return error.value


async def create(stage: Stage, principal: Principal | None = None, **fields: object) -> ConversationId:
    wanted: dict[str, object] = {"alias": "default", "replacements": {}, "metadata": {}, "address": ADDRESS, **fields}
    created = await stage.conversations.create(principal or stage.user(), **wanted)  # type: ignore[arg-type]  # by name
    return created.id


# --- create -------------------------------------------------------------------------------------------------------


async def test_create_maps_the_alias_and_names_the_user_by_hash(stage: Stage) -> None:
    """The browser's alias becomes the vendor's persona id; the record bears the alias and no messages."""
    conversation = await create(stage, alias="other", metadata={"a": 1})
    assert stage.vendor.created == [{"persona_id": OTHER_PERSONA_ID, "replacements": {}}]
    assert stage.vendor.conversations[conversation].external_user_id == f"{stage.tenant.id}:hash-of-u1"
    found = await stage.conversations.get(stage.user(), conversation)
    assert (found.persona, found.messages, found.metadata) == ("other", [], {"a": 1})
    assert found.created_at is not None
    assert stage.vendor.reads == 0


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"alias": "nobody"}, Code.PERSONA_UNKNOWN, "persona"),
        ({"alias": PERSONA_ID}, Code.PERSONA_UNKNOWN, "persona"),
        ({"replacements": {"tone": "x"}}, Code.REPLACEMENT_NOT_ALLOWED, "replacements.tone"),
        ({"alias": "other", "replacements": {"name": "x"}}, Code.REPLACEMENT_NOT_ALLOWED, "replacements.name"),
        ({"metadata": {str(number): 1 for number in range(33)}}, Code.INVALID_VALUE, "metadata"),
    ],
)
async def test_create_with_what_is_not_allowed_is_refused_unspent(
    stage: Stage, fields: dict[str, Any], code: Code, field: str
) -> None:
    """An unknown persona or a replacement that is not listed is refused by field before the vendor is asked."""
    error = await refusal(create(stage, **fields))
    assert (error.code, error.field) == (code, field)
    assert stage.vendor.created == []


async def test_create_with_a_persona_outside_the_token_is_refused(stage: Stage) -> None:
    """A token that lists personas opens no others."""
    error = await refusal(create(stage, stage.user(personas=["other"])))
    assert error.code is Code.PERSONA_UNKNOWN


async def test_create_over_the_cap_never_reaches_the_vendor(set_stage: SetStage) -> None:
    """What is capped costs nothing."""
    stage = set_stage(plan=Plan(persona=ScopeLimits(requests_per_min=1)))
    await create(stage)
    error = await refusal(create(stage))
    assert (error.code, error.extra) == (Code.RATE_LIMITED, {"limit": "persona_requests_per_min"})
    assert len(stage.vendor.created) == 1


# --- read-through -------------------------------------------------------------------------------------------------


async def test_get_of_an_uncached_conversation_brings_it_once(stage: Stage) -> None:
    """A miss reads the vendor's copy, and the next reader finds it in the cache."""
    messages = [Message("user", "Hi", "m-1", created_at="2026-01-01T00:00:00Z"), Message("assistant", "Hello", "m-2")]
    conversation = stage.vendor.add(stage.user().external_user_id, name="Chat", messages=messages)
    for _ in range(2):
        found = await stage.conversations.get(stage.user(), conversation)
        assert (found.messages, found.name, found.persona) == (messages, "Chat", "default")
        assert found.created_at == "2026-01-01T00:00:00Z"
    assert stage.vendor.reads == 1


async def test_get_of_many_at_once_asks_the_vendor_once(stage: Stage) -> None:
    """Twenty readers of one miss cost one call; one that leaves meanwhile takes nothing from the others."""
    conversation = stage.vendor.add(stage.user().external_user_id)
    stage.vendor.gate = asyncio.Event()
    asking = [asyncio.ensure_future(stage.conversations.get(stage.user(), conversation)) for _ in range(20)]
    async with asyncio.timeout(5):
        while not stage.vendor.reads:
            await asyncio.sleep(0.002)
    asking[0].cancel()
    stage.vendor.gate.set()
    found = await asyncio.gather(*asking[1:])
    assert {conversation.id for conversation in found} == {conversation}
    assert stage.vendor.reads == 1


@pytest.mark.parametrize("external", [None, "", "hash-of-u1", "{tenant}:hash-of-u2", "other:hash-of-u1"])
async def test_get_of_what_is_not_the_users_is_not_found_and_not_cached(stage: Stage, external: str | None) -> None:
    """A conversation is served only when the vendor says that it is this tenant's and this user's."""
    if external is not None:
        external = external.format(tenant=stage.tenant.id)
    conversation = stage.vendor.add(external)
    for method in (stage.conversations.get, stage.conversations.owned):
        assert (await refusal(method(stage.user(), conversation))).code is Code.NOT_FOUND
    assert await stage.store.call("EXISTS", Keys(stage.tenant.id).conversation(conversation)) == 0


async def test_get_of_a_cached_conversation_of_another_is_not_found(stage: Stage) -> None:
    """The cache gives a record to its owner alone: not to another user, nor to a token without its persona."""
    conversation = await create(stage)
    for principal in (stage.user("u2"), stage.user(personas=["other"])):
        for method in (stage.conversations.get, stage.conversations.owned):
            assert (await refusal(method(principal, conversation))).code is Code.NOT_FOUND
    assert (await stage.conversations.get(stage.user(), conversation)).id == conversation


async def test_get_of_a_stranger_and_the_owner_at_once_mixes_nothing_up(stage: Stage) -> None:
    """A stranger's question on the same miss neither gets the owner's answer nor spoils it."""
    conversation = stage.vendor.add(stage.user().external_user_id)
    mine, theirs = await asyncio.gather(
        stage.conversations.get(stage.user(), conversation),
        stage.conversations.get(stage.user("u2"), conversation),
        return_exceptions=True,
    )
    assert not isinstance(mine, BaseException)
    assert isinstance(theirs, GatewayError)
    assert theirs.code is Code.NOT_FOUND


@pytest.mark.parametrize("fields", [{"is_deleted": True}, {"persona_id": "p-unlisted"}, {"persona_id": None}])
async def test_get_of_a_deleted_or_unlisted_persona_is_not_found(stage: Stage, fields: dict[str, object]) -> None:
    """What the vendor has deleted, or what no alias of the tenant stands for, is not served."""
    conversation = stage.vendor.add(stage.user().external_user_id, **fields)
    assert (await refusal(stage.conversations.get(stage.user(), conversation))).code is Code.NOT_FOUND


async def test_get_of_an_unknown_conversation_is_not_found(stage: Stage) -> None:
    """An id that nobody knows is not found, as one of another user is."""
    assert (await refusal(stage.conversations.get(stage.user(), NO_ONE))).code is Code.NOT_FOUND


async def test_get_with_messages_in_a_blob_says_so(stage: Stage) -> None:
    """A transcript kept where the gateway may not go is said to be unavailable, also from the cache."""
    conversation = stage.vendor.add(stage.user().external_user_id, messages_unavailable=True)
    for _ in range(2):
        assert (await stage.conversations.get(stage.user(), conversation)).messages_unavailable


async def test_get_while_the_vendor_is_away_is_told_and_not_remembered(stage: Stage) -> None:
    """A failed read-through passes on the vendor's code, and the next question asks again."""
    conversation = stage.vendor.add(stage.user().external_user_id)
    stage.vendor.refusal = GatewayError(Code.UPSTREAM_UNAVAILABLE)
    assert (await refusal(stage.conversations.get(stage.user(), conversation))).code is Code.UPSTREAM_UNAVAILABLE
    stage.vendor.refusal = None
    assert (await stage.conversations.get(stage.user(), conversation)).id == conversation


async def test_get_of_guessed_ids_spends_only_the_users_own_cap(set_stage: SetStage) -> None:
    """Guessing ids is capped before it reaches the vendor's plan limit."""
    stage = set_stage(plan=Plan(user=ScopeLimits(requests_per_min=3)))
    codes = [(await refusal(stage.conversations.get(stage.user(), NO_ONE))).code for _ in range(6)]
    assert codes == [Code.NOT_FOUND] * 3 + [Code.RATE_LIMITED] * 3
    assert stage.vendor.reads == 3


# --- list ---------------------------------------------------------------------------------------------------------


async def test_list_gives_the_users_own_latest_first(stage: Stage) -> None:
    """A list holds this user's conversations alone, a page at a time, the one used last on top."""
    mine = [await create(stage) for _ in range(3)]
    await create(stage, stage.user("u2"))
    await stage.start(mine[0])
    (await stage.vendor.chat()).complete("x")
    page, cursor = await stage.conversations.list(stage.user(), None, 2)
    assert page[0].id == mine[0]
    assert cursor is not None
    rest, end = await stage.conversations.list(stage.user(), cursor, 2)
    assert sorted(found.id for found in [*page, *rest]) == sorted(mine)
    assert end is None


async def test_list_leaves_out_what_the_vendor_has_deleted(stage: Stage) -> None:
    """A conversation that is gone at the vendor's does not spoil the page."""
    mine = [await create(stage) for _ in range(3)]
    await stage.store.call("DEL", Keys(stage.tenant.id).conversation(mine[1]))
    del stage.vendor.conversations[mine[1]]
    page, _ = await stage.conversations.list(stage.user(), None, 10)
    assert sorted(found.id for found in page) == sorted([mine[0], mine[2]])


# --- feedback -----------------------------------------------------------------------------------------------------


async def test_feedback_goes_to_the_vendor_and_into_the_transcript(stage: Stage) -> None:
    """A verdict reaches set-score under an id that is stable a user and message, and is in the transcript at once."""
    conversation = await create(stage)
    await stage.start(conversation)
    (await stage.vendor.chat()).complete("Hello")
    async with asyncio.timeout(5):
        while stage.turns.running:
            await asyncio.sleep(0.002)
    for score in (8, -2):
        await stage.feedback.give(
            stage.user(),
            conversation,
            "m-1",
            score=score,
            comments=None,
            tags=["clear"],
            confidence=0.0,
            address=ADDRESS,
        )
    ids = {feedback.feedback_id for _, _, feedback in stage.vendor.scores}
    assert len(ids) == 1
    assert [feedback.score for _, _, feedback in stage.vendor.scores] == [8, -2]
    kept = (await stage.transcript(conversation))[1].feedback
    assert kept is not None
    assert [(feedback.score, feedback.confidence) for feedback in kept] == [(-2, 0.0)]


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"score": 11}, Code.INVALID_VALUE, "score"),
        ({"score": -11}, Code.INVALID_VALUE, "score"),
        ({"comments": "x" * 4001}, Code.INVALID_VALUE, "comments"),
        ({"tags": [""]}, Code.INVALID_VALUE, "tags"),
        ({"tags": ["x"] * 17}, Code.INVALID_VALUE, "tags"),
        ({"confidence": 1.01}, Code.INVALID_VALUE, "confidence"),
        ({"confidence": -0.01}, Code.INVALID_VALUE, "confidence"),
        ({"confidence": float("nan")}, Code.INVALID_VALUE, "confidence"),
        ({"message_id": "m-404"}, Code.NOT_FOUND, "message_id"),
    ],
)
async def test_feedback_out_of_bounds_is_refused_by_field(
    stage: Stage, fields: dict[str, object], code: Code, field: str
) -> None:
    """Bounds of the vendor's contract are checked here, and nothing is sent."""
    conversation = await create(stage)
    wanted: dict[str, object] = {
        "message_id": "m-1",
        "score": 1,
        "comments": None,
        "tags": None,
        "confidence": None,
        "address": ADDRESS,
        **fields,
    }
    message_id = str(wanted.pop("message_id"))
    error = await refusal(stage.feedback.give(stage.user(), conversation, message_id, **wanted))  # type: ignore[arg-type]  # by name
    assert (error.code, error.field) == (code, field)
    assert stage.vendor.scores == []
