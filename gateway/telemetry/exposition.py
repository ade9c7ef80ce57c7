"""A scrape on its way: the two text formats, and how one is made in slices between which the event loop turns.

What a scrape of many tenants costs is more than a stream can wait for, whether the loop's own thread makes it or
another one, which would hold the interpreter's lock for up to 5 ms at a time (``sys.getswitchinterval``). So the loop
makes it itself, for ``SLICE_S`` at a time, and lets everything else that is due go first in between.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder, generate_latest

SLICE_S: Final = 0.0005
LINES: Final = 64  # of a metric at a time: 30 µs


class Format(NamedTuple):
    """The Prometheus text format or OpenMetrics, in the version that a scraper accepts."""

    content_type: str
    encoder: Callable[[CollectorRegistry], bytes]  # for what the library tells itself

    @classmethod
    def accepted(cls, accept: str) -> Format:
        """Choose by an ``Accept`` header; one that cannot be read gets the plain text format."""
        try:
            encoder, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # a version that is no version
            encoder, content_type = generate_latest, CONTENT_TYPE_PLAIN_0_0_4
        return cls(content_type, encoder)

    @property
    def openmetrics(self) -> bool:
        return self.content_type.startswith("application/openmetrics-text")

    @property
    def end(self) -> str:
        return "# EOF\n" if self.openmetrics else ""


class Scrape(NamedTuple):
    """An answer to a scraper, whose ``pieces`` are made as they are read."""

    content_type: str
    pieces: AsyncIterator[bytes]

    async def whole(self) -> bytes:
        return b"".join([piece async for piece in self.pieces])


async def sliced(pieces: Iterator[str]) -> AsyncIterator[bytes]:
    """Join pieces to larger ones, and let the event loop turn at least every ``SLICE_S``."""
    clock = time.perf_counter
    gathered: list[str] = []
    until_s = clock() + SLICE_S
    for piece in pieces:
        gathered.append(piece)
        if clock() >= until_s:
            yield "".join(gathered).encode()
            gathered.clear()
            await asyncio.sleep(0)
            until_s = clock() + SLICE_S
    yield "".join(gathered).encode()


def head(name: str, kind: str, text: str, *, openmetrics: bool) -> str:
    """Return what comes before the lines of a metric."""
    shown = name.removesuffix("_total") if openmetrics else name
    return f"# HELP {shown} {escaped(text, quote=openmetrics)}\n# TYPE {shown} {kind}\n"


def label_text(pairs: Iterable[tuple[str, str]]) -> str:
    """Return labels as they stand behind a metric's name; nothing where there are none."""
    inner = ",".join([f'{label}="{escaped(value, quote=True)}"' for label, value in pairs])
    return f"{{{inner}}}" if inner else ""


def escaped(text: str, *, quote: bool) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quote else text
