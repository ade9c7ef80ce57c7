"""What the client must know to ask Hyperleap, and how long it may take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gateway.sections import Secret

StreamForm = Literal["array", "sse"]  # how answers are asked for: ``chat-http2`` or ``chat-sse``


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamRules:
    """Where Hyperleap is, in which header it wants a key, and how long anything may take."""

    base_url: str
    auth_header: str = "x-hl-api-key"
    stream: StreamForm = "array"
    ca_file: Path | None = None
    queue_timeout_s: float = 10.0
    first_token_timeout_s: float = 60.0
    between_tokens_timeout_s: float = 60.0
    turn_timeout_s: float = 600.0
    call_timeout_s: float = 30.0
    blob_hosts: frozenset[str] = frozenset()

    def header(self, key: Secret) -> tuple[str, str]:
        """Return the header that carries a vendor key."""
        value = key.reveal()
        return self.auth_header, f"Bearer {value}" if self.auth_header == "authorization" else value
