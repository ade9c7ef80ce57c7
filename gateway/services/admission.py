"""Who may start something that costs the tenant, now: every limit of a request decided together, before it begins."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, NamedTuple

from gateway.core.addresses import prefix_of
from gateway.core.conversation import Conversation
from gateway.core.errors import Code, GatewayError
from gateway.core.identity import Principal, Tenant, TenantId
from gateway.core.limit_books import Books
from gateway.core.limits import US_PER_S, Ask, Decision, Kind, Limiter, Quota, Rule, Slot, Work
from gateway.core.plan import SCOPES, Calendar, Plan, Scope, ScopeLimits, StoreAway, calendar
from gateway.core.turn import CHARS_PER_TOKEN, TurnId
from gateway.services.allowance import Allowance
from gateway.telemetry.logging import throttled
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.spans import CURRENT

logger = logging.getLogger(__name__)

Action = Literal["turn", "create", "read", "score", "change", "moderation", "report"]
Decide = Callable[[Ask], Awaitable[Decision]]
STALE_MAX: Final = 3
JITTER_SHARE: Final = 0.1  # of the wait that a refusal names, so that those refused together come back apart …
JITTER_MAX_S: Final = 30.0
JITTER_MIN_S: Final = 0.5
DAY_KEY: Final = "d"  # budgets' keys begin with these, and the period's date follows
MONTH_KEY: Final = "m"
BOOKS_MAX: Final = 20_000  # requests that a worker counts by itself before it begins anew
WORDS: Final = {
    Kind.RATE: "requests of this kind",
    Kind.TOKENS: "tokens a minute",
    Kind.SLOTS: "turns at a time",
    Kind.BUDGET: "tokens of this period",
}


@dataclass(slots=True)
class Told:
    """Where a request comes from, and what is found out of it for whoever answers it.

    The decision fills in where its limits stand, the proof of a key whose it is.
    """

    address: str | None = None
    quotas: Sequence[Quota] = ()
    tenant: TenantId | None = None


TOLD: ContextVar[Told | None] = ContextVar("told", default=None)  # set by a door for each request or command


class Admitted(NamedTuple):
    """What a turn was admitted with: the slots to be held, the tokens reserved, and whether a budget can cut it off."""

    slots: tuple[Slot, ...]
    tokens: int
    prompt_tokens: int
    budgeted: bool


class _Row(NamedTuple):
    """A rule but for whom it is about."""

    name: str
    key: str
    kind: Kind
    limit: int
    period_us: int
    monthly: bool = False


_Rows = tuple[_Row, ...]


class _Table(NamedTuple):
    """A plan as rows by scope, for turns and for other requests."""

    plan: Plan
    turn: dict[Scope, _Rows]
    other: dict[Scope, _Rows]
    budgeted: bool


OWN_MAX: Final = 1024  # different limits of sessions that are kept as rows
SUBJECTS: Final = {"anonymous": "visitor", "app": "visitor"}  # what a scope is called, where not by its name


class Admission:
    """Decides the limits of everything that reaches the vendor, each kind of request on its own count."""

    def __init__(self, limiter: Limiter, pepper: bytes, metrics: Metrics) -> None:
        self._limiter = limiter
        self._pepper = pepper
        self._metrics = metrics
        self._tables: dict[TenantId, _Table] = {}
        self._calendars: dict[TenantId, Calendar] = {}
        self._books: dict[TenantId, Books] = {}

    async def admit(
        self, principal: Principal, action: Action, address: str | None, persona: str | None = None
    ) -> None:
        """Charge one request against all limits; if any is used up, charge none and raise GatewayError(rate_limited).

        Without an ``address`` it is that of the door's request or command under way.
        While the store is away the tenant's plan says what happens: store_unavailable, or limits of this worker's own.
        """
        if address is None and (told := TOLD.get()) is not None:
            address = told.address
        await self._decide(principal, action, address, persona, secrets.token_hex(16), None)

    async def admit_turn(
        self,
        principal: Principal,
        conversation: Conversation,
        message: str,
        address: str,
        turn_id: TurnId,
        *,
        decide: Decide | None = None,
    ) -> Admitted:
        """Charge a turn: a request, a slot, and tokens as estimated. The caller must hold its slots while it runs.

        ``decide`` does so in the limiter's place, in a step that does more (see ``EventLog.start``), and is never done
        without: what that step does cannot be done while the store is away. It is not called where there is no limit.

        What it was charged is corrected by the step that ends it; a turn that does not begin must be undone.
        Raises GatewayError(rate_limited | store_unavailable), charging nothing.
        """
        work = Work(conversation.id, conversation.persona, -(-len(message) // CHARS_PER_TOKEN))
        return await self.admit_work(principal, "turn", work, address, turn_id, decide=decide)

    async def admit_work(
        self,
        principal: Principal,
        action: Action,
        work: Work,
        address: str,
        id_: TurnId,
        *,
        decide: Decide | None = None,
    ) -> Admitted:
        """Charge what is metered as a turn is; see ``admit_turn``. Without a persona in ``work`` none's limits hold."""
        decision = await self._decide(principal, action, address, work.persona or None, id_, work, decide)
        rules = [quota.rule for quota in decision.quotas]
        return Admitted(
            tuple(Slot(rule.key, id_) for rule in rules if rule.kind is Kind.SLOTS),
            decision.tokens,
            decision.prompt_tokens,
            any(rule.kind is Kind.BUDGET for rule in rules),
        )

    def allowance(self, tenant: Tenant, turn_id: TurnId, admitted: Admitted) -> Allowance | None:
        """Return what an admitted turn may use up of its budgets; None where it has none."""
        if not admitted.budgeted:
            return None
        return Allowance(
            self._limiter,
            tenant.id,
            turn_id,
            tokens=admitted.tokens,
            prompt_tokens=admitted.prompt_tokens,
            goes_on_alone=tenant.plan.store_away is StoreAway.OPEN,
        )

    async def undo(self, tenant: TenantId, turn_id: TurnId) -> None:
        """Give back what a turn that did not begin was charged; where the store is away a sweep does it later."""
        with contextlib.suppress(GatewayError):
            await self._limiter.undo(tenant, turn_id)

    async def sweep(self, tenant: Tenant) -> None:
        """Give back what was charged for turns that never began; raises store_unavailable."""
        undone = await self._limiter.sweep(tenant.id)
        if undone:
            throttled(logger, "charges.undone", tenant=tenant.id, charges=undone)

    async def _decide(
        self,
        principal: Principal,
        action: Action,
        address: str | None,
        persona: str | None,
        request_id: str,
        work: Work | None,
        decide: Decide | None = None,
    ) -> Decision:
        span = CURRENT.get().begin("admission", tenant=principal.tenant.id, action=action, persona=persona)
        try:
            decision = await self._decided(principal, action, address, persona, request_id, work, decide)
        except GatewayError as error:
            limit = error.extra.get("limit")
            refused = error.code is Code.RATE_LIMITED  # which is no failure of ours
            span.end(None if refused else error.code, code=error.code, limit=limit if isinstance(limit, str) else None)
            raise
        except BaseException:
            span.end(Code.INTERNAL)
            raise
        span.end()
        return decision

    async def _decided(
        self,
        principal: Principal,
        action: Action,
        address: str | None,
        persona: str | None,
        request_id: str,
        work: Work | None,
        decide: Decide | None,
    ) -> Decision:
        tenant = principal.tenant
        table = self._tables.get(tenant.id)
        if table is None or table.plan is not tenant.plan:
            table = self._tables[tenant.id] = _table(tenant.plan)
            self._calendars.pop(tenant.id, None)  # it may be of another zone
        decision = None
        now_us: int | None = None
        for _ in range(STALE_MAX):  # again where the store's day is another than was thought
            ask = self._ask(principal, table, action, address, persona, request_id, work, now_us)
            if not ask.rules:
                if action == "create" and tenant.plan.store_away is StoreAway.CLOSED:
                    await self._limiter.check()  # what the vendor creates must not be lost for want of a store
                return Decision(None, 0, 0, 0, 0, ())
            try:
                decision = await (self._limiter.admit(tenant.id, ask) if decide is None else decide(ask))
            except GatewayError as error:
                if (
                    decide is not None
                    or error.code is not Code.STORE_UNAVAILABLE
                    or tenant.plan.store_away is StoreAway.CLOSED
                ):
                    raise
                throttled(logger, "limits.local", tenant=tenant.id)
                self._metrics.limits.decided_alone(tenant.id)
                decision = self._decide_alone(tenant, ask)
            else:
                self._books.pop(tenant.id, None)
            if not decision.stale:
                break
            now_us = decision.now_us
        if decision is None or decision.stale:
            raise GatewayError(Code.STORE_UNAVAILABLE, "The store's clock does not stand still.")
        told = TOLD.get()
        if told is not None:
            told.quotas = decision.quotas
        if decision.refused is not None:
            raise self._refusal(tenant.id, decision.refused, decision.wait_us)
        self._metrics.limits.allowed(tenant.id, [quota.rule.name for quota in decision.quotas])
        return decision

    def _refusal(self, tenant: TenantId, rule: Rule, wait_us: int) -> GatewayError:
        self._metrics.limit_refused(tenant, rule.name)
        wait_s = wait_us / US_PER_S
        # Never earlier than told, and spread: else all who were refused together come back together.
        jitter_s = random.uniform(0, min(JITTER_MAX_S, max(JITTER_MIN_S, wait_s * JITTER_SHARE)))  # noqa: S311 - no secret
        scope = rule.name.partition("_")[0]
        subject = SUBJECTS.get(scope, scope)
        return GatewayError(
            Code.RATE_LIMITED,
            f"The limit of this {subject} on {WORDS[rule.kind]} is used up; try again later.",
            retry_after_s=wait_s + jitter_s,
            extra={"limit": rule.name},
        )

    def _decide_alone(self, tenant: Tenant, ask: Ask) -> Decision:
        """Decide without the store, under this worker's share of each limit."""
        books = self._books.get(tenant.id)
        if books is None or len(books.charges) >= BOOKS_MAX:
            books = self._books[tenant.id] = Books()
        share = tenant.plan.away_share
        rules = [rule._replace(limit=max(1, int(rule.limit * share))) for rule in ask.rules]
        return books.admit(ask._replace(rules=rules), _now_us())

    def _ask(
        self,
        principal: Principal,
        table: _Table,
        action: Action,
        address: str | None,
        persona: str | None,
        request_id: str,
        work: Work | None,
        now_us: int | None,
    ) -> Ask:
        rows_of = table.other if work is None else table.turn
        scope: Scope = "user" if not principal.anonymous else "app" if principal.app else "anonymous"
        own = rows_of[scope]
        if principal.limits is not None:
            own = _tightened(scope, table.plan.of(scope), principal.limits, work is not None)
        whom = [(rows_of["tenant"], "tenant"), (own, f"user:{principal.user_hash}")]
        if persona is not None and rows_of["persona"]:
            whom.append((rows_of["persona"], f"persona:{persona}"))
        if principal.anonymous and address is not None and rows_of["address"]:
            whom.append((rows_of["address"], f"addr:{self._hash(prefix_of(address))}"))
        today = self._today(principal.tenant, now_us) if work is not None and table.budgeted else None
        rules: list[Rule] = []
        for rows, who in whom:
            for name, key, kind, limit, period_us, monthly in rows:
                if kind is Kind.RATE:
                    key = f"{key}:{action}"
                elif today is not None and kind is Kind.BUDGET:
                    date, period_us = (today.month, today.month_ends_us) if monthly else (today.day, today.day_ends_us)
                    key = f"{key}:{date}"
                rules.append(Rule(name, f"{key}:{who}", kind, limit, period_us))
        if today is None:
            return Ask(request_id, rules, work)
        return Ask(request_id, rules, work, today.day_begins_us, today.day_ends_us)

    def _today(self, tenant: Tenant, now_us: int | None) -> Calendar:
        """Return the tenant's calendar, made anew where the store says that it is another day."""
        known = self._calendars.get(tenant.id)
        if known is None or now_us is not None:
            known = self._calendars[tenant.id] = calendar(now_us or _now_us(), tenant.plan.zone)
        return known

    def _hash(self, address: str) -> str:
        return hmac.digest(self._pepper, address.encode(), hashlib.sha256).hex()[:24]


