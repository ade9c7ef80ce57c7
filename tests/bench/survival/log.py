"""What one reader of a turn has been given, checked against the law of a log while it comes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

ENDINGS: Final = frozenset({"turn.completed", "turn.stopped", "turn.failed"})
ANSWER_CAP: Final = 1_000_000  # a recovered failure lies so much further on, less one (the gateway's default)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a turn ended, as its reader was told."""

    position: int
    name: str
    data: dict[str, Any]

    @property
    def kind(self) -> str:
        """``completed``, or why not: ``stopped:user``, ``failed:worker_lost``."""
        match self.name:
            case "turn.stopped":
                return f"stopped:{self.data['reason']}"
            case "turn.failed":
                return f"failed:{self.data['error']['code']}"
            case _:
                return "completed"


class ReaderLog:
    """Counts what is missing, repeated or out of order; in positions, so a code point of text counts."""

    def __init__(self) -> None:
        self.lost = 0
        self.duplicated = 0
        self.disordered = 0
        self.endings: list[Ending] = []
        self.stepped_over = False  # what it might have been shown beyond a lost worker's log
        self.cursor: str | None = None
        self.position = 0
        self._parts: list[str] = []
        self._seen: set[tuple[int, str]] = set()

    @property
    def text(self) -> str:
        return "".join(self._parts)

    @property
    def ended(self) -> bool:
        return bool(self.endings)

    def take(self, event_id: str, name: str, data: dict[str, Any]) -> None:
        """Take one event as it came over the wire."""
        position = int(event_id.rpartition(".")[2])
        text = str(data["text"]) if name == "message.delta" else ""
        follows = position - max(1, len(text))
        if self.endings or position <= self.position:
            if (position, name) in self._seen:
                self.duplicated += max(1, len(text))
            else:
                self.disordered += 1
            if name in ENDINGS:
                self.endings.append(Ending(position, name, data))
            return
        if follows < self.position:
            self.duplicated += self.position - follows
        elif follows > self.position:
            gap = follows - self.position
            self.stepped_over = name in ("turn.stopped", "turn.failed") and gap < ANSWER_CAP
            self.lost += 0 if self.stepped_over else gap
        self._seen.add((position, name))
        self._parts.append(text)
        self.position, self.cursor = position, event_id
        if name in ENDINGS:
            self.endings.append(Ending(position, name, data))

    def faults(self, answer: str) -> list[str]:
        """What is wrong with the whole, given what the vendor says to the turn's message.

        A reader may have been shown more than a lost worker had written, and what the vendor would not tell again.
        """
        if len(self.endings) != 1:
            return [f"{len(self.endings)} endings"]
        ending, text = self.endings[0], self.text
        told = str(ending.data["text"])
        found = []
        if told != text and not (self.stepped_over and text.startswith(told)):
            found.append(f"{ending.kind}: {len(text)} characters came, the ending has {len(told)}")
        if text != answer if ending.kind == "completed" else not answer.startswith(text):
            found.append(f"{ending.kind}: not the vendor's text")
        return found
