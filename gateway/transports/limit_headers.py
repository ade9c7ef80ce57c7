"""What limits look like to a client: headers on answers, a ``limits`` member in WebSocket frames.

``RateLimit-Policy`` and ``RateLimit`` follow draft-ietf-httpapi-ratelimit-headers-11 (sections 3 and 4): every limit
that was decided on, by name. Its registry has no unit for tokens; ``qu="tokens"`` is ours. The ``x-ratelimit-*``
headers are what clients of language models know, one set for requests and one for tokens: of several limits the one
with the smallest share left. Times are whole seconds, rounded up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from gateway.core.limits import US_PER_S, Kind, Quota

UNITS: Final = {
    Kind.RATE: "",  # requests, which is the default
    Kind.TOKENS: ';qu="tokens"',
    Kind.SLOTS: ';qu="concurrent-requests"',
    Kind.BUDGET: ';qu="tokens"',
}
SUBJECTS: Final = {"requests": (Kind.RATE,), "tokens": (Kind.TOKENS, Kind.BUDGET)}
EXPOSED: Final = ", ".join(
    (
        "ratelimit, ratelimit-policy",
        *(f"x-ratelimit-{word}-{subject}" for word in ("limit", "remaining", "reset") for subject in SUBJECTS),
    )
)


def limit_headers(quotas: Sequence[Quota]) -> dict[str, str]:
    """Return the headers that tell where limits stand; none where there are no limits."""
    if not quotas:
        return {}
    headers = {
        "RateLimit-Policy": ", ".join(map(_policy, quotas)),
        "RateLimit": ", ".join(f'"{q.rule.name}";r={q.remaining};t={_seconds(q.reset_us)}' for q in quotas),
    }
    for subject, quota in _tightest(quotas).items():
        headers[f"x-ratelimit-limit-{subject}"] = str(quota.rule.limit)
        headers[f"x-ratelimit-remaining-{subject}"] = str(quota.remaining)
        headers[f"x-ratelimit-reset-{subject}"] = f"{_seconds(quota.reset_us)}s"
    return headers


def limit_members(quotas: Sequence[Quota]) -> list[dict[str, Any]]:
    """Return the same for a frame: each limit with what is left of it."""
    return [
        {
            "name": quota.rule.name,
            "limit": quota.rule.limit,
            "remaining": quota.remaining,
            "reset_s": _seconds(quota.reset_us),
        }
        for quota in quotas
    ]


def _tightest(quotas: Sequence[Quota]) -> dict[str, Quota]:
    found: dict[str, Quota] = {}
    for subject, kinds in SUBJECTS.items():
        of_subject = [quota for quota in quotas if quota.rule.kind in kinds]
        if of_subject:
            found[subject] = min(of_subject, key=lambda quota: quota.remaining / quota.rule.limit)
    return found


def _policy(quota: Quota) -> str:
    name, _, kind, limit, period_us = quota.rule
    # A calendar period has no fixed length in seconds: its window is told as what is left of it, by RateLimit.
    window = f";w={period_us // US_PER_S}" if kind in (Kind.RATE, Kind.TOKENS) else ""
    return f'"{name}";q={limit}{window}{UNITS[kind]}'


def _seconds(us: int) -> int:
    return -(-us // US_PER_S)
