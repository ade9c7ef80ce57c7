"""Who reads a turn, and what happens when nobody does."""

from __future__ import annotations

import asyncio
import time

import pytest

from gateway.core.identity import Disconnect, DisconnectPolicy, TenantId
from gateway.core.turn import StopReason
from gateway.services import presence as presence_module
from gateway.services.presence import Presence
from gateway.telemetry.metrics import Metrics

PATIENCE_S = 5.0


class Turn:
    """A turn, as far as its presence sees it."""

    def __init__(self, **rule: object) -> None:
        self.stopped: asyncio.Future[StopReason] = asyncio.get_running_loop().create_future()
        self.metrics = Metrics({"acme": ["default"]})
        self.presence = Presence(
            Disconnect(**rule),  # type: ignore[arg-type]  # by name
            self.stopped.set_result,
            TenantId("acme"),
            self.metrics.turns,
        )

    async def until_stopped(self) -> float:
        """Return the seconds it took."""
        begun_s = time.monotonic()
        assert await asyncio.wait_for(self.stopped, PATIENCE_S) is StopReason.DISCONNECT
        return time.monotonic() - begun_s

    async def settle(self) -> None:
        """Let every timer that is due run."""
        passed = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.05, passed.set_result, None)
        await passed


async def test_presence_stop_policy_stops_at_once_when_the_last_reader_leaves() -> None:
    """Under ``stop`` a turn ends with its last reader, not with the one before."""
    turn = Turn(policy=DisconnectPolicy.STOP)
    turn.presence.joined()
    turn.presence.joined()
    turn.presence.left()
    await turn.settle()
    assert not turn.stopped.done()
    turn.presence.left()
    assert await turn.until_stopped() < 0.5


async def test_presence_detach_stops_only_after_its_grace() -> None:
    """Under ``detach`` a turn goes on for the grace; a reader that comes back in time keeps it going."""
    turn = Turn(policy=DisconnectPolicy.DETACH, grace_s=0.2)
    turn.presence.joined()
    turn.presence.left()
    turn.presence.joined()
    turn.presence.left()
    assert await turn.until_stopped() >= 0.19


async def test_presence_detach_with_a_reader_back_in_time_goes_on() -> None:
    """The grace ends with the return of a reader."""
    turn = Turn(policy=DisconnectPolicy.DETACH, grace_s=0.03)
    turn.presence.joined()
    turn.presence.left()
    turn.presence.joined()
    await turn.settle()
    assert not turn.stopped.done()


@pytest.mark.parametrize(
    "rule",
    [
        {"policy": DisconnectPolicy.DRAIN},
        {"policy": DisconnectPolicy.DETACH, "grace_s": 0.0, "after_grace": DisconnectPolicy.DRAIN},
    ],
)
async def test_presence_drain_never_stops(rule: dict[str, object]) -> None:
    """Under ``drain`` an answer goes on to its end, whoever reads it."""
    turn = Turn(**rule)
    turn.presence.joined()
    turn.presence.left()
    await turn.settle()
    assert not turn.stopped.done()


async def test_presence_reader_on_another_worker_counts() -> None:
    """A turn whose last local reader left goes on while another worker has one, and ends when that leaves too."""
    turn = Turn(policy=DisconnectPolicy.STOP)
    turn.presence.joined()
    turn.presence.followed(1)
    turn.presence.left()
    await turn.settle()
    assert not turn.stopped.done()
    turn.presence.followed(0)
    assert await turn.until_stopped() < 0.5


async def test_presence_turn_that_nobody_ever_reads_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that was gone before its turn began leaves no turn that runs for nobody."""
    monkeypatch.setattr(presence_module, "ARRIVAL_S", 0.05)
    turn = Turn(policy=DisconnectPolicy.STOP)
    assert await turn.until_stopped() >= 0.04


async def test_presence_closed_says_nothing_more() -> None:
    """A turn that has ended is not stopped by readers that leave afterwards."""
    turn = Turn(policy=DisconnectPolicy.STOP)
    turn.presence.joined()
    turn.presence.close()
    turn.presence.left()
    await turn.settle()
    assert not turn.stopped.done()
