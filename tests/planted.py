"""Not part of the suite: tests that do what the checks of a whole run must find (see ``test_whole_run``)."""

from __future__ import annotations

import redis

from tests.conftest import SECRETS, VENDOR_KEY, Running


async def test_key_in_an_answer(running: Running) -> None:
    """An answer repeats the vendor key, which a client showed as its own request id."""
    async with running.http.get(f"{running.url}/docs", headers={"x-request-id": VENDOR_KEY}) as response:
        assert response.status == 200


def test_stray_key(store_url: str) -> None:
    """A key of nobody's is gone as soon as it is written; one that a test names as its own is nobody's business."""
    with redis.Redis.from_url(store_url) as client:
        client.set("nobody:1", SECRETS.pepper.hex())
        client.delete("nobody:1")
        client.set("test:1", "1")
