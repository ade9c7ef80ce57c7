"""A command that somebody waits for, and how he hears what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, NamedTuple

from gateway.core.errors import Code, GatewayError


class Call(NamedTuple):
    """A command on its way."""

    name: str | bytes | int | float
    key: bytes | None  # what decides its node in a Cluster; None: any will do, or there is only one
    packed: bytes
    future: asyncio.Future[Any]

    def answer(self, reply: Any) -> None:
        """Give the caller his reply, or the exception that it is; one who has left gets nothing."""
        if self.future.done():
            return
        if isinstance(reply, Exception):
            self.future.set_exception(reply)
        else:
            self.future.set_result(reply)


def refuse(calls: Iterable[Call], code: Code, cause: BaseException | None) -> None:
    """Give each caller an error of his own. The server's words stay behind it, as its cause; clients see the code's."""
    for call in calls:
        refusal = GatewayError(code)
        refusal.__cause__ = cause
        call.answer(refusal)
