"""The contract of the conversation cache: whole records, pages without gap or repeat, feedback that is not lost."""

from __future__ import annotations

import asyncio
import uuid

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gateway.core.conversation import Conversation, ConversationId, Feedback, Message
from gateway.core.errors import Code, GatewayError
from gateway.core.identity import TenantId, UserHash
from gateway.store.conversations import RedisConversations
from gateway.store.redis import Keys, Redis
from tests.store.conftest import OpenRedis

OWNER = UserHash("0f" * 16)


def conversation(**fields: object) -> Conversation:
    wanted: dict[str, object] = {
        "id": ConversationId(str(uuid.uuid4())),
        "owner": OWNER,
        "persona": "default",
        **fields,
    }
    return Conversation(**wanted)  # type: ignore[arg-type]  # by name


@pytest.fixture
def conversations(store: Redis) -> RedisConversations:
    return RedisConversations(store, ttl_s=500)


async def test_get_gives_back_what_was_put(conversations: RedisConversations, tenant: TenantId) -> None:
    """A record comes back whole: nulls stay null, the transcript keeps its order and every member."""
    record = conversation(
        status="Active",
        name=None,
        created_at="2026-01-01T00:00:00Z",
        metadata={"a": [1, None], "é": "😀"},
        messages=[
            Message("user", "Hi"),
            Message(
                "assistant",
                "",
                message_id="m",
                run_id="r",
                total_tokens=0,
                citations=[{"link": None}],
                feedback=[Feedback("f", 0, tags=[])],
            ),
        ],
        messages_unavailable=True,
    )
    await conversations.put(tenant, record)
    assert await conversations.get(tenant, record.id) == record
    head = await conversations.head(tenant, record.id)
    assert head is not None
    assert head.messages == []
    assert (head.owner, head.metadata, head.messages_unavailable) == (OWNER, record.metadata, True)


async def test_get_of_another_tenant_or_out_of_the_cache_is_none(
    store: Redis, conversations: RedisConversations, tenant: TenantId
) -> None:
    """A record is found under its own tenant alone, and not after it has left the cache."""
    record = conversation()
    await conversations.put(tenant, record)
    assert await conversations.get(TenantId("t-stranger"), record.id) is None
    assert await conversations.head(TenantId("t-stranger"), record.id) is None
    await store.call("DEL", Keys(tenant).conversation(record.id))
    assert await conversations.get(tenant, record.id) is None


async def test_put_of_a_vendor_copy_never_hides_a_newer_record(
    conversations: RedisConversations, tenant: TenantId
) -> None:
    """What a slow reader brings from the vendor does not replace a record that the gateway has kept up to date."""
    record = conversation(messages=[Message("user", "new")])
    await conversations.put(tenant, record)
    await conversations.put(tenant, conversation(id=record.id, messages=[]))
    found = await conversations.get(tenant, record.id)
    assert found is not None
    assert [message.content for message in found.messages] == ["new"]


async def test_put_of_a_long_transcript_keeps_the_order(conversations: RedisConversations, tenant: TenantId) -> None:
    """A hundred messages come back as they were said."""
    record = conversation(messages=[Message("user", str(number)) for number in range(100)])
    await conversations.put(tenant, record)
    found = await conversations.get(tenant, record.id)
    assert found is not None
    assert [message.content for message in found.messages] == [str(number) for number in range(100)]


# --- pages --------------------------------------------------------------------------------------------------------


async def pages(
    conversations: RedisConversations, tenant: TenantId, limit: int
) -> tuple[list[ConversationId], list[int]]:
    """Read a list to its end; returns the ids in order and the sizes of the pages."""
    found: list[ConversationId] = []
    sizes: list[int] = []
    cursor: str | None = None
    while True:
        ids, cursor = await conversations.list(tenant, OWNER, cursor, limit)
        found += ids
        sizes.append(len(ids))
        if cursor is None:
            return found, sizes


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example([0] * 45, 5)
@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 7))
def test_list_in_pages_gives_each_once_latest_first(any_store_url: str, stamps: list[int], limit: int) -> None:
    """Pages neither repeat nor hide a conversation, also when many were last used in the same millisecond."""

    async def check() -> None:
        store = Redis(any_store_url, timeout_s=2.0, connections=2)
        tenant = TenantId(f"t-{uuid.uuid4().hex[:12]}")
        conversations = RedisConversations(store, ttl_s=500)
        records = [conversation(created_at=f"2026-01-01T00:00:0{stamp}Z") for stamp in stamps]
        await asyncio.gather(*(conversations.put(tenant, record) for record in records))
        found, sizes = await pages(conversations, tenant, limit)
        expected = sorted(records, key=lambda record: (record.created_at, record.id), reverse=True)
        assert found == [record.id for record in expected]
        assert all(size == limit for size in sizes[:-1])
        await store.aclose()

    asyncio.run(check())


