"""What happens to upstream connections and streams, as domain verbs for metrics."""

from enum import StrEnum
from typing import Protocol


class CloseReason(StrEnum):
    """Why a connection ended; a bounded set, so that it may be a metric's label."""

    IDLE = "idle"
    GOAWAY = "goaway"
    LOST = "lost"
    PING_TIMEOUT = "ping_timeout"
    PROTOCOL_ERROR = "protocol_error"
    CLOSED = "closed"


class UpstreamObserver(Protocol):
    """Is told on the event loop, at once; must neither block nor raise."""

    def connection_opened(self) -> None: ...
    def connection_closed(self, reason: CloseReason) -> None: ...
    def connect_failed(self, error: str) -> None: ...  # the error's class name, a bounded set
    def stream_opened(self) -> None: ...
    def stream_closed(self) -> None: ...  # however it ended; follows every stream_opened
    def stream_reset(self, code: int, *, by_peer: bool) -> None: ...
    def goaway_received(self, code: int) -> None: ...


class SilentObserver:
    """Looks away."""

    def connection_opened(self) -> None:
        pass

    def connection_closed(self, reason: CloseReason) -> None:
        pass

    def connect_failed(self, error: str) -> None:
        pass

    def stream_opened(self) -> None:
        pass

    def stream_closed(self) -> None:
        pass

    def stream_reset(self, code: int, *, by_peer: bool) -> None:
        pass

    def goaway_received(self, code: int) -> None:
        pass


class KeyObserver(Protocol):
    """Is told of vendor keys by their labels, on the event loop, at once; must neither block nor raise."""

    def key_found(self, label: str) -> None: ...  # it can be read, and is taken to work; once a label
    def key_health_changed(self, label: str, *, healthy: bool) -> None: ...
    def key_answered(self, label: str, outcome: str) -> None: ...  # of a closed set


class SilentKeyObserver:
    """Looks away."""

    def key_found(self, label: str) -> None:
        pass

    def key_health_changed(self, label: str, *, healthy: bool) -> None:
        pass

    def key_answered(self, label: str, outcome: str) -> None:
        pass
