"""Fetching key sets: bounded in time and size, one address only, and an error that repeats nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from gateway.core.issuers import KeySetUnavailable
from gateway.upstream.key_sets import HttpKeySets
from tests.issuer import IssuerServer, serve


@pytest.fixture
async def issuer() -> AsyncIterator[IssuerServer]:
    async with serve() as server:
        yield server


@pytest.fixture
async def source() -> AsyncIterator[HttpKeySets]:
    source = HttpKeySets(timeout_s=0.5)
    yield source
    await source.aclose()


async def test_key_set_is_fetched(issuer: IssuerServer, source: HttpKeySets) -> None:
    """The document comes as it is published, again and again."""
    for _ in range(2):
        document = msgspec.json.decode(await source.fetch(issuer.url))
        assert document["keys"][0]["kid"] == issuer.current.kid


@pytest.mark.parametrize(
    ("fault", "words"), [("500", "status is 500"), ("redirect", "status is 302"), ("large", "larger than 65536 bytes")]
)
async def test_key_set_of_a_bad_answer_is_unavailable(
    issuer: IssuerServer, source: HttpKeySets, fault: str, words: str
) -> None:
    """An error, a redirect (which could lead anywhere) and an endless document are not taken."""
    issuer.fault = fault
    with pytest.raises(KeySetUnavailable, match=words):
        await source.fetch(issuer.url)
    assert issuer.fetches == 1


async def test_key_set_that_does_not_come_is_unavailable_in_time(issuer: IssuerServer, source: HttpKeySets) -> None:
    """A silent server is given up, and the next fetch works once it answers."""
    issuer.gate = asyncio.Event()
    async with asyncio.timeout(5):
        with pytest.raises(KeySetUnavailable, match=r"within 0\.5 s"):
            await source.fetch(issuer.url)
    issuer.gate.set()
    assert await source.fetch(issuer.url)


async def test_key_set_of_nobody_is_unavailable(source: HttpKeySets) -> None:
    """A refused connection is told by its kind only."""
    with pytest.raises(KeySetUnavailable, match=r"^ConnectError$"):
        await source.fetch("http://127.0.0.1:1/keys")
