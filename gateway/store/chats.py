"""Where chats are held: one JSON string a chat, in its tenant's slot, with a time to live from its last use."""

from __future__ import annotations

from typing import Final

import msgspec

from gateway.core.chats import Chat
from gateway.core.identity import TenantId
from gateway.store.redis import Keys, Redis, Script

MOVE: Final = Script("move_chat")

_chat: Final = msgspec.json.Decoder(Chat)


class RedisChats:
    """ChatStore over ``chat:<digest>``."""

    def __init__(self, redis: Redis, *, ttl_s: float) -> None:
        self._redis = redis
        self._ttl_s = int(ttl_s)

    async def find(self, tenant: TenantId, digest: str) -> Chat | None:
        reply = await self._redis.call("GETEX", Keys(tenant).chat(digest), "EX", self._ttl_s)
        return _chat.decode(reply) if reply is not None else None

    async def put(self, tenant: TenantId, digest: str, chat: Chat, *, instead_of: Chat | None) -> Chat:
        before = msgspec.json.encode(instead_of) if instead_of is not None else b""
        values = (before, msgspec.json.encode(chat), self._ttl_s)
        return _chat.decode(await self._redis.run(MOVE, (Keys(tenant).chat(digest),), values))
