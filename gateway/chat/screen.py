"""How a conversation is shown: as text for a person at a terminal, or as lines of JSON for a program."""

from __future__ import annotations

import re
from typing import Any, Final, Protocol, TextIO

import msgspec

from gateway.chat.remote import ENDINGS, Event

HELP: Final = "/stop  end the answer    /rate 8 nice  rate it, -10 to 10    /quit  leave    //…  a message with a slash"
# What a terminal takes for orders: an answer must not move the cursor, set colours or write to a clipboard.
_ORDERS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Measured(msgspec.Struct, omit_defaults=True):
    """What an answer took, as the client saw it."""

    turn_id: str
    first_token_s: float | None  # from the sending of the message to the first piece of text
    duration_s: float


class Show(Protocol):
    """Where a conversation is shown. Methods write at once; they raise BrokenPipeError where nobody reads."""

    def opened(self, conversation: dict[str, Any]) -> None: ...

    def ready(self) -> None:
        """Nothing is under way: a message may be typed."""

    def event(self, event: Event) -> None: ...

    def ended(self, ending: Event, measured: Measured) -> None: ...

    def cut(self) -> None:
        """The connection was lost in the middle of an answer; it will go on."""

    def stopping(self) -> None: ...

    def refused(self, problem: dict[str, Any]) -> None: ...

    def rated(self, feedback: dict[str, Any]) -> None: ...

    def note(self, words: str) -> None:
        """Tell something about the commands."""


class Lines:
    """Everything as JSON, an object a line."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def opened(self, conversation: dict[str, Any]) -> None:
        self._put("conversation", {"id": conversation["id"], "persona": conversation.get("persona")})

    def ready(self) -> None:
        return

    def event(self, event: Event) -> None:
        self._put(event.name, event.data, id=event.id)

    def ended(self, ending: Event, measured: Measured) -> None:
        self._put("answer.measured", msgspec.to_builtins(measured))

    def cut(self) -> None:
        self._put("connection.cut", {})

    def stopping(self) -> None:
        self._put("turn.stopping", {})

    def refused(self, problem: dict[str, Any]) -> None:
        self._put("error", problem)

    def rated(self, feedback: dict[str, Any]) -> None:
        self._put("feedback", feedback)

    def note(self, words: str) -> None:
        self._put("note", {"text": words})

    def _put(self, name: str, data: Any, **more: str) -> None:
        self._out.write(msgspec.json.encode({**more, "event": name, "data": data}).decode() + "\n")
        self._out.flush()


class Terminal:
    """An answer as it is written, and a dim line under it with what it took."""

    def __init__(self, out: TextIO, *, prompts: bool, dim: bool) -> None:
        """``prompts``: somebody types at it. ``dim``: it understands how text is made faint."""
        self._out = out
        self._prompts = prompts
        self._faint = ("\x1b[2m", "\x1b[0m") if dim else ("", "")
        self._at_start = True  # of a line

    def opened(self, conversation: dict[str, Any]) -> None:
        name = conversation.get("name") or conversation["id"]
        self._say(f"{conversation.get('persona') or 'a persona'}, conversation {name}. /help tells the commands.")

    def ready(self) -> None:
        if self._prompts:
            self._put("> ")
            self._at_start = True  # the line that is typed ends it

    def event(self, event: Event) -> None:
        if event.name == "message.delta":
            self._put(event.data["text"])
        elif event.name == "turn.queued":
            self._say(f"waiting for Hyperleap, about {event.data['wait_s']:g} s")
        elif event.name == "message.moderated":
            filtered = [str(one.get("category")) for one in event.data["categories"] if one.get("filtered")]
            if filtered:
                self._say(f"withheld by moderation: {', '.join(filtered)}")
        elif event.name == "message.citations":
            names = [one.get("sourceName") or one.get("sourceUrl") or "a document" for one in event.data["citations"]]
            self._say(f"sources: {', '.join(map(str, names))}")

    def ended(self, ending: Event, measured: Measured) -> None:
        assert ending.name in ENDINGS
        usage = ending.data["usage"]
        about = "" if usage["source"] == "reported" else "about "
        words = [f"{about}{usage['total_tokens']} tokens"]
        if measured.first_token_s is not None:
            words.append(f"first after {measured.first_token_s:.2f} s")
        words.append(f"{measured.duration_s:.2f} s in all")
        if ending.name == "turn.stopped":
            words.insert(0, f"stopped ({ending.data['reason']})")
        elif ending.name == "turn.failed":
            error = ending.data["error"]
            words.insert(0, f"failed ({error['code']}): {error['detail']}")
        self._say(" · ".join(words))

    def cut(self) -> None:
        self._say("connection lost, coming back …")

    def stopping(self) -> None:
        self._say("stopping …")

    def refused(self, problem: dict[str, Any]) -> None:
        field = f" [{problem['field']}]" if problem.get("field") else ""
        wait_s = problem.get("retry_after_s")
        again = f" Try again in {wait_s:.0f} s." if wait_s else ""
        detail = problem.get("detail") or problem.get("title") or ""
        self._say(f"refused ({problem.get('code', 'unknown')}){field}: {detail}{again}")

    def rated(self, feedback: dict[str, Any]) -> None:
        self._say(f"rated {feedback['score']:+d}")

    def note(self, words: str) -> None:
        self._say(words)

    def _say(self, words: str) -> None:
        """Write a line of our own."""
        if not self._at_start:
            self._put("\n")
        begin, end = self._faint
        self._put(words, begin, end + "\n")
        self._at_start = True

    def _put(self, text: str, begin: str = "", end: str = "") -> None:
        text = _ORDERS.sub("", text)
        self._out.write(begin + text + end)
        self._out.flush()
        if text:
            self._at_start = text.endswith("\n")
