"""One call's way through the gate of a vendor key."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Protocol

from gateway.core.errors import GatewayError
from gateway.core.gate import Answer, Asker, Outcome
from gateway.core.limits import US_PER_S
from gateway.core.vendor_keys import KeyLabel


class Passed(Protocol):
    """The gate that a passage goes through, and that is told how it went. Methods neither await nor raise."""

    label: KeyLabel

    def late(self) -> GatewayError: ...

    def succeed(self, passage: Passage) -> None: ...

    def judge(self, passage: Passage, error: GatewayError, *, unsent: bool) -> None: ...

    def leave(self, passage: Passage, *, unsent: bool) -> None: ...


class Passage:
    """One call's way through a gate: it waits, passes, is sent, and says how that went.

    Call ``answered``, ``failed`` or ``leave`` when that is known. The first counts, so a repeat changes nothing.
    """

    __slots__ = ("_gate", "_stirred", "_told", "_until_s", "asker", "charged", "on_place", "passed", "place", "probe")

    def __init__(self, gate: Passed, asker: Asker, answer: Answer | None = None) -> None:
        """``answer`` is the store's; None: nobody was asked."""
        self.asker = asker
        self.charged = answer is not None
        self.passed = answer is None or answer.outcome is Outcome.PASSED
        self.probe = answer is not None and answer.probe
        self.place = (0, 0.0)  # while it waits: how many pass up to it, and for about how many seconds
        self.on_place: Callable[[], None] = _nothing  # it has another place
        self._gate = gate
        self._stirred = None if self.passed else asyncio.Event()  # 800 bytes that few calls need
        self._told = False
        self._until_s = asyncio.get_running_loop().time() + asker.wait_max_us / US_PER_S

    @property
    def key(self) -> KeyLabel:
        return self._gate.label

    async def wait(self) -> None:
        """Return once the call may be sent. Who is cancelled here must ``leave``.

        Raises GatewayError when the wait is over: upstream_overloaded, or store_unavailable where that is why.
        """
        if not self.passed and self._stirred is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._until_s):
                    await self._stirred.wait()
        if not self.passed:
            self.leave()
            raise self._gate.late()

    def answered(self) -> None:
        """The vendor has begun to answer, or refused for a reason of the call's own."""
        if not self._told:
            self._told = True
            self._gate.succeed(self)

    def failed(self, error: GatewayError, *, unsent: bool = False) -> None:
        """It got no answer; ``unsent``: because it could not be sent."""
        if not self._told:
            self._told = True
            self._gate.judge(self, error, unsent=unsent)

    def leave(self, *, unsent: bool = True) -> None:
        """Give the place up, or what was charged; not ``unsent``: the vendor may have seen the call."""
        if not self._told:
            self._told = True
            self._gate.leave(self, unsent=unsent)

    # for the gate

    def open(self, *, probe: bool) -> None:
        self.passed, self.probe = True, probe
        self._stir()

    def refuse(self) -> None:
        """End the wait: there is no room any more."""
        self._stir()

    def _stir(self) -> None:
        if self._stirred is not None:
            self._stirred.set()


def _nothing() -> None:
    pass
