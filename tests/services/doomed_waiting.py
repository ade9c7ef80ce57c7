"""A worker that is going to be killed while its turns wait for room: says so on a line each, and waits on.

``python -m tests.services.doomed_waiting <store url> <tenant> <vendor key> <conversation>…``
"""

from __future__ import annotations

import asyncio
import sys

from gateway.core.conversation import ConversationId
from gateway.core.vendor_keys import KeyLabel, PlanLimit
from gateway.services.key_gate import GateRules
from tests.services.stage import Stage


async def main(url: str, tenant: str, key: str, conversations: list[str]) -> None:
    stage = Stage(
        url,
        tenant=tenant,
        vendor_key=KeyLabel(key),
        plan_limit=PlanLimit(per_min=1),
        gate_rules=GateRules(wait_s=1000),
        lease_s=1.0,
        heartbeat_s=0.3,
    )
    for conversation in conversations:
        started = await stage.start(ConversationId(conversation))
        print(started.turn_id, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]))