def _table(plan: Plan) -> _Table:
    turn = {scope: _rows(scope, plan.of(scope)) for scope in SCOPES}
    other = {scope: _rates(rows) for scope, rows in turn.items()}
    return _Table(plan, turn, other, any(row.kind is Kind.BUDGET for rows in turn.values() for row in rows))


@lru_cache(maxsize=OWN_MAX)
def _tightened(scope: Scope, limits: ScopeLimits, own: ScopeLimits, for_turn: bool) -> _Rows:
    """Return the rows of a principal that has limits of its own; those of budgets are the plan's."""
    rows = _rows(scope, limits.tightened(own))
    return rows if for_turn else _rates(rows)


def _rates(rows: _Rows) -> _Rows:
    return tuple(row for row in rows if row.kind is Kind.RATE)


def _rows(scope: Scope, limits: ScopeLimits) -> _Rows:
    rows = (
        _Row(f"{scope}_requests_per_s", "rs", Kind.RATE, limits.requests_per_s, US_PER_S),
        _Row(f"{scope}_requests_per_min", "rm", Kind.RATE, limits.requests_per_min, 60 * US_PER_S),
        _Row(f"{scope}_tokens_per_min", "t", Kind.TOKENS, limits.tokens_per_min, 60 * US_PER_S),
        _Row(f"{scope}_concurrent_turns", "s", Kind.SLOTS, limits.concurrent_turns, 0),
        _Row(f"{scope}_tokens_per_day", DAY_KEY, Kind.BUDGET, limits.tokens_per_day, 0),
        _Row(f"{scope}_tokens_per_month", MONTH_KEY, Kind.BUDGET, limits.tokens_per_month, 0, True),
    )
    return tuple(row for row in rows if row.limit)


def _now_us() -> int:
    return time.time_ns() // 1000
