"""What the usage API tells of a run, against the ledger that it is made of: nothing twice, nothing missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import httpx

from gateway.core.ledger import Settlement
from gateway.core.prices import Price, parse_price
from tests.bench.survival.site import TENANT, Site

# Odd on purpose: a cost that was rounded otherwise, or added up from another price, shows.
CURRENCY: Final = "EUR"
PRICES: Final = {"prompt_per_million": "1.234567", "completion_per_million": "9.876543", "per_turn": "0.000111"}
SETTINGS: Final = {
    "GATEWAY_PRICES_CURRENCY": CURRENCY,
    **{f"GATEWAY_PRICES_{name.upper()}": price for name, price in PRICES.items()},
}
PAGE: Final = 70  # turns, so that there are several pages
GROUPINGS: Final = ("", "day", "persona,outcome", "source,key,user", "hour,tenant,outcome,source")
SUMS: Final = ("turns", "prompt_tokens", "completion_tokens", "total_tokens", "cost_micros")


async def reported(site: Site, found: Sequence[Settlement]) -> list[str]:
    """Ask a gateway for what its tenant used, turn by turn and in sums; return what is not as in the ledger."""
    wrong: list[str] = []
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {site.secret_key}"}, timeout=30.0) as http:
        url = await _answering(http, site.urls)
        begins = f"{datetime.now(UTC) - timedelta(hours=12):%Y-%m-%dT%H:%M:%SZ}"
        records: list[dict[str, Any]] = []
        cursor: str | None = ""
        while cursor is not None:
            page = await _get(http, url, {"from": begins, "by": "turn", "limit": str(PAGE), "cursor": cursor})
            records += page["data"]
            cursor = page["next_cursor"]
        wrong += _compared(records, found)
        whole = {name: sum(record[name] for record in records) for name in SUMS if name != "turns"}
        whole["turns"] = len(records)
        for by in GROUPINGS:
            report = await _get(http, url, {"from": begins, "by": by})
            for what, rows in (("groups", report["data"]), ("total", report["total"])):
                sums = {name: sum(row[name] for row in rows) for name in SUMS}
                if sums != whole:
                    wrong.append(f"the {what} by {by or 'nothing'} are {sums}, the turns {whole}")
    return wrong


def _compared(records: Sequence[Mapping[str, Any]], found: Sequence[Settlement]) -> list[str]:
    wrong = [
        f"a turn is told {count} times" for count in Counter(one["turn_id"] for one in records).values() if count > 1
    ]
    by_turn = {record["turn_id"]: record for record in records}
    missing = sum(one.turn_id not in by_turn for one in found)
    if missing or len(by_turn) != len({one.turn_id for one in found}):
        wrong.append(f"{missing} turns of {len(found)} are not told, and {len(by_turn)} are")
    price = Price(
        currency=CURRENCY,
        prompt_micros=parse_price(PRICES["prompt_per_million"]),
        completion_micros=parse_price(PRICES["completion_per_million"]),
        turn_micros=parse_price(PRICES["per_turn"]),
    )
    for one in found:
        told = by_turn.get(one.turn_id)
        if told is None:
            continue
        cost = price.cost_micros(one.prompt_tokens, one.completion_tokens)
        expected = (TENANT, one.owner, one.state, one.source, one.prompt_tokens, one.completion_tokens, cost, CURRENCY)
        names = ("tenant", "user", "state", "source", "prompt_tokens", "completion_tokens", "cost_micros", "currency")
        if tuple(told[name] for name in names) != expected:
            wrong.append(f"a turn is told as {[told[name] for name in names]}, and is {expected}")
    return wrong


async def _answering(http: httpx.AsyncClient, urls: Sequence[str]) -> str:
    """Return a gateway that was not struck for good."""
    for url in urls:
        try:
            if (await http.get(f"{url}/openapi.json")).status_code == 200:
                return url
        except httpx.TransportError:
            continue
    raise AssertionError("no gateway answers")


async def _get(http: httpx.AsyncClient, url: str, query: Mapping[str, str]) -> dict[str, Any]:
    answer = await http.get(f"{url}/v1/usage", params={name: value for name, value in query.items() if value})
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told
