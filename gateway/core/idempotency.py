"""Idempotency keys: the rule of their form, and the port that remembers what was created with which."""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

import msgspec

from gateway.core.conversation import Conversation
from gateway.core.errors import Code, GatewayError
from gateway.core.identity import TenantId, UserHash

IDEMPOTENCY_KEY_MAX_CHARS: Final = 255


def checked_key(key: str) -> str:
    """Return a key that a client may use; raises GatewayError(invalid_value)."""
    if not (0 < len(key) <= IDEMPOTENCY_KEY_MAX_CHARS and key.isprintable()):
        raise GatewayError(
            Code.INVALID_VALUE,
            f"An idempotency key has 1 to {IDEMPOTENCY_KEY_MAX_CHARS} printable characters.",
            field="Idempotency-Key",
        )
    return key


class Reservation(msgspec.Struct, frozen=True):
    """One request's hold on its owner's key. ``token`` tells it from every other request, repeats included."""

    owner: UserHash
    key: str
    body_hash: str
    token: str


class Known(NamedTuple):
    """What an earlier request did with a key; ``conversation`` is None while it is being created."""

    body_hash: str
    conversation: Conversation | None


class CreationKeys(Protocol):
    """Which conversation a user's idempotency key has led to. Raises GatewayError(store_unavailable)."""

    async def reserve(self, tenant: TenantId, reservation: Reservation, life_s: float) -> Known | None:
        """Take a key for ``life_s`` and return None; or return what is known of it where another request has it."""
        ...

    async def keep(self, tenant: TenantId, reservation: Reservation, conversation: Conversation) -> None:
        """Write what the reservation led to, also when it has run out since; safe to repeat.

        Nothing happens when another request has taken the key meanwhile: the first to be written stays.
        """
        ...

    async def free(self, tenant: TenantId, reservation: Reservation) -> None:
        """Give the key up, so that the next request with it starts anew; one that is not held is left alone."""
        ...
