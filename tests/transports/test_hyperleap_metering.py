"""What the drop-in costs: prompt runs and moderations under the limits of turns, and settled as they are."""

from __future__ import annotations

import asyncio
from typing import Final

import pytest

from gateway.core.identity import TenantId
from gateway.core.ledger import Settlement
from gateway.core.turn import TurnState
from gateway.store.ledger import RedisLedger
from tests.conftest import Running, StartGateway
from tests.transports.client import eventually, metric
from tests.transports.conftest import SignIn
from tests.transports.dropin import App, error_of, start

HI: Final = "Hi #tokens=12"
PATHS: Final = ("run-sync", "async", "run-sse")


async def settled(running: Running, count: int) -> list[Settlement]:
    """Wait for so many settlements and return them, the oldest first."""
    ledger = RedisLedger(running.gateway.redis, ttl_s=1000, retries_s=())
    found: list[Settlement] = []

    async def there() -> bool:
        found[:] = [one for _, one in await ledger.settled(TenantId(running.tenant), None, 100)]
        return len(found) >= count

    await eventually(there, f"{count} settlements")
    return found


async def charged(running: Running, name: str) -> list[int]:
    """Return what is left in the tenant's counts of a kind."""
    keys = await running.gateway.redis.call("KEYS", f"hg:{{{running.tenant}}}:lim:{name}:*")
    return [int((await running.gateway.redis.call("GET", key)).split()[0]) for key in keys]


