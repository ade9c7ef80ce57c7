"""Tickets by the clock: each life has its end, and a use is remembered for as long as the ticket lives."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gateway.core.errors import Code, GatewayError
from gateway.core.identity import Principal, Tenant, TenantId, UserHash
from gateway.core.revocation import Revoked, RevokedSet
from gateway.services.tickets import TicketRules, Tickets
from gateway.services.tokens import LEEWAY_S, Signer
from gateway.store.redis import Keys
from gateway.store.uses import RedisUses
from tests.services.access import KEY, CountedKeys, auth_of, refused, user_token

PATH = "/v1/turns/6f1c8f0e-4f3e-4a9e-9d2c-0d4b1f0a2b3c/events"


def holder(tenant: Tenant) -> Principal:
    return Principal(tenant=tenant, user_id=None, user_hash=UserHash("h"), expires_at_s=time.time() + 60)


@pytest.mark.parametrize("path", [PATH, "/v1/ws"])
async def test_ticket_past_its_life_is_expired(keys: CountedKeys, tenant: Tenant, path: str) -> None:
    """A ticket whose time is over asks for a new one, as an expired token does."""
    over = -LEEWAY_S - 1
    late = Tickets(Signer(KEY, None), RedisUses(keys.redis), TicketRules(socket_life_s=over, stream_life_s=over))
    with pytest.raises(GatewayError) as refused:
        late.read(late.mint(holder(tenant), path).ticket, path)
    assert refused.value.code is Code.TOKEN_EXPIRED


async def test_ticket_use_is_remembered_for_its_life_and_no_longer(keys: CountedKeys, tenant: Tenant) -> None:
    """What is kept of a used ticket ends with it."""
    tickets = Tickets(Signer(KEY, None), RedisUses(keys.redis), TicketRules(socket_life_s=30))
    claims = tickets.read(tickets.mint(holder(tenant), "/v1/ws").ticket, "/v1/ws")
    await tickets.use(claims)
    left_ms = await keys.redis.call("PTTL", Keys(TenantId(tenant.id)).used(claims["jti"]))
    assert 28_000 < left_ms <= 32_500
    with pytest.raises(GatewayError) as refused:
        await tickets.use(claims)
    assert refused.value.code is Code.CREDENTIAL_USED


async def test_ticket_and_token_revoked_while_they_are_used_up_are_refused(
    keys: CountedKeys, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Using something up asks the store; word of a revocation that arrives meanwhile counts."""
    auth = auth_of(keys, tenant)
    token = await user_token(auth, tenant)
    principal = await auth.principal(token, None)
    ticket = auth.tickets.mint(principal, "/v1/ws").ticket
    once = await user_token(auth, tenant, single_use=True)

    def revoking(use: Callable[[dict[str, Any]], Awaitable[None]]) -> Callable[[dict[str, Any]], Awaitable[None]]:
        async def use_late(claims: dict[str, Any]) -> None:
            await use(claims)
            await auth.revocations.revoke(Revoked.USER, tenant.id, auth.user_hash(tenant.id, "u1"))

        return use_late

    monkeypatch.setattr(auth.tickets, "use", revoking(auth.tickets.use))
    monkeypatch.setattr(auth.tokens, "use", revoking(auth.tokens.use))
    assert await refused(auth, once) is Code.REVOKED
    auth.revocations._set = RevokedSet()
    with pytest.raises(GatewayError) as error:
        await auth.ticket_holder(ticket, "/v1/ws", None)
    assert error.value.code is Code.REVOKED
    await auth.revocations.aclose()
