"""Conversation records and transcripts, cached in one hash a conversation with a time to live."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any, Final

import msgspec

from gateway.core.conversation import Conversation, ConversationId, Feedback, Message
from gateway.core.errors import Code, GatewayError
from gateway.core.identity import TenantId, UserHash
from gateway.store.redis import Argument, Keys, Redis, Script, fields, text

ADD: Final = Script("add_conversation")
PUT_FEEDBACK: Final = Script("put_feedback")
CHANGE: Final = Script("change_conversation")
HEAD_FIELDS: Final = (
    *("owner", "persona", "status", "name", "created_at", "metadata", "unavailable", "active"),
    *("inactive", "ai_system", "model"),
)
FEEDBACK_ATTEMPTS: Final = 8

_message: Final = msgspec.json.Decoder(Message)


class RedisConversations:
    """ConversationStore over hashes ``conv:<id>`` and sorted sets ``convs:<user>`` (scored by last use, ms)."""

    def __init__(self, redis: Redis, *, ttl_s: float) -> None:
        self._redis = redis
        self._ttl_s = int(ttl_s)

    async def put(self, tenant: TenantId, conversation: Conversation) -> None:
        keys = Keys(tenant)
        values: dict[str, Argument | None] = {
            "owner": conversation.owner,
            "persona": conversation.persona,
            "status": conversation.status,
            "name": conversation.name,
            "created_at": conversation.created_at,
            "metadata": msgspec.json.encode(conversation.metadata),
            "unavailable": int(conversation.messages_unavailable),
            "inactive": None if conversation.is_active else 1,
            "ai_system": conversation.ai_system,
            "model": conversation.model,
            "ordinal": sum(message.role == "user" for message in conversation.messages),
            "messages": len(conversation.messages),
            "last": next((m.message_id for m in reversed(conversation.messages) if m.message_id), None),
        }
        for index, message in enumerate(conversation.messages):
            values[f"m:{index:06d}"] = msgspec.json.encode(message)
        arguments: list[Argument] = [conversation.id, self._ttl_s, _last_used_ms(conversation)]
        for name, value in values.items():
            if value is not None:
                arguments += (name, value)
        await self._redis.run(
            ADD, (keys.conversation(conversation.id), keys.conversations(conversation.owner)), arguments
        )

    async def head(self, tenant: TenantId, conversation_id: ConversationId) -> Conversation | None:
        reply = await self._redis.call("HMGET", Keys(tenant).conversation(conversation_id), *HEAD_FIELDS)
        values = {name: value for name, value in zip(HEAD_FIELDS, reply, strict=True) if value is not None}
        return _conversation(conversation_id, values) if "owner" in values else None

    async def get(self, tenant: TenantId, conversation_id: ConversationId) -> Conversation | None:
        values = fields(await self._redis.call("HGETALL", Keys(tenant).conversation(conversation_id)))
        return _conversation(conversation_id, values) if "owner" in values else None

    async def list(
        self, tenant: TenantId, owner: UserHash, before: str | None, limit: int
    ) -> tuple[list[ConversationId], str | None]:
        edge_ms, edge_id = _parse_page(before) if before else (None, "")
        page: list[tuple[int, str]] = []
        offset, count = 0, limit + 1
        while len(page) <= limit:  # again only where more than a page were last used in the edge's millisecond
            reply: list[Any] = await self._redis.call(
                "ZRANGE",
                Keys(tenant).conversations(owner),
                "+inf" if edge_ms is None else edge_ms,
                "-inf",
                *("BYSCORE", "REV", "LIMIT", offset, count, "WITHSCORES"),
            )
            found = [(int(score), text(member) or "") for member, score in reply]
            page += [(ms, name) for ms, name in found if edge_ms is None or (ms, name) < (edge_ms, edge_id)]
            if len(reply) < count:
                break
            offset += count
        ids = [ConversationId(name) for _, name in page[:limit]]
        more = f"{page[limit - 1][0]}.{page[limit - 1][1]}" if len(page) > limit else None
        return ids, more

    async def unlist(self, tenant: TenantId, owner: UserHash, conversation_id: ConversationId) -> None:
        await self._redis.call("ZREM", Keys(tenant).conversations(owner), conversation_id)

    async def put_feedback(
        self, tenant: TenantId, conversation_id: ConversationId, message_id: str, feedback: Feedback
    ) -> None:
        key = Keys(tenant).conversation(conversation_id)
        for _ in range(FEEDBACK_ATTEMPTS):  # again when another writer changed the message in between
            values = fields(await self._redis.call("HGETALL", key))
            for name, value in values.items():
                if not name.startswith("m:"):
                    continue
                message = _message.decode(value)
                if message.message_id != message_id:
                    continue
                kept = [known for known in message.feedback or () if known.feedback_id != feedback.feedback_id]
                changed = msgspec.structs.replace(message, feedback=[*kept, feedback])
                if await self._redis.run(PUT_FEEDBACK, (key,), (name, value, msgspec.json.encode(changed))):
                    return
                break
            else:
                return
        raise GatewayError(Code.STORE_UNAVAILABLE, "The message is being changed by too many writers.")

    async def change(self, tenant: TenantId, conversation: Conversation) -> None:
        values: dict[str, Argument | None] = {
            "status": conversation.status,
            "name": conversation.name,
            "metadata": msgspec.json.encode(conversation.metadata),
            "inactive": None if conversation.is_active else 1,
        }
        arguments: list[Argument] = []
        for name, value in values.items():
            arguments += (name, int(value is not None), "" if value is None else value)
        await self._redis.run(CHANGE, (Keys(tenant).conversation(conversation.id),), arguments)


def _conversation(conversation_id: ConversationId, values: dict[str, bytes]) -> Conversation:
    return Conversation(
        id=conversation_id,
        owner=UserHash(values["owner"].decode()),
        persona=values["persona"].decode(),
        status=text(values.get("status")),
        name=text(values.get("name")),
        created_at=text(values.get("created_at")),
        metadata=msgspec.json.decode(values.get("metadata", b"{}")),
        messages=[_message.decode(values[name]) for name in sorted(values) if name.startswith("m:")],
        messages_unavailable=values.get("unavailable") == b"1",
        active_turn_id=text(values.get("active")),
        is_active="inactive" not in values,
        ai_system=text(values.get("ai_system")),
        model=text(values.get("model")),
    )


def _last_used_ms(conversation: Conversation) -> int:
    """The time of the last message, else of creation, else now: a read-through must not lift an old one up."""
    times = [message.created_at for message in conversation.messages if message.created_at]
    stamp = times[-1] if times else conversation.created_at
    try:
        return int(datetime.fromisoformat(stamp or "").timestamp() * 1000)
    except ValueError:
        return int(time.time() * 1000)


def _parse_page(cursor: str) -> tuple[int, str]:
    stamp, _, name = cursor.partition(".")
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) <= 15 and len(name) == 36):
        raise GatewayError(Code.INVALID_CURSOR, "The cursor is not one that this list gave.", field="cursor")
    return int(stamp), name
