"""A worker that is going to be killed: starts turns, says so on a line each, and holds them for as long as it lives.

``python -m tests.services.doomed <store url> <tenant> <conversation>…``
"""

from __future__ import annotations

import asyncio
import sys

from gateway.core.conversation import ConversationId
from gateway.core.plan import Plan, ScopeLimits
from tests.services.stage import Stage

SLOTS = 3
PLAN = Plan(tenant=ScopeLimits(concurrent_turns=SLOTS, tokens_per_day=10**6), user=ScopeLimits())


async def main(url: str, tenant: str, conversations: list[str]) -> None:
    stage = Stage(url, tenant=tenant, plan=PLAN, lease_s=1.0, heartbeat_s=0.3)
    for conversation in conversations:
        started = await stage.start(ConversationId(conversation))
        print(started.turn_id, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
