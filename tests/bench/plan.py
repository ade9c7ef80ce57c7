"""What the clients of one phase are told."""

from __future__ import annotations

from typing import Final, Literal, get_args

import msgspec

Door = Literal["native", "hyperleap", "openai", "responses", "ai-sdk", "ag-ui"]
# The routes by which turns go through the gateway: its own events over SSE and over WebSocket, then its other doors.
Through = Literal["sse", "ws", "hyperleap", "completions", "responses", "ai-sdk", "ag-ui"]
# The vendor itself, the gateway, then what has only HTTP/1.1 to its source: relays of the vendor's items over SSE and
# over WebSocket, and of OpenAI's chunks over SSE.
Route = Literal["direct", Through, "relay", "relay-ws", "openai"]

THROUGH: Final[frozenset[Route]] = frozenset(get_args(Through))
DOORS: Final[dict[Door, Through]] = {
    "native": "sse",
    "hyperleap": "hyperleap",
    "openai": "completions",
    "responses": "responses",
    "ai-sdk": "ai-sdk",
    "ag-ui": "ag-ui",
}


class Plan(msgspec.Struct, kw_only=True):
    """What the clients of one phase do. ``events`` is what the simulator will send in answer to ``message``."""

    route: Route
    url: str
    key: str  # the vendor's for direct, the tenant's secret key for the gateway, or what a proxy asks for
    ca_file: str | None = None
    streams: int
    events: int
    message: str  # with {n} for the number of the stream
    ramp_s: float
    repeat: bool
    readers: int = 1  # of each turn; more than one over SSE from the gateway only
    stops: bool = False  # the clients can stop their turns: with a request at the gateway, elsewhere by leaving
    narrow: bool = False  # connections as a network gives them, of which the kernel holds little

    def message_of(self, number: int) -> str:
        return self.message.replace("{n}", str(number))
