"""The owner's appends to the logs of running turns, many in one call of a script.

An append is a few words of text, so what surrounds it decides what it costs. A call carries all its entries as one
MessagePack argument, and where the log is as its owner left it, which its length tells, the script looks at nothing
else and answers with a single number. To the store that is half the work of an argument a field, a look at the log's
last entry and a lease written every time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from gateway.core.events import Append, Appended, Fenced, LogBehind, LogLost
from gateway.core.identity import TenantId, WorkerId
from gateway.core.turn import StopReason, TurnId
from gateway.protocol.native import encode_data
from gateway.store.redis import Keys, Redis, Script, text

APPEND: Final = Script("append")
QUIET: Final = Appended(None, ())

_pack: Final = msgspec.msgpack.Encoder().encode


Tail = tuple[int, int]  # how an owner left a log: the position of its last entry, and how many it has (-1: not known)
UNKNOWN: Final[Tail] = (-1, -1)


class Appending:
    """Appends for one worker, which owns the turns. ``forget`` a turn that is its no more."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._tails: dict[TurnId, Tail] = {}

    def forget(self, turn_id: TurnId) -> None:
        self._tails.pop(turn_id, None)

    async def append(
        self, tenant: TenantId, lease_ms: int, appends: Sequence[Append]
    ) -> list[Appended | Fenced | LogBehind | LogLost]:
        """Append to some logs; see EventLog. ``lease_ms`` is -1 to give the leases up."""
        prefix = Keys(tenant).prefix
        tails = self._tails
        keys: list[str] = []
        packed: list[list[str | int]] = []
        left: list[Tail] = []
        for turn_id, epoch, follows, entries in appends:
            keys += (f"{prefix}turn:{turn_id}", f"{prefix}log:{turn_id}", f"{prefix}followers:{turn_id}")
            # Forgotten until the answer is here: without one nobody knows what the log has.
            position, length = tails.pop(turn_id, UNKNOWN)
            if position != follows:
                length = -1
            one: list[str | int] = [str(epoch), follows, length]
            for entry in entries:
                # As text: the scripts' MessagePack has no binary.
                one += (f"{entry.position}-0", entry.event.name, str(encode_data(entry.event), "utf-8"))
                follows = entry.position
            packed.append(one)
            left.append((follows, length + len(entries)))
        replies: Sequence[Any] = await self._redis.run(APPEND, keys, (lease_ms, _pack(packed)))
        answers: list[Appended | Fenced | LogBehind | LogLost] = []
        for reply, tail, append in zip(replies, left, appends, strict=True):
            if reply == 1:
                tails[append.turn_id] = tail
                answers.append(QUIET)
            else:
                answers.append(self._told(reply, append.turn_id))
        return answers

    def _told(self, reply: Sequence[Any], turn_id: TurnId) -> Appended | Fenced | LogBehind | LogLost:
        try:
            check_written(reply, turn_id)
        except (Fenced, LogBehind, LogLost) as error:
            return error
        _, stop, workers, length, position = reply
        self._tails[turn_id] = (position, length)
        followers = [WorkerId(worker.decode()) for worker in workers] if workers else ()
        return Appended(StopReason(text(stop) or "") if stop else None, followers)


def check_written(reply: Sequence[Any], turn_id: TurnId) -> None:
    """Read the first member of an answer to a write of an owner; raises Fenced, LogLost, LogBehind."""
    match reply[0]:
        case 1:
            return
        case -1:
            raise LogLost(turn_id)
        case -2:
            raise LogBehind(turn_id, int(reply[1]))
        case _:
            raise Fenced(turn_id)
