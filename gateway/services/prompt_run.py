"""One run of a prompt: a turn whose question is the prompt, in a conversation that only holds it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from gateway.core.conversation import Message
from gateway.core.events import Ending
from gateway.core.ledger import Settlement
from gateway.core.operations import RunId
from gateway.core.turn import Chat, ChatReceiver, Usage
from gateway.core.vendor_keys import KeyLabel
from gateway.services.turn import Turn

RUN_ID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)


class PromptRun(Turn):
    """One prompt's answer under way."""

    __slots__ = ("_ask", "_remember")

    def __init__(
        self,
        *args: Any,
        ask: Callable[[ChatReceiver, KeyLabel], Coroutine[Any, Any, Chat]],
        remember: Callable[[RunId], Awaitable[None]],
        **options: Any,
    ) -> None:
        """``ask`` sends the prompt; ``remember`` keeps whose the run is, for the vendor does not know."""
        super().__init__(*args, **options)
        self._ask = ask
        self._remember = remember

    def _open(self, key: KeyLabel) -> Coroutine[Any, Any, Chat]:
        return self._ask(self, key)

    async def _write(self, ending: Ending, answer: Message, settlement: Settlement) -> None:
        run_id = (self._run_id or "").lower()
        if RUN_ID.fullmatch(run_id):
            await self._remember(RunId(run_id))
        await super()._write(ending, answer, settlement)

    def _looks_up(self, usage: Usage) -> bool:
        return False  # there is no copy that could be read
