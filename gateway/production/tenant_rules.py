"""Tenants: who they are, and what ends how much they can use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from gateway.core.identity import Tenant
from gateway.core.plan import Scope, ScopeLimits, StoreAway
from gateway.production.finding import Rule, Scene, Severity
from gateway.settings import DEFAULT_TENANT


def _each(words: Callable[[Tenant], str | None]) -> Callable[[Scene], Iterator[str]]:
    """Look at every tenant; say which."""

    def look(scene: Scene) -> Iterator[str]:
        for tenant in scene.tenants.values():
            if (found := words(tenant)) is not None:
                yield f"tenant {tenant.id}: {found}"

    return look


def _default(scene: Scene) -> Iterator[str]:
    settings = scene.settings
    if settings.server.tenants_file is None and not settings.tenants and settings.upstream.persona_id is not None:
        yield f"all users are of the tenant {DEFAULT_TENANT} of HYPERLEAP_PERSONA_ID"


def _away(tenant: Tenant) -> str | None:
    if tenant.plan.store_away is StoreAway.OPEN:
        return f"{tenant.plan.away_share:.0%} of every limit on each worker"
    return None


def _paced(limits: ScopeLimits) -> bool:
    return bool(limits.requests_per_s or limits.requests_per_min)


def _anonymous(tenant: Tenant) -> str | None:
    scopes: tuple[Scope, ...] = ("anonymous", "address")
    if not tenant.anonymous or all(_paced(tenant.plan.of(scope)) for scope in scopes):
        return None
    free = " and ".join(f"limits.{scope}" for scope in scopes if not _paced(tenant.plan.of(scope)))
    return f"strangers come in, and {free} paces no requests"


def _users(tenant: Tenant) -> str | None:
    user = tenant.plan.user
    if _paced(user) and user.concurrent_turns:
        return None
    return "one user may use what all of them may"


def _budget(tenant: Tenant) -> str | None:
    limits = tenant.plan.tenant
    if limits.tokens_per_day or limits.tokens_per_month:
        return None
    return "no budget ends what it costs"


def _prices(tenant: Tenant) -> str | None:
    aliases = (*tenant.personas, *tenant.prompts)
    unpriced = sorted(alias for alias in aliases if tenant.prices.of(alias) is None)
    return f"what turns of {', '.join(unpriced)} cost is not known" if unpriced else None


def _unjudged(tenant: Tenant) -> str | None:
    if tenant.moderation.messages and tenant.moderation.open:
        return "a message that cannot be judged is sent"
    return None


TENANT_RULES: Final = (
    Rule(
        name="default-tenant",
        severity=Severity.MISSING,
        why="Keys, limits, budgets and what is counted are those of one tenant for everybody.",
        do="Write `[tenants]` in GATEWAY_CONFIG or GATEWAY_TENANTS_FILE, or put them by the admin API.",
        look=_default,
    ),
    Rule(
        name="away-open",
        severity=Severity.UNSAFE,
        why="While Redis is away each worker counts for itself: limits grow with their number, budgets end nothing.",
        do='Set `limits.store_away = "closed"` (GATEWAY_LIMITS_STORE_AWAY), which refuses by name until it is back.',
        look=_each(_away),
    ),
    Rule(
        name="anonymous-unlimited",
        severity=Severity.UNSAFE,
        why="Anybody with a browser, or without one, spends the tenant's tokens as fast as he likes.",
        do="Set `limits.anonymous.requests_per_min` and `limits.address.requests_per_min`"
        " (GATEWAY_LIMITS_ANONYMOUS_REQUESTS_PER_MIN …) above 0.",
        look=_each(_anonymous),
    ),
    Rule(
        name="users-unlimited",
        severity=Severity.MISSING,
        why="One user's loop leaves nothing to the others.",
        do="Set `limits.user.requests_per_min` and `limits.user.concurrent_turns` (GATEWAY_LIMITS_USER_…) above 0.",
        look=_each(_users),
    ),
    Rule(
        name="no-budget",
        severity=Severity.MISSING,
        why="Rates pace what a stolen key or a loop costs; only a budget ends it.",
        do="Set `limits.tenant.tokens_per_day` or `tokens_per_month` (GATEWAY_LIMITS_TENANT_TOKENS_PER_MONTH).",
        look=_each(_budget),
    ),
    Rule(
        name="no-prices",
        severity=Severity.ADVICE,
        why="Usage is told in tokens only; costs cannot be worked out for turns that were settled without a price.",
        do="Write `[prices]`, or `prices` of the tenant or its plan (GATEWAY_PRICES_PROMPT_PER_MILLION …).",
        look=_each(_prices),
    ),
    Rule(
        name="unjudged-sent",
        severity=Severity.ADVICE,
        why="Who wants messages judged mostly wants them all judged.",
        do='Set `moderation.when_unavailable = "closed"` (GATEWAY_MODERATION_WHEN_UNAVAILABLE).',
        look=_each(_unjudged),
    ),
)
