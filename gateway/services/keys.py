"""Tenants' long-lived keys: made once, kept as keyed hashes, proved in constant time, rotated and taken away."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from datetime import datetime
from typing import Final, NamedTuple

from gateway.core.errors import Code, GatewayError
from gateway.core.identity import TenantId
from gateway.core.keys import (
    ENDING_CHARS,
    KEY_PREFIX,
    LABEL_MAX_CHARS,
    KeyKind,
    KeyRecord,
    KeyState,
    KeyStore,
    ParsedKey,
)
from gateway.services.clock import timestamp
from gateway.telemetry import audit

# What is known of a key is asked again after this: below the 2 s within which a revocation or a rotation holds on
# every worker, one that hears nothing of it included.
KEY_CACHE_S: Final = 1.0
KEY_CACHE_ENTRIES: Final = 4096
OVERLAP_MAX_S: Final = 30 * 86_400.0


class MintedKey(NamedTuple):
    """A key in clear, which nobody sees again, and what is kept of it."""

    key: str
    record: KeyRecord


class ApiKeys:
    """Makes and proves keys. What the store said of one is remembered for a moment, also that it has none."""

    def __init__(self, store: KeyStore, *, pepper: bytes, clock: Callable[[], float] = time.time) -> None:
        """``clock`` tells Unix time, which expiry is judged by."""
        self._store = store
        self._pepper = pepper
        self._clock = clock
        self._known: dict[tuple[TenantId, str], tuple[float, KeyRecord | None]] = {}

    async def mint(
        self, tenant: TenantId, kind: KeyKind, label: str, *, ttl_s: float | None = None, replace: bool = False
    ) -> MintedKey:
        """Make a key, which lives for ``ttl_s`` or until it is revoked; show it to its owner, nobody can again.

        ``replace`` removes older ones of its kind and label; sessions that they opened live on.
        Raises GatewayError: invalid_value, store_unavailable.
        """
        if not 0 < len(label) <= LABEL_MAX_CHARS or not label.isprintable():
            raise GatewayError(
                Code.INVALID_VALUE, f"A label has 1 to {LABEL_MAX_CHARS} printable characters.", field="label"
            )
        if ttl_s is not None and ttl_s <= 0:
            raise GatewayError(Code.INVALID_VALUE, "A key lives for more than 0 s.", field="ttl_s")
        if replace:
            for known in await self._store.list(tenant):
                if known.kind is kind and known.label == label:
                    with audit.change("key.removed", tenant=tenant, key_id=known.id, kind=kind, label=label):
                        await self._store.remove(tenant, known.id)
                    self.forget(tenant, known.id)
        key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        record = KeyRecord(
            id=key_id,
            tenant=tenant,
            kind=kind,
            label=label,
            digest=self._digest(secret),
            created_at=timestamp(),
            ending=secret[-ENDING_CHARS:],
            expires_at_s=round(self._clock() + ttl_s, 3) if ttl_s is not None else None,
        )
        with audit.change(
            "key.created", tenant=tenant, key_id=key_id, kind=kind, label=label, expires_at_s=record.expires_at_s
        ):
            await self._store.add(record)
        return MintedKey(f"{KEY_PREFIX[kind]}{tenant}.{key_id}.{secret}", record)

    async def rotate(self, tenant: TenantId, key_id: str, *, overlap_s: float) -> MintedKey:
        """Make a key in another's place, of its kind, label and length of life; the old one ends after the overlap.

        Sessions that the old one opened live on. Raises GatewayError: not_found; invalid_value for an overlap out of
        bounds, or for a key that has ended already; store_unavailable, after which at worst both are valid.
        """
        if not 0 <= overlap_s <= OVERLAP_MAX_S:
            raise GatewayError(
                Code.INVALID_VALUE, f"The overlap lies between 0 and {OVERLAP_MAX_S:.0f} s.", field="overlap_s"
            )
        old = await self._store.find(tenant, key_id)
        if old is None:
            raise GatewayError(Code.NOT_FOUND, "There is no such key.")
        now_s = self._clock()
        if (state := old.state(now_s)) is not KeyState.ACTIVE:
            raise GatewayError(Code.INVALID_VALUE, f"The key is {state} already; create another.", field="key_id")
        ttl_s = old.expires_at_s - _unix(old.created_at) if old.expires_at_s is not None else None
        with audit.change("key.rotated", tenant=tenant, key_id=key_id, overlap_s=overlap_s) as told:
            minted = await self.mint(tenant, old.kind, old.label, ttl_s=ttl_s)
            told["new_key_id"] = minted.record.id
            await self._store.expire(tenant, key_id, round(now_s + overlap_s, 3))
        self.forget(tenant, key_id)
        return minted

    async def revoke(self, tenant: TenantId, key_id: str) -> None:
        """End a key for good; raises GatewayError: not_found, store_unavailable.

        The sessions that it opened are another matter, see ``Revocations.revoke``.
        """
        with audit.change("key.revoked", tenant=tenant, key_id=key_id):
            if not await self._store.revoke(tenant, key_id, round(self._clock(), 3)):
                raise GatewayError(Code.NOT_FOUND, "There is no such key.")
        self.forget(tenant, key_id)

    async def list(self, tenant: TenantId) -> list[KeyRecord]:
        """Return a tenant's keys, the oldest first; raises GatewayError(store_unavailable)."""
        return sorted(await self._store.list(tenant), key=lambda record: (record.created_at, record.id))

    async def prove(self, shown: ParsedKey) -> KeyRecord:
        """Return the record of a key that is what it says and has not ended.

        Raises GatewayError: credential_invalid, revoked, store_unavailable.
        """
        record = await self._record(shown.tenant, shown.id)
        # The digest is computed and compared whether or not the key is known, so that timing tells nothing.
        digest = self._digest(shown.secret)
        proved = hmac.compare_digest(digest, record.digest if record is not None else "0" * 64)
        if record is None or not proved or KEY_PREFIX[record.kind] != shown.prefix:
            raise GatewayError(Code.CREDENTIAL_INVALID)
        match record.state(self._clock()):  # told only to who has the whole key
            case KeyState.EXPIRED:
                raise GatewayError(Code.CREDENTIAL_INVALID, "The key has expired.")
            case KeyState.REVOKED:
                raise GatewayError(Code.REVOKED, "The key was revoked.")
        return record

    def forget(self, tenant: TenantId, key_id: str) -> None:
        """Ask the store about a key again, the next time that it is shown."""
        self._known.pop((tenant, key_id), None)

    async def _record(self, tenant: TenantId, key_id: str) -> KeyRecord | None:
        now_s = time.monotonic()
        known = self._known.get((tenant, key_id))
        if known is not None and now_s - known[0] < KEY_CACHE_S:
            return known[1]
        record = await self._store.find(tenant, key_id)
        self._known.pop((tenant, key_id), None)
        if len(self._known) >= KEY_CACHE_ENTRIES:
            del self._known[next(iter(self._known))]  # the one asked for longest ago
        self._known[tenant, key_id] = (now_s, record)
        return record

    def _digest(self, secret: str) -> str:
        return hmac.digest(self._pepper, secret.encode(), hashlib.sha256).hex()


def _unix(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()
