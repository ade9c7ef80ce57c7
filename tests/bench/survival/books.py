"""What the ledger says that turns cost, against what the vendor has billed for them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from gateway.core.errors import GatewayError
from gateway.core.ledger import Settlement
from gateway.store.ledger import RedisLedger
from tests.bench.survival.crowd import Turn
from tests.bench.survival.site import TENANT, Site

PAGE: Final = 1000
POLL_S: Final = 0.25
ESTIMATE_SLACK_TOKENS: Final = 40  # an estimate may miss so many tokens of a turn …
ESTIMATE_SLACK_SHARE: Final = 0.5  # … or this share of what was billed: it knows characters, and only those delivered


class Books(msgspec.Struct, kw_only=True):
    """The sums of some turns, and each turn that does not add up."""

    settled: int = 0  # tokens, of turns whose tokens the vendor told
    billed: int = 0  # of the same turns
    sources: dict[str, int] = {}
    estimated: int = 0  # tokens, of turns that were estimated
    estimated_billed: int = 0
    unsettled: int = 0  # turns
    doubled: int = 0  # settlements beyond one
    wrong: list[str] = []


async def settlements(site: Site, turns: Sequence[Turn], *, within_s: float) -> list[Settlement]:
    """Wait until every turn is settled, or the time is up; return all settlements."""
    ledger = RedisLedger(site.redis, ttl_s=1.0, retries_s=())
    wanted = {turn.turn_id for turn in turns}
    found: list[Settlement] = []
    cursor: str | None = None
    until_s = asyncio.get_running_loop().time() + within_s
    while True:
        try:
            while page := await ledger.settled(TENANT, cursor, PAGE):
                found += [settlement for _, settlement in page]
                cursor = page[-1][0]
        except GatewayError:
            pass  # the store is away
        if wanted <= {one.turn_id for one in found} or asyncio.get_running_loop().time() > until_s:
            return found
        await asyncio.sleep(POLL_S)


def balance(turns: Sequence[Turn], found: Sequence[Settlement], bill: Sequence[dict[str, Any]]) -> Books:
    """Compare turn by turn: one settlement, one run at the vendor, the same tokens."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for run in bill:
        runs.setdefault(run["conversation_id"], []).append(run)
    by_turn: dict[str, list[Settlement]] = {}
    for settlement in found:
        by_turn.setdefault(settlement.turn_id, []).append(settlement)
    books = Books(sources=dict(Counter(one.source for one in found)))
    for turn in turns:
        its_runs, its_settlements = runs.get(turn.conversation_id, []), by_turn.get(turn.turn_id, [])
        books.doubled += max(0, len(its_settlements) - 1)
        if not its_settlements:
            books.unsettled += 1
            continue
        if len(its_runs) > 1:
            books.wrong.append(f"the vendor was asked {len(its_runs)} times")
        settlement = its_settlements[0]
        prompt = sum(run["prompt_tokens"] for run in its_runs)
        completion = sum(run["completion_tokens"] for run in its_runs)
        if settlement.source == "estimated":
            books.estimated += settlement.total_tokens
            books.estimated_billed += prompt + completion
            slack = max(ESTIMATE_SLACK_TOKENS, ESTIMATE_SLACK_SHARE * (prompt + completion))
            if abs(settlement.total_tokens - prompt - completion) > slack:
                books.wrong.append(f"estimated {settlement.total_tokens} tokens of {prompt + completion}")
            continue
        books.settled += settlement.total_tokens
        books.billed += prompt + completion
        if (settlement.prompt_tokens, settlement.completion_tokens) != (prompt, completion):
            told = f"{settlement.prompt_tokens}+{settlement.completion_tokens}"
            books.wrong.append(f"{settlement.source} {told} tokens, billed {prompt}+{completion}")
    return books
