"""Where turns are started: conversations at the gateway and at the vendor, made before a phase begins."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from typing import Any, Final

import aiohttp

from gateway.upstream.pool import Pool
from tests.bench.plan import Plan

SETUP_CONNECTIONS: Final = 8
QUEUED_MAX: Final = 1_000  # requests that may wait for a stream in the pool
PERSONA_ID: Final = "6f1c8f0e-4f3e-4a9e-9d2c-0d4b1f0a2b3c"


async def gateway_places(plan: Plan) -> list[tuple[str, str]]:
    """Make a user's token and a conversation for each stream, over a few connections that are closed again."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=SETUP_CONNECTIONS)) as http:

        async def post(path: str, token: str, body: dict[str, Any]) -> Any:
            async with http.post(plan.url + path, json=body, headers={"Authorization": f"Bearer {token}"}) as response:
                answer = await response.json()
                if response.status != 201:
                    raise RuntimeError(f"POST {path}: {response.status} {answer}")
                return answer

        async def open_one(number: int) -> tuple[str, str]:
            token = str((await post("/v1/sessions", plan.key, {"user_id": f"bench-{number}"}))["token"])
            return token, str((await post("/v1/conversations", token, {}))["id"])

        return await few_at_a_time(open_one, plan.streams)


async def vendor_paths(pool: Pool, headers: list[tuple[bytes, bytes]], count: int) -> list[str]:
    """Make a conversation for each stream; all at once, as far as may be: so the pool opens now what it will need."""
    create = json.dumps({"personaId": PERSONA_ID}).encode()

    async def create_conversation(_: int) -> str:
        answer = _Answer()
        await pool.open_stream("POST", "/conversations/persona", headers, create, answer, deadline_s=30.0)
        return f"/conversations/{json.loads(await answer.body)['conversationId']}/chat-http2"

    return await few_at_a_time(create_conversation, count, together=min(count, QUEUED_MAX))


class _Answer:
    """Collects the body of one answer from the pool."""

    def __init__(self) -> None:
        self.body: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._parts: list[bytes] = []

    def headers_received(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        if status not in (200, 201):
            self.body.set_exception(RuntimeError(f"the simulator answered {status}"))

    def data_received(self, data: bytes) -> None:
        self._parts.append(data)

    def stream_ended(self) -> None:
        if not self.body.done():
            self.body.set_result(b"".join(self._parts))

    def stream_failed(self, error: Exception) -> None:
        self.body.set_exception(error)


async def few_at_a_time(work: Any, count: int, *, together: int = SETUP_CONNECTIONS) -> list[Any]:
    """Run ``work(0)`` … ``work(count - 1)``, a few together."""
    places: list[Any] = [None] * count
    numbers = iter(range(count))

    async def run() -> None:
        for number in numbers:
            step: Awaitable[Any] = work(number)
            places[number] = await step

    await asyncio.gather(*(run() for _ in range(together)))
    return places
