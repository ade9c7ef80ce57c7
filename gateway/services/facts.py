"""What an operator is shown of keys and of revocations."""

from __future__ import annotations

from typing import Any

from gateway.core.keys import KeyRecord
from gateway.core.revocation import Revocation
from gateway.services.clock import iso


def key_facts(record: KeyRecord, now_s: float) -> dict[str, Any]:
    """What is shown of a key."""
    return {
        "key": record.prefix,
        "id": record.id,
        "tenant": record.tenant,
        "kind": record.kind,
        "label": record.label,
        "ending": record.ending,
        "state": record.state(now_s),
        "created_at": record.created_at,
        "expires_at": stamp(record.expires_at_s),
        "revoked_at": stamp(record.revoked_at_s),
    }


def revocation_facts(revocation: Revocation) -> dict[str, Any]:
    """What is shown of a revocation."""
    return {"what": revocation.what, "tenant": revocation.tenant, "at": stamp(revocation.at_s)}


def stamp(at_s: float | None) -> str | None:
    return None if at_s is None else iso(at_s)
