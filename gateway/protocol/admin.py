"""What the admin API is asked: its JSON bodies."""

from __future__ import annotations

from typing import Literal

import msgspec


class CreateKey(msgspec.Struct, forbid_unknown_fields=True):
    """POST /admin/v1/tenants/{tenant}/keys. Without ``ttl_s`` (seconds) the key has no end."""

    label: str
    kind: Literal["secret", "publishable", "app"] = "secret"
    ttl_s: float | None = None


class RotateKey(msgspec.Struct, forbid_unknown_fields=True):
    """POST /admin/v1/tenants/{tenant}/keys/{key_id}/rotate. The old key works on for ``overlap_s``."""

    overlap_s: float = 86_400.0


class RevokeUser(msgspec.Struct, forbid_unknown_fields=True):
    """POST /admin/v1/tenants/{tenant}/users/revoke."""

    user_id: str


class RevokeToken(msgspec.Struct, forbid_unknown_fields=True):
    """POST /admin/v1/tokens/revoke. A session token of the gateway's own, whole."""

    token: str
