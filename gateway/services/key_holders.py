"""Those who show a long-lived key with every request, as clients do that know of no sessions.

Who shows a publishable key is nobody in particular: everybody has it. What proves whose a conversation or a prompt run
is, is its id, which the vendor drew at random and only its visitor was told. So each is its own visitor's, under a hash
of which half is drawn and half says that it was drawn here: the id of what a user with a session owns opens nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import replace
from typing import Final

from gateway.core.conversation import ConversationId, ConversationStore
from gateway.core.errors import Code, GatewayError
from gateway.core.identity import Principal, TenantId, UserHash
from gateway.core.keys import KEY_PREFIX, KeyKind
from gateway.core.operations import PromptRunStore, RunId
from gateway.services.admission import Admission
from gateway.services.sessions import Sessions
from gateway.services.vendor import Vendor

DRAWN_CHARS: Final = 20  # of a visitor's hash, in hex; as many follow that prove them: 80 bits each


def is_publishable(credential: str) -> bool:
    return credential.startswith(KEY_PREFIX[KeyKind.PUBLISHABLE])


class KeyHolders:
    """Proves who shows a key, and finds the visitor whose something is."""

    def __init__(
        self,
        sessions: Sessions,
        conversations: ConversationStore,
        runs: PromptRunStore,
        vendor: Vendor,
        admission: Admission,
        *,
        pepper: bytes,
    ) -> None:
        self._sessions = sessions
        self._conversations = conversations
        self._runs = runs
        self._vendor = vendor
        self._admission = admission
        self._pepper = pepper

    async def visitor(self, key: str, origin: str | None) -> Principal:
        """Return a new visitor, who owns nothing yet, for a publishable key.

        Raises GatewayError: credential_invalid, revoked, anonymous_disabled, origin_not_allowed, store_unavailable.
        """
        visitor = (await self._sessions.caller(key, origin, None)).principal
        return replace(visitor, user_id=None, user_hash=self._draw(visitor.tenant.id))

    async def backend(self, key: str) -> Principal:
        """Return a tenant's own backend for its secret key; it is no user, and owns nothing.

        Raises GatewayError: credential_invalid, revoked, forbidden (another kind of key, a token), store_unavailable.
        """
        if not key.startswith(KEY_PREFIX[KeyKind.SECRET]):
            raise GatewayError(Code.FORBIDDEN, "Reports are for the tenant's backend: send its secret key.")
        return (await self._sessions.caller(key, None, None)).principal

    async def visitor_of(self, visitor: Principal, conversation_id: ConversationId, address: str) -> Principal:
        """Return the visitor whose conversation it is, for any visitor of the tenant.

        Another user's conversation is not found by the same steps as one that does not exist. Every request is a new
        visitor until then, so it is by their address that those who guess ids are held back.
        Raises GatewayError: not_found, rate_limited, upstream_*, store_unavailable.
        """
        tenant = visitor.tenant
        found = await self._conversations.head(tenant.id, conversation_id)
        if found is not None and self._drew(tenant.id, found.owner):
            return replace(visitor, user_hash=found.owner)
        await self._admission.admit(visitor, "read", address)
        entry = await self._vendor.ask(
            tenant, lambda key: self._vendor.upstream.read_conversation(conversation_id, key=key)
        )
        name, _, owner = (entry.external_user_id or "").partition(":") if entry is not None else ("", "", "")
        if name != tenant.id or not self._drew(tenant.id, UserHash(owner)):
            raise GatewayError(Code.NOT_FOUND)
        return replace(visitor, user_hash=UserHash(owner))

    async def visitor_of_run(self, visitor: Principal, run_id: RunId) -> Principal:
        """Return the visitor whose prompt run it is; where it is nobody's here, the one who asks, who owns nothing."""
        record = await self._runs.find(visitor.tenant.id, run_id)
        if record is None or not self._drew(visitor.tenant.id, record.owner):
            return visitor
        return replace(visitor, user_hash=record.owner)

    def _draw(self, tenant: TenantId) -> UserHash:
        drawn = secrets.token_hex(DRAWN_CHARS // 2)
        return UserHash(drawn + self._proof(tenant, drawn))

    def _drew(self, tenant: TenantId, owner: UserHash) -> bool:
        drawn, proof = owner[:DRAWN_CHARS], owner[DRAWN_CHARS:]
        return hmac.compare_digest(proof.encode(), self._proof(tenant, drawn).encode())

    def _proof(self, tenant: TenantId, drawn: str) -> str:
        digest = hmac.digest(self._pepper, f"visitor\0{tenant}\0{drawn}".encode(), hashlib.sha256)
        return digest.hex()[:DRAWN_CHARS]
