"""What the client must know to ask Hyperleap, and how long it may take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamRules:
    """Where Hyperleap is, how it knows us, and how long anything may take."""

    base_url: str
    api_key: str
    auth_header: str = "x-hl-api-key"
    ca_file: Path | None = None
    queue_timeout_s: float = 10.0
    first_token_timeout_s: float = 60.0
    between_tokens_timeout_s: float = 60.0
    turn_timeout_s: float = 600.0
    call_timeout_s: float = 30.0
    blob_hosts: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"UpstreamRules(base_url={self.base_url!r}, api_key='***')"

    @property
    def credential(self) -> tuple[str, str]:
        """The header that carries the vendor key."""
        value = f"Bearer {self.api_key}" if self.auth_header == "authorization" else self.api_key
        return self.auth_header, value
