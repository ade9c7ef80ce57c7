"""Forms that the log of a turn could have in Redis, each with the Lua file that appends to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from hashlib import sha1
from pathlib import Path
from typing import Any, Final, Protocol

from gateway.core.events import Entry, TextDelta, after, is_ending
from gateway.core.identity import TenantId
from gateway.core.turn import TurnId
from gateway.protocol.native import decode_event, encode_data
from gateway.services.subscriptions import PAGE
from gateway.store.redis import Argument, Keys, Redis, Script

TENANT: Final = TenantId("bench")
KEYS: Final = Keys(TENANT)
SCRIPTS: Final = Path(__file__).parent / "scripts"


class Form(Protocol):
    """How a candidate packs a log; the turn's record is the same in all."""

    append: Script

    def keys(self, turn_id: TurnId) -> list[str]: ...

    def pack(self, entry: Entry) -> tuple[Argument, ...]: ...

    async def read(self, store: Redis, turn_id: TurnId, position: int) -> list[Entry]: ...


class LeanStream:
    """A stream as today's, with less in an entry and less for the script to look up."""

    def __init__(self) -> None:
        self.append: Script = BenchScript("append_lean")

    def keys(self, turn_id: TurnId) -> list[str]:
        return [KEYS.log(turn_id)]

    def pack(self, entry: Entry) -> tuple[Argument, ...]:
        event = entry.event
        if type(event) is TextDelta:
            return entry.position, "", event.text
        return entry.position, event.name, encode_data(event)

    async def read(self, store: Redis, turn_id: TurnId, position: int) -> list[Entry]:
        async def page(position: int) -> Any:
            return await store.call("XRANGE", KEYS.log(turn_id), f"({position}-0", "+", "COUNT", PAGE)

        return await _pages(page, _stream_entry, position)


class PackedList:
    """A list of ``<position> <event name> <data>``; a delta has no name and plain text for data."""

    def __init__(self) -> None:
        self.append: Script = BenchScript("append_list")
        self._read = BenchScript("read_list")

    def keys(self, turn_id: TurnId) -> list[str]:
        return [KEYS.log(turn_id)]

    def pack(self, entry: Entry) -> tuple[Argument, ...]:
        position, event = entry.position, entry.event
        if type(event) is TextDelta:
            return position, b"%d  %b" % (position, event.text.encode())
        return position, b"%d %b %b" % (position, event.name.encode(), encode_data(event))

    async def read(self, store: Redis, turn_id: TurnId, position: int) -> list[Entry]:
        async def page(position: int) -> Any:
            return await store.run(self._read, self.keys(turn_id), (position, PAGE))

        return await _pages(page, _list_entry, position)


class OneText:
    """A string with the whole text, and a list of the other events with the bytes of text before each."""

    def __init__(self) -> None:
        self.append: Script = BenchScript("append_text")
        self._read = BenchScript("read_text")

    def keys(self, turn_id: TurnId) -> list[str]:
        return [f"{KEYS.prefix}text:{turn_id}", KEYS.log(turn_id)]

    def pack(self, entry: Entry) -> tuple[Argument, ...]:
        position, event = entry.position, entry.event
        if type(event) is TextDelta:
            return position, "", event.text, len(event.text)
        return position, event.name, encode_data(event), 0

    async def read(self, store: Redis, turn_id: TurnId, position: int) -> list[Entry]:
        whole, others = await store.run(self._read, self.keys(turn_id), ())
        return after(_text_entries(whole, others), position)


class BenchScript(Script):
    """A Lua file of this room."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.source = (SCRIPTS / f"{name}.lua").read_bytes()
        self.sha = sha1(self.source, usedforsecurity=False).hexdigest()


async def _pages(page: Any, decode: Callable[[Any], Entry], position: int) -> list[Entry]:
    """Read to the end. A delta that was sent again with more text behind it is cut to what is new."""
    found: list[Entry] = []
    while items := await page(position):
        for item in items:
            found += after((decode(item),), position)
            position = found[-1].position
        if is_ending(found[-1].event):
            break
    return found


def _stream_entry(item: Any) -> Entry:
    entry_id, pairs = item
    values = pairs if isinstance(pairs, dict) else dict(zip(pairs[::2], pairs[1::2], strict=True))
    position = int(entry_id.split(b"-")[0])
    if b"t" in values:
        return Entry(position, TextDelta(values[b"t"].decode()))
    return Entry(position, decode_event(values[b"e"].decode(), values[b"d"]))


def _list_entry(item: bytes) -> Entry:
    position, name, data = item.split(b" ", 2)
    return Entry(int(position), decode_event(name.decode(), data) if name else TextDelta(data.decode()))


def _text_entries(whole: bytes, others: Iterable[bytes]) -> Iterator[Entry]:
    position, begin = 0, 0
    for item in others:
        own_position, end, name, data = item.split(b" ", 3)
        if delta := whole[begin : int(end)].decode():
            yield Entry(position + len(delta), TextDelta(delta))
        position, begin = int(own_position), int(end)
        yield Entry(position, decode_event(name.decode(), data))
    if delta := whole[begin:].decode():
        yield Entry(position + len(delta), TextDelta(delta))
