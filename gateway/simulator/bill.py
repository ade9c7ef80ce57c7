"""Bill: what every chat run cost and how it ended, and counts of the server; what tests and people read afterwards."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Outcome = Literal["running", "finished", "cancelled", "failed", "refused"]
KEPT_RUNS = 100_000


@dataclass(slots=True, kw_only=True)
class ChatRun:
    """Records one chat that reached the vendor; times are Unix seconds.

    ``outcome``: ``finished`` was sent whole; ``cancelled`` means that the client left first (``stored`` then says
    whether the whole answer was kept in the end); ``failed`` ended by a fault; ``refused`` was never processed.
    """

    conversation_id: str
    message_id: str
    run_id: str
    form: str
    message: str
    started_at_s: float = field(default_factory=time.time)
    ended_at_s: float | None = None
    outcome: Outcome = "running"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    items_sent: int = 0
    stored: bool = False
    reset_code: int | None = None
    reset_at_s: float | None = None
    faults: tuple[str, ...] = ()
    prompt_id: str | None = None  # of a prompt run; its conversation is nowhere to be found

    @property
    def cancelled(self) -> bool:
        """Whether the client ended it, by RST_STREAM or by leaving."""
        return self.outcome == "cancelled"

    @property
    def saw_cancel(self) -> bool:
        """Whether an RST_STREAM with code CANCEL came (RFC 9113, section 7)."""
        return self.reset_code == 8


class Bill:
    """Keeps the last 100,000 chat runs, oldest first."""

    def __init__(self) -> None:
        self._runs: deque[ChatRun] = deque(maxlen=KEPT_RUNS)

    def __iter__(self) -> Iterator[ChatRun]:
        return iter(self._runs)

    def __len__(self) -> int:
        return len(self._runs)

    def add(self, run: ChatRun) -> None:
        """Starts the record of a run, which its owner goes on to fill."""
        self._runs.append(run)

    @property
    def runs(self) -> list[ChatRun]:
        """The runs, oldest first."""
        return list(self._runs)

    def of(self, conversation_id: str) -> list[ChatRun]:
        """Returns the runs of one conversation, oldest first."""
        return [run for run in self._runs if run.conversation_id == conversation_id]

    def as_json(self) -> dict[str, Any]:
        """Returns the answer of ``GET /_simulator/bill``."""
        return {
            "runs": [asdict(run) | {"faults": list(run.faults)} for run in self._runs],
            "prompt_tokens": sum(run.prompt_tokens for run in self._runs),
            "completion_tokens": sum(run.completion_tokens for run in self._runs),
        }


@dataclass(slots=True)
class State:
    """Counts what happens on the server; ``open_*`` go up and down, the others only up."""

    open_connections: int = 0
    open_streams: int = 0
    connections: int = 0
    requests: int = 0
    chats: int = 0
    items_sent: int = 0
    resets_received: int = 0
    resets_sent: int = 0
    goaways_received: int = 0
    goaways_sent: int = 0
    pings_received: int = 0
    most_open_streams: int = 0

    def as_json(self) -> dict[str, int]:
        """Returns the answer of ``GET /_simulator/state``."""
        return asdict(self)