async def test_list_is_of_one_owner_in_one_tenant(conversations: RedisConversations, tenant: TenantId) -> None:
    """A list shows nobody else's conversations."""
    mine, other = conversation(), conversation(owner=UserHash("aa" * 16))
    await conversations.put(tenant, mine)
    await conversations.put(tenant, other)
    await conversations.put(TenantId("t-stranger"), conversation())
    assert await conversations.list(tenant, OWNER, None, 10) == ([mine.id], None)


@pytest.mark.parametrize(
    "cursor",
    ["x", "1", ".", "1.", f"-1.{'a' * 36}", f"{'9' * 16}.{'a' * 36}", f"\u0661.{'a' * 36}", "1.short", "+inf"],
)
async def test_list_cursor_of_another_form_is_refused(
    conversations: RedisConversations, tenant: TenantId, cursor: str
) -> None:
    """A cursor that the list never gave is refused by its field and reaches no command."""
    with pytest.raises(GatewayError) as refused:
        await conversations.list(tenant, OWNER, cursor, 10)
    assert (refused.value.code, refused.value.field) == (Code.INVALID_CURSOR, "cursor")


# --- feedback -----------------------------------------------------------------------------------------------------


async def test_feedback_of_concurrent_writers_is_all_kept(open_redis: OpenRedis, tenant: TenantId) -> None:
    """Verdicts of several people on one message, given at the same moment from several workers, are all there."""
    workers = [RedisConversations(open_redis(), ttl_s=500) for _ in range(4)]
    record = conversation(messages=[Message("user", "Hi"), Message("assistant", "Hello", message_id="m")])
    await workers[0].put(tenant, record)
    given_ids = [f"f-{number}" for number in range(4)]
    await asyncio.gather(
        *(
            worker.put_feedback(tenant, record.id, "m", Feedback(feedback_id, 1))
            for worker, feedback_id in zip(workers, given_ids, strict=True)
        )
    )
    found = await workers[0].get(tenant, record.id)
    assert found is not None
    assert sorted(known.feedback_id for known in found.messages[1].feedback or ()) == given_ids


async def test_feedback_given_again_replaces_its_own(conversations: RedisConversations, tenant: TenantId) -> None:
    """The same feedback id again is an update, not a second verdict."""
    record = conversation(messages=[Message("assistant", "Hello", message_id="m")])
    await conversations.put(tenant, record)
    for score in (1, -3):
        await conversations.put_feedback(tenant, record.id, "m", Feedback("f", score))
    found = await conversations.get(tenant, record.id)
    assert found is not None
    assert found.messages[0].feedback == [Feedback("f", -3)]


async def test_feedback_on_what_is_not_cached_writes_nothing(
    conversations: RedisConversations, store: Redis, tenant: TenantId
) -> None:
    """A conversation or message that the cache does not have is left to the vendor's copy."""
    record = conversation(messages=[Message("assistant", "Hello", message_id="m")])
    await conversations.put_feedback(tenant, record.id, "m", Feedback("f", 1))
    assert await store.call("EXISTS", Keys(tenant).conversation(record.id)) == 0
    await conversations.put(tenant, record)
    await conversations.put_feedback(tenant, record.id, "another", Feedback("f", 1))
    assert await conversations.get(tenant, record.id) == record


async def test_change_writes_what_is_cached_and_nothing_else(
    conversations: RedisConversations, tenant: TenantId
) -> None:
    """Name, status, metadata and the switch change, null included; the transcript and what is not cached do not."""
    record = conversation(name="a", status="Active", metadata={"a": 1}, messages=[Message("user", "Hi")], model="m-1")
    await conversations.put(tenant, record)
    changed = msgspec.structs.replace(record, name=None, status="Done", metadata={}, is_active=False)
    await conversations.change(tenant, changed)
    assert await conversations.get(tenant, record.id) == changed
    await conversations.change(tenant, record)
    assert await conversations.get(tenant, record.id) == record
    absent = conversation()
    await conversations.change(tenant, absent)
    assert await conversations.head(tenant, absent.id) is None
