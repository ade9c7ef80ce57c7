"""Asking Hyperleap with a tenant's keys: once more after a 401, with a key that works, and after nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

import pytest

from gateway.core.errors import Code, GatewayError
from gateway.core.events import TurnCompleted, TurnFailed, TurnStopped
from gateway.core.identity import Tenant, TenantId
from gateway.core.turn import StopReason
from gateway.core.vendor_keys import KeyLabel, PlanLimit
from gateway.services.key_gate import GateRules
from gateway.services.vendor import Vendor
from gateway.services.vendor_gate import VendorGate
from gateway.store.gate import RedisGate
from tests.services.stage import PlayedVendor, Stage, until

ONE, TWO = KeyLabel("one"), KeyLabel("two")
TENANT = Tenant(id=TenantId("acme"), personas={}, vendor_keys=(ONE, TWO))


class Ring:
    """Two keys, of which some work."""

    def __init__(self, *working: KeyLabel) -> None:
        self._working = working

    def candidates(self, ring: Sequence[KeyLabel], /) -> Sequence[KeyLabel]:
        return ring

    def works(self, label: KeyLabel, /) -> bool:
        return label in self._working

    def spare(self, ring: Sequence[KeyLabel], /) -> KeyLabel | None:
        return next(iter(self._working), None)


def refusal(status: int) -> GatewayError:
    return GatewayError(Code.UPSTREAM_UNAUTHORIZED, vendor_status=status)


async def asked(stage: Stage, ring: Ring, *answers: GatewayError | str) -> tuple[list[KeyLabel], object]:
    """Make one call that is answered like this, and return the keys that it was made with and what came of it."""
    keys: list[KeyLabel] = []

    async def call(key: KeyLabel) -> str:
        keys.append(key)
        answer = answers[len(keys) - 1]
        if isinstance(answer, GatewayError):
            raise answer
        return answer

    limits = RedisGate(stage.store, stage.worker, lambda _: PlanLimit(), queue_max=1)
    metrics = stage.metrics.vendor_gate
    async with aclosing(VendorGate(limits, metrics, GateRules(), keys=ring, limit_of=lambda _: PlanLimit())) as gate:
        try:
            return keys, await Vendor(PlayedVendor(), ring, gate).ask(TENANT, call)
        except GatewayError as error:
            return keys, error.vendor_status


async def test_call_refused_with_401_is_made_once_more_with_a_key_that_works(stage: Stage) -> None:
    """A second key gets the answer; a second refusal is told, and there is no third try."""
    assert await asked(stage, Ring(TWO), "answer") == ([ONE], "answer")
    assert await asked(stage, Ring(TWO), refusal(401), "answer") == ([ONE, TWO], "answer")
    assert await asked(stage, Ring(TWO), refusal(401), refusal(401)) == ([ONE, TWO], 401)
    assert await asked(stage, Ring(ONE), refusal(401), "answer") == ([ONE, ONE], "answer")


async def test_call_is_not_repeated_without_a_key_that_works_or_after_another_error(stage: Stage) -> None:
    """Only a 401 is certain to have come before any work; and a key that is known to be refused is not worth a call."""
    assert await asked(stage, Ring(), refusal(401)) == ([ONE], 401)
    for status in (400, 403, 404, 409, 429, 500, 503):
        assert await asked(stage, Ring(TWO), refusal(status)) == ([ONE], status)
    assert await asked(stage, Ring(TWO), GatewayError(Code.UPSTREAM_RESET)) == ([ONE], None)


async def test_turn_refused_with_401_is_sent_once_more_and_completes(stage: Stage) -> None:
    """Readers see one answer; the refusal before it leaves no trace in the log."""
    conversation = await stage.conversation()
    started = await stage.start(conversation)
    reading = await stage.read(started.turn_id)
    (await stage.vendor.chat(0)).end(refusal(401))
    second = await stage.vendor.chat(1)
    assert second.message == "Hi"
    second.complete("Hello")
    ending = await reading.ended()
    assert isinstance(ending, TurnCompleted)
    assert (reading.names, ending.usage.source) == (
        ["turn.started", "message.started", "message.delta", "turn.completed"],
        "reported",
    )


async def test_turn_refused_twice_fails_by_the_refusal_and_costs_nothing(stage: Stage) -> None:
    """A second 401 is the end, told as it is."""
    started = await stage.start(await stage.conversation())
    reading = await stage.read(started.turn_id)
    for number in (0, 1):
        (await stage.vendor.chat(number)).end(refusal(401))
    ending = await reading.ended()
    assert isinstance(ending, TurnFailed)
    assert (ending.error.code, ending.usage.total_tokens) == (Code.UPSTREAM_UNAUTHORIZED, 0)
    assert len(stage.vendor.chats) == 2


@pytest.mark.parametrize("gated", [True, False])
async def test_turn_stopped_while_it_is_sent_once_more_is_stopped(stage: Stage, gated: bool) -> None:
    """A stop reaches the second attempt too, whether it waits for a stream or has one."""
    started = await stage.start(await stage.conversation())
    reading = await stage.read(started.turn_id)
    first = await stage.vendor.chat(0)
    if gated:
        stage.vendor.gate = asyncio.Event()
    asked_before = len(stage.vendor.keys)
    first.end(refusal(401))
    await until(lambda: len(stage.vendor.chats) == 2 or (gated and _waits(stage, asked_before)))
    turn = stage.roster.find(started.turn_id)
    assert turn is not None
    turn.stop(StopReason.USER)
    ending = await reading.ended()
    assert isinstance(ending, TurnStopped)
    if gated:
        assert stage.vendor.left_waiting == 1
    else:
        assert stage.vendor.chats[1].cancelled


def _waits(stage: Stage, asked_before: int) -> bool:
    return len(stage.vendor.keys) > asked_before
