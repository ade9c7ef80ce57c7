"""Hears from the Sentinels that a service has another master, while the old one may still answer as if it were it.

A master that is demoted goes on taking writes until somebody tells it, up to eight seconds, and all of them are lost:
Sentinels themselves leave it that long when a failover was asked for, and so does whatever kept it apart from them.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from gateway.store.connections import AWAY, Dialler
from gateway.store.subscriber import Subscriber
from gateway.store_url import Address
from gateway.telemetry.logging import throttled

logger = logging.getLogger(__name__)

SWITCHED: Final = "+switch-master"  # <service> <old host> <old port> <new host> <new port>
RETRY_S: Final = 1.0


class Succession:
    """A subscription at every Sentinel: the one that leads a failover tells first, and any may be away.

    ``on_switch`` is told of a switch's new master; ``on_heard`` when a subscription stands, as there may have been one
    before. ``open`` it on the loop, as often as one likes; ``aclose`` it at the end.
    """

    def __init__(
        self,
        sentinels: Sequence[Address],
        service: str,
        dialler: Dialler,
        *,
        timeout_s: float,
        on_switch: Callable[[Address], None],
        on_heard: Callable[[], None],
    ) -> None:
        self._sentinels = sentinels
        self._service = service
        self._dialler = dialler
        self._timeout_s = timeout_s
        self._on_switch = on_switch
        self._on_heard = on_heard
        self._tasks: list[asyncio.Task[None]] = []

    def open(self) -> None:
        if not self._tasks:
            loop = asyncio.get_running_loop()
            self._tasks = [loop.create_task(self._listen(sentinel)) for sentinel in self._sentinels]

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _listen(self, sentinel: Address) -> None:
        while True:
            pubsub = Subscriber(partial(self._dialler.dial, sentinel), timeout_s=self._timeout_s)
            try:
                await pubsub.subscribe(SWITCHED)
                self._on_heard()
                while True:
                    message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=None)
                    if message is not None:
                        self._take(bytes(message["data"]).decode().split())
            except AWAY as error:  # the others tell it too, and whoever needs the master asks all of them
                throttled(logger, "succession.unheard", error=error, sentinel=str(sentinel))
            except Exception as error:  # nobody awaits this task
                throttled(logger, "succession.misunderstood", level=logging.ERROR, error=error)
            finally:
                await pubsub.aclose()
            await asyncio.sleep(random.uniform(RETRY_S / 2, RETRY_S))  # noqa: S311 - spreads load

    def _take(self, words: Sequence[str]) -> None:
        service, _, _, host, port = words
        if service == self._service:
            self._on_switch(Address(host, int(port)))
