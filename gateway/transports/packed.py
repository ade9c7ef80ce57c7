"""Bytes that are the same for everybody, compressed once and kept: files, and pages that are made once.

Nothing here depends on who asks, so a compressed length gives away nothing.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from aiohttp import ETag, hdrs, web

LEVEL: Final = 9  # 1 ms for 30 KB, once
_NOT_TAKEN: Final = re.compile(r"\s*q\s*=\s*0(\.0{0,3})?\s*")
_ANY: Final = "*"


class Packed(NamedTuple):
    """A body in both forms that it is sent in; ``tag`` changes with it, and is the same on every worker and host."""

    body: bytes
    gzipped: bytes | None  # None where that is no shorter
    tag: str

    @classmethod
    def of(cls, body: bytes) -> Packed:
        """Compress a body: some milliseconds for a large one, so call it in a thread."""
        gzipped = gzip.compress(body, LEVEL, mtime=0)
        return cls(body, gzipped if len(gzipped) < len(body) else None, hashlib.sha256(body).hexdigest()[:32])


class PackedFiles:
    """Files by their names, each packed when it is first asked for, and again when it has changed on disk."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        """``paths`` are all that can be asked for: a name is looked up there, and never joined to a path."""
        self._paths = paths
        self._kept: dict[str, tuple[tuple[int, int], Packed]] = {}

    async def get(self, name: str) -> Packed | None:
        """Return a file; None where none has that name. Raises OSError."""
        return await asyncio.to_thread(self._look, name) if name in self._paths else None

    def _look(self, name: str) -> Packed:
        path = self._paths[name]
        found = path.stat()
        version = (found.st_mtime_ns, found.st_size)
        kept = self._kept.get(name)
        if kept is None or kept[0] != version:  # two who ask at once make it twice, which is no harm
            kept = self._kept[name] = version, Packed.of(path.read_bytes())
        return kept[1]


def packed_answer(request: web.Request, packed: Packed, headers: Mapping[str, str]) -> web.Response:
    """Answer with the form that the client takes, or that it has it already (RFC 9110, sections 12.5.3 and 13.1.2).

    ``headers`` name the content's type. Each form has a tag of its own, as strong tags must (section 8.8.3.3).
    """
    zipped = packed.gzipped if takes_gzip(",".join(request.headers.getall(hdrs.ACCEPT_ENCODING, ()))) else None
    tag = ETag(packed.tag if zipped is None else f"{packed.tag}-gzip")
    answer = web.Response(headers={**headers, hdrs.VARY: hdrs.ACCEPT_ENCODING})
    answer.etag = tag
    if any(known.value in (tag.value, _ANY) for known in request.if_none_match or ()):
        answer.set_status(304)
        return answer
    if zipped is not None:
        answer.headers[hdrs.CONTENT_ENCODING] = "gzip"
    answer.body = packed.body if zipped is None else zipped
    return answer


def takes_gzip(accepted: str) -> bool:
    """Whether an ``Accept-Encoding`` takes gzip: by name, else as any other; a weight of 0 forbids it."""
    taken = {}
    for part in accepted.lower().split(","):
        coding, _, weight = part.partition(";")
        taken[coding.strip()] = _NOT_TAKEN.fullmatch(weight) is None
    return taken.get("gzip", taken.get(_ANY, False))
