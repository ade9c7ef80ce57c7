"""``python -m tests.bench admit``: what a decision on a request's limits costs, and one of the gate, here and there."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from statistics import median
from typing import Final
from urllib.parse import quote

import msgspec
from aiohttp import ClientSession, TCPConnector

from gateway.core.conversation import Conversation, ConversationId
from gateway.core.identity import Persona, Principal, Tenant, TenantId, UserHash, UserId, WorkerId
from gateway.core.plan import Plan, ScopeLimits
from gateway.core.turn import TurnId
from gateway.core.vendor_keys import KeyLabel, PlanLimit
from gateway.services.admission import Admission
from gateway.services.key_gate import GateRules
from gateway.services.vendor_gate import VendorGate
from gateway.store.gate import RedisGate
from gateway.store.limiter import RedisLimiter
from gateway.store.redis import Redis
from gateway.telemetry.metrics import Metrics
from tests.bench.phase import Spread, spread
from tests.bench.process import Child, cpu_clock_s
from tests.bench.report import aligned
from tests.bench.server import Mark, Server, running

MANY: Final = 1_000_000
USERS: Final = 1000
USERS_EVERY: Final = ScopeLimits(
    requests_per_s=MANY // 10,
    requests_per_min=MANY,
    tokens_per_min=10**8,
    concurrent_turns=MANY,
    tokens_per_day=10**14,
    tokens_per_month=10**14,
)
ONE_RATE: Final = ScopeLimits(requests_per_min=MANY)
PLANS: Final = {
    "default": Plan(tenant=ONE_RATE, user=ScopeLimits(requests_per_min=MANY, concurrent_turns=MANY)),
    "usual": Plan(
        tenant=ScopeLimits(requests_per_min=MANY, concurrent_turns=MANY, tokens_per_month=10**14),
        user=ScopeLimits(requests_per_min=MANY, tokens_per_min=10**8, concurrent_turns=MANY, tokens_per_day=10**14),
    ),
    "everything": Plan(tenant=USERS_EVERY, user=USERS_EVERY, persona=USERS_EVERY),
}


class Asker:
    """Asks for turns of a thousand users under one plan, each decision a new request that is admitted."""

    def __init__(self, redis: Redis, plan: str) -> None:
        tenant = Tenant(
            id=TenantId(f"bench-{plan}"),
            personas={"default": Persona(alias="default", persona_id="p")},
            plan=PLANS[plan],
        )
        self._admission = Admission(RedisLimiter(redis), b"pepper", Metrics({tenant.id: ["default"]}))
        self._principals = itertools.cycle(
            [
                Principal(
                    tenant=tenant, user_id=UserId(f"u{number}"), user_hash=UserHash(f"{number:032x}"), expires_at_s=1e12
                )
                for number in range(USERS)
            ]
        )

    async def ask(self) -> int:
        """Have one turn admitted; return how many rules decided."""
        principal = next(self._principals)
        conversation = Conversation(ConversationId("c"), principal.user_hash, "default")
        turn_id = TurnId(str(uuid.uuid4()))
        admitted = await self._admission.admit_turn(principal, conversation, "How are you?", "192.0.2.1", turn_id)
        return len(admitted.slots)


class Passer:
    """Asks the gate of one vendor key for turns of a hundred tenants, each of which passes at once."""

    def __init__(self, redis: Redis, limit: PlanLimit) -> None:
        tenants = [Tenant(id=TenantId(f"bench-{number}"), personas={}) for number in range(100)]
        self._gate = VendorGate(
            RedisGate(redis, WorkerId("bench"), lambda _: limit, queue_max=1000),
            Metrics({tenant.id: [] for tenant in tenants}).vendor_gate,
            GateRules(),
            keys=OneKey(),
            limit_of=lambda _: limit,
        )
        self._tenants = itertools.cycle(tenants)

    async def ask(self) -> int:
        """Have one turn let through, and say that it was answered."""
        passage = await self._gate.enter(next(self._tenants), str(uuid.uuid4()))
        await passage.wait()
        passage.answered()
        return 1


class OneKey:
    """A ring of one key."""

    def candidates(self, ring: Sequence[KeyLabel], /) -> Sequence[KeyLabel]:
        return ring

    def works(self, label: KeyLabel, /) -> bool:
        return True

    def spare(self, ring: Sequence[KeyLabel], /) -> KeyLabel | None:
        return None


ASKERS: Final[dict[str, Callable[[Redis], Asker | Passer]]] = {
    "default": lambda redis: Asker(redis, "default"),
    "usual": lambda redis: Asker(redis, "usual"),
    "everything": lambda redis: Asker(redis, "everything"),
    "gate, no limit": lambda redis: Passer(redis, PlanLimit()),
    "gate": lambda redis: Passer(redis, PlanLimit(per_hour=MANY, per_min=MANY)),
}


class Decisions(msgspec.Struct, kw_only=True):
    """What deciding under one plan cost in one round; times are for one decision."""

    plan: str
    decisions: int
    client_us: float
    server_us: float
    batches: float  # round trips of the connection; decisions of one loop tick share one
    per_s_a_core: float  # of the gateway's
    latency_ms: Spread
    handler_us: float  # of the handler that decides, all of it; the plain one's is in the report


class Report(msgspec.Struct, kw_only=True):
    """A run: rounds of each plan, and of the plain handler beside them."""

    concurrency: int
    seconds: float
    rounds: list[Decisions]
    plain_us: list[float]
    load_average: float

    def table(self) -> str:
        """Return the medians over the rounds."""
        head = [
            "plan",
            "gateway µs",
            "Valkey µs",
            "round trips",
            "decisions/s a core",
            "p50 ms",
            "p99 ms",
            "in a handler µs",
        ]
        rows: list[Sequence[str]] = [head]
        plain = median(self.plain_us)
        for plan in ASKERS:
            of_plan = [one for one in self.rounds if one.plan == plan]

            def middle(figure: Callable[[Decisions], float], of: list[Decisions] = of_plan) -> float:
                return median(map(figure, of))

            rows.append(
                [
                    plan,
                    f"{middle(lambda one: one.client_us):.0f}",
                    f"{middle(lambda one: one.server_us):.0f}",
                    f"{middle(lambda one: one.batches):.2f}",
                    f"{middle(lambda one: one.per_s_a_core):,.0f}",
                    f"{middle(lambda one: one.latency_ms.p50):.2f}",
                    f"{middle(lambda one: one.latency_ms.p99):.2f}",
                    f"{middle(lambda one: one.handler_us):.0f} (+{middle(lambda one: one.handler_us) - plain:.0f})",
                ]
            )
        return "\n".join(
            [
                f"{self.concurrency} at a time, windows of {self.seconds:g} s, medians of {len(self.plain_us)} rounds, "
                f"load average {self.load_average:.1f}. A plain aiohttp handler: {plain:.0f} µs a request.",
                "",
                *aligned(rows),
            ]
        )

    def as_json(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self))


async def run(concurrency: int, seconds: float, rounds: int) -> Report:
    """Measure every plan and the plain handler ``rounds`` times, in turn."""
    measured: list[Decisions] = []
    plain_us: list[float] = []
    async with running() as server:
        command = [sys.executable, "-m", "tests.bench.admit_handlers", server.url]
        async with Child("handlers", command, server.directory / "handlers.log", dict(os.environ)) as handlers:
            url = (await handlers.line(within_s=30)).decode().split()[1]
            async with ClientSession(connector=TCPConnector(limit=concurrency)) as http:

                def visit(path: str) -> Callable[[], Awaitable[None]]:
                    async def get() -> None:
                        async with http.get(f"{url}/{path}") as answer:
                            assert answer.status == 200
                            await answer.read()

                    return get

                for _ in range(rounds):
                    plain_us.append(await _handler_us(handlers.pid, visit("plain"), concurrency, seconds))
                    for plan in ASKERS:
                        measured.append(await _decide(server, plan, concurrency, seconds))
                        handler_us = await _handler_us(handlers.pid, visit(quote(plan)), concurrency, seconds)
                        measured[-1].handler_us = handler_us
                        await server.redis.call("FLUSHALL")
    return Report(
        concurrency=concurrency,
        seconds=seconds,
        rounds=measured,
        plain_us=plain_us,
        load_average=os.getloadavg()[0],
    )


async def _decide(server: Server, plan: str, concurrency: int, seconds: float) -> Decisions:
    asker = ASKERS[plan](server.redis)
    await asyncio.gather(*(asker.ask() for _ in range(concurrency)))
    begin, latencies_ns = Mark(server), list[int]()
    await _repeat(asker.ask, concurrency, seconds, latencies_ns)
    end = Mark(server)
    count = len(latencies_ns)
    client_s = end.client_s - begin.client_s
    return Decisions(
        plan=plan,
        decisions=count,
        client_us=client_s * 1e6 / count,
        server_us=(end.server_s - begin.server_s) * 1e6 / count,
        batches=(end.round_trips - begin.round_trips) / count,
        per_s_a_core=count / client_s,
        latency_ms=spread(latencies_ns),
        handler_us=0.0,
    )


async def _handler_us(pid: int, visit: Callable[[], Awaitable[None]], concurrency: int, seconds: float) -> float:
    await asyncio.gather(*(visit() for _ in range(concurrency)))
    begun_s, latencies_ns = cpu_clock_s(pid), list[int]()
    await _repeat(visit, concurrency, seconds, latencies_ns)
    return (cpu_clock_s(pid) - begun_s) * 1e6 / len(latencies_ns)


async def _repeat(
    act: Callable[[], Awaitable[object]], concurrency: int, seconds: float, latencies_ns: list[int]
) -> None:
    """Act over and over, so many at a time."""
    until_s = time.monotonic() + seconds

    async def again() -> None:
        while time.monotonic() < until_s:
            begun_ns = time.perf_counter_ns()
            await act()
            latencies_ns.append(time.perf_counter_ns() - begun_ns)

    await asyncio.gather(*(again() for _ in range(concurrency)))
