"""The conversation itself: what is typed becomes messages and orders, one answer at a time."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from typing import Final

from gateway.chat.remote import ENDINGS, Event, Refused, Remote
from gateway.chat.screen import HELP, Measured, Show

INTERRUPTED: Final = 130  # how a shell tells that Ctrl-C ended a command
LEAVE_S: Final = 2.0  # for the stop of an answer that nobody waits for any more
RATE: Final = re.compile(r"/rate\s+([+-]?\d{1,2})(?:\s+(.*))?", re.DOTALL | re.ASCII)


class Talk:
    """One conversation. ``typed`` and ``interrupted`` may be called at any time; ``hold`` returns the exit code."""

    def __init__(self, remote: Remote, show: Show, conversation_id: str, *, live: bool) -> None:
        """``live``: somebody types, so that ``/quit`` need not wait for what was typed before it."""
        self._remote = remote
        self._show = show
        self._conversation_id = conversation_id
        self._live = live
        self._lines: deque[str] = deque()
        self._no_more = False
        self._stirred = asyncio.Event()
        self._answering: asyncio.Task[None] | None = None
        self._turn_id: str | None = None  # of the answer under way, once it is known
        self._stop_asked = False
        self._stops: set[asyncio.Task[None]] = set()
        self._message_id: str | None = None  # of the last answer
        self._unanswered = False
        self._code: int | None = None

    def typed(self, line: str | None) -> None:
        """Take a line in, or None for the end of the input."""
        order = (line or "").strip()
        if line is None:
            self._no_more = True
        elif order == "/stop":
            self._stop()
        elif order == "/quit" and self._live:
            self._leave(0)
        else:
            self._lines.append(line)
        self._stirred.set()

    def interrupted(self) -> None:
        """Ctrl-C: stop the answer; leave where there is none, or where that was asked before."""
        if self._answering is None or self._stop_asked:
            self._leave(INTERRUPTED)
        else:
            self._stop()

    async def hold(self) -> int:
        """Talk until the input ends or somebody leaves. Raises what an answer does that is no refusal."""
        try:
            self._show.ready()
            while self._code is None:
                if self._answering is None:
                    if self._lines:
                        await self._take(self._lines.popleft())
                        continue
                    if self._no_more:
                        self._leave(int(self._unanswered and not self._live))
                        continue
                await self._stirred.wait()
                self._stirred.clear()
                if self._answering is not None and self._answering.done():
                    answering, self._answering = self._answering, None
                    answering.result()
                    self._show.ready()
            return self._code
        finally:
            await self._end()

    async def _take(self, line: str) -> None:
        order = line.strip()
        if order == "/quit":
            self._leave(int(self._unanswered))
            return
        if order.startswith("/") and not order.startswith("//"):
            await self._obey(order)
            self._show.ready()
        elif not order:
            self._show.ready()
        else:
            self._turn_id, self._stop_asked = None, False
            message = line[line.index("/") + 1 :] if order.startswith("//") else line
            self._answering = asyncio.get_running_loop().create_task(self._answer(message))
            self._answering.add_done_callback(lambda _: self._stirred.set())

    async def _obey(self, order: str) -> None:
        rate = RATE.fullmatch(order)
        if rate is None:
            self._show.note(HELP if order == "/help" or not order.startswith("/rate") else "/rate 8 nice: -10 to 10")
        elif self._message_id is None:
            self._show.note("There is no answer to rate yet.")
        else:
            try:
                feedback = await self._remote.rate(self._conversation_id, self._message_id, int(rate[1]), rate[2])
                self._show.rated(feedback)
            except Refused as error:
                self._show.refused(error.problem)

    async def _answer(self, message: str) -> None:
        loop = asyncio.get_running_loop()
        begun_s, first_s = loop.time(), None
        ending: Event | None = None
        try:
            async with contextlib.aclosing(self._remote.ask(self._conversation_id, message)) as events:
                async for event in events:
                    if self._turn_id is None:
                        self._turn_id = event.turn_id
                        if self._stop_asked:
                            self._send_stop()
                    if first_s is None and event.name == "message.delta":
                        first_s = round(loop.time() - begun_s, 3)
                    self._show.event(event)
                    if event.name in ENDINGS:
                        ending = event
        except Refused as error:
            self._show.refused(error.problem)
        if ending is not None:
            self._message_id = ending.data.get("message_id") or self._message_id
            self._show.ended(ending, Measured(ending.turn_id, first_s, round(loop.time() - begun_s, 3)))
        self._unanswered = self._unanswered or ending is None or ending.name == "turn.failed"

    def _stop(self) -> None:
        if self._answering is None or self._answering.done() or self._stop_asked:
            return
        self._stop_asked = True
        self._show.stopping()
        if self._turn_id is not None:
            self._send_stop()

    def _send_stop(self) -> None:
        task = asyncio.get_running_loop().create_task(self._stop_turn(self._turn_id or ""))
        self._stops.add(task)
        task.add_done_callback(self._stops.discard)

    async def _stop_turn(self, turn_id: str) -> None:
        try:
            await self._remote.stop(turn_id)
        except Refused as error:
            self._show.refused(error.problem)

    def _leave(self, code: int) -> None:
        self._code = code if self._code is None else self._code
        self._stirred.set()

    async def _end(self) -> None:
        """Stop an answer that nobody will read, if that can be done soon, and let go of everything."""
        if self._answering is not None and not self._answering.done():
            if self._turn_id is not None and not self._stop_asked:
                self._send_stop()
            if self._stops:
                await asyncio.wait(self._stops, timeout=LEAVE_S)
        for task in (*self._stops, *([self._answering] if self._answering is not None else [])):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
