"""What is done unasked: tokens looked up, lost turns taken over, however much there is of it."""

from __future__ import annotations

import asyncio
import time

from gateway.core.identity import Tenant
from gateway.core.turn import StopReason
from gateway.services.accounting import LOOK_UPS_MAX
from gateway.services.sweeper import Sweeper
from gateway.store.redis import Keys
from tests.services.conftest import SetStage
from tests.services.stage import PATIENCE_S, Stage, until


async def test_one_sweep_settles_more_turns_than_it_looks_up_at_a_time(set_stage: SetStage) -> None:
    """After a burst of stops the ledger is not minutes behind."""
    stage = set_stage(settle_retries_s=())
    count = 2 * LOOK_UPS_MAX + 5
    for number in range(count):
        started = await stage.start(await stage.conversation())
        (await stage.vendor.chat(number)).say("Hello")
        await stage.turns.stop(stage.user(), started.turn_id, StopReason.USER)
    await until(lambda: stage.turns.running == 0)
    unsettled = Keys(stage.tenant.id).unsettled()
    async with asyncio.timeout(PATIENCE_S):
        while await stage.store.call("ZCOUNT", unsettled, "-inf", int(time.time() * 1000)) < count:
            await asyncio.sleep(0.001)
    await stage.accounting.sweep(stage.tenant)
    settled = await stage.ledger.settled(stage.tenant.id, None, 1000)
    assert len({settlement.turn_id for _, settlement in settled}) == len(settled) == count


async def test_duty_that_waits_for_the_vendor_keeps_no_other_waiting(stage: Stage) -> None:
    """Lost turns are taken over while the tokens of others are still being looked up."""
    waiting, taken = asyncio.Event(), asyncio.Event()

    async def look_up(_: Tenant) -> None:
        waiting.set()
        await asyncio.Event().wait()

    async def take_over(_: Tenant) -> None:
        if waiting.is_set():
            taken.set()

    sweeper = Sweeper({stage.tenant.id: stage.tenant}, (look_up, take_over), interval_s=0.01)
    sweeper.open()
    try:
        async with asyncio.timeout(PATIENCE_S):
            await taken.wait()
    finally:
        await sweeper.aclose()