async def test_prompt_run_is_settled_as_the_vendor_bills_it(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """Each form is one turn in the ledger and in the metrics, under the prompt's alias, with the reported tokens."""
    running = await start(start_gateway)
    client = await sign_in(running)
    async with App(running, client.token) as app:
        for path in PATHS:
            assert (await app.run(HI, path)).status_code == 200
    found = await settled(running, 3)
    billed = [(run.prompt_tokens, run.completion_tokens) for run in running.simulator.bill]
    assert [(one.prompt_tokens, one.completion_tokens) for one in found] == billed
    assert {(one.persona, one.state, one.source) for one in found} == {("summary", TurnState.COMPLETED, "reported")}
    assert {one.owner for one in found} == {running.gateway.auth.user_hash(TenantId(running.tenant), "u1")}
    ended = await metric(running, "gateway_turns_total", tenant=running.tenant, persona="summary", outcome="completed")
    assert ended == 3


async def test_prompt_run_that_is_stopped_is_settled_by_an_estimate(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """No copy of a run could be looked up: what was delivered is estimated, at once and for good."""
    running = await start(start_gateway)
    client = await sign_in(running)
    async with App(running, client.token) as app:
        asked = asyncio.create_task(app.run("Hi #rate=50 #tokens=900", "async"))
        await eventually(lambda: any(run.items_sent > 5 for run in running.simulator.bill), "the run to begin")
        (turn,) = running.gateway.turns._roster.all()
        await client.stop(turn.turn_id)
        assert (await asked).status_code == 200
    (one,) = await settled(running, 1)
    assert (one.state, one.reason, one.source) == (TurnState.STOPPED, "user", "estimated")
    assert one.completion_tokens > 0
    assert not await running.gateway.redis.call("ZCARD", f"hg:{{{running.tenant}}}:usage:unsettled")


async def test_moderation_is_settled_by_an_estimate(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """The vendor tells no tokens of one: a quarter of the text's characters, under the user who asked."""
    running = await start(start_gateway, limits="user = { tokens_per_min = 100_000 }")
    async with App(running, (await sign_in(running)).token) as app:
        judged = [(await app.call("POST", "/moderations", {"input": text})).json() for text in ("a bomb", "x" * 400)]
        nothing = await app.call("POST", "/moderations", {})
    assert [one["results"][0]["flagged"] for one in judged] == [True, False]
    assert nothing.status_code == 200
    found = await settled(running, 3)
    assert sorted((one.prompt_tokens, one.total_tokens) for one in found) == [(0, 0), (2, 2), (100, 100)]
    assert {(one.reason, one.source, one.state) for one in found} == {("moderation", "estimated", TurnState.COMPLETED)}
    # The bucket holds what was settled, less what has drained of it since: the reservation is given back.
    (level,) = await charged(running, "t")
    assert 0 < level / 60_000_000 <= 102


async def test_moderation_that_the_vendor_refuses_costs_no_tokens(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """What the vendor refused it did not do: in the ledger as failed, told as what it is."""
    running = await start(start_gateway, simulator={"limit_per_minute": 1, "limit_period_s": 3600.0})
    async with App(running, (await sign_in(running)).token) as app:
        answers = [await app.call("POST", "/moderations", {"input": "x" * 40}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]
    found = await settled(running, 2)
    told = sorted((one.state, one.reason, one.total_tokens) for one in found)
    assert told == [(TurnState.COMPLETED, "moderation", 10), (TurnState.FAILED, "upstream_rate_limited", 0)]


async def test_runs_and_turns_share_a_limit_of_requests(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """A prompt run counts as a turn does; the one too many is 429 with Retry-After and reaches nobody."""
    running = await start(start_gateway, limits="user = { requests_per_min = 3 }")
    async with App(running, (await sign_in(running)).token) as app:
        conversation = await app.create()
        answers = [await app.run(HI), await app.chat(conversation, HI), await app.run(HI, "async"), await app.run(HI)]
        late = await app.chat(conversation, HI, "chat-sse")
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert (late.status_code, error_of(late)["code"]) == (429, "too_many_requests")
    assert 15 <= int(answers[-1].headers["retry-after"]) <= 23
    assert answers[-1].headers["x-ratelimit-remaining-requests"] == "0"
    assert len(running.simulator.bill) == 3


async def test_moderations_have_a_limit_of_requests(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """They are counted by themselves, under the same limits."""
    running = await start(start_gateway, limits="user = { requests_per_min = 2 }")
    async with App(running, (await sign_in(running)).token) as app:
        answers = [await app.call("POST", "/moderations", {"input": "x"}) for _ in range(3)]
        assert (await app.run(HI)).status_code == 200
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert error_of(answers[-1])["code"] == "too_many_requests"


@pytest.mark.parametrize("what", ["run", "moderation"])
async def test_budget_that_is_used_up_refuses(start_gateway: StartGateway, sign_in: SignIn, what: str) -> None:
    """A day's tokens are spent by runs and moderations as by turns."""
    running = await start(start_gateway, limits="user = { tokens_per_day = 60 }")
    async with App(running, (await sign_in(running)).token) as app:

        async def ask() -> int:
            if what == "run":
                return (await app.run("Hi #tokens=40")).status_code
            return (await app.call("POST", "/moderations", {"input": "x" * 200})).status_code

        statuses = [await ask()]
        await settled(running, 1)
        statuses += [await ask() for _ in range(2)]
    assert statuses[0] == 200
    assert statuses[-1] == 429


async def test_run_holds_a_slot_while_it_runs(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """Runs are turns at a time; a slot comes back with the ending, a moderation's with its answer."""
    running = await start(start_gateway, limits="user = { concurrent_turns = 1 }")
    client = await sign_in(running)
    async with App(running, client.token) as app:
        asked = asyncio.create_task(app.run("Hi #rate=50 #tokens=900", "async"))
        await eventually(lambda: len(running.simulator.bill), "the run to begin")
        refused = [await app.run(HI), await app.call("POST", "/moderations", {"input": "x"})]
        (turn,) = running.gateway.turns._roster.all()
        await client.stop(turn.turn_id)
        await asked
        judged = [(await app.call("POST", "/moderations", {"input": "x"})).status_code for _ in range(2)]
        await settled(running, 3)
        again = await app.run(HI)
    assert [answer.status_code for answer in refused] == [429, 429]
    assert (judged[0], again.status_code) == (200, 200)


async def test_refused_run_leaves_nothing_behind(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """What a limit refuses writes no conversation, turn or charge that would stay."""
    running = await start(start_gateway, limits="user = { requests_per_min = 1 }")
    async with App(running, (await sign_in(running)).token) as app:
        assert (await app.run(HI)).status_code == 200
        before = sorted(await running.gateway.redis.call("KEYS", f"hg:{{{running.tenant}}}:*"))
        assert (await app.run(HI)).status_code == 429
        assert sorted(await running.gateway.redis.call("KEYS", f"hg:{{{running.tenant}}}:*")) == before
