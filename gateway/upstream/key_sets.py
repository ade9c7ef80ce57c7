"""Fetches issuers' key sets over HTTPS, bounded in time and size."""

from __future__ import annotations

import asyncio
import ssl
from typing import Final

import httpx

from gateway.core.issuers import KeySetUnavailable

TIMEOUT_S: Final = 5.0  # DNS, TLS and the whole answer together
MAX_BYTES: Final = 65_536


class HttpKeySets:
    """KeySetSource over httpx; the client is made with the first fetch. ``aclose`` at the end."""

    def __init__(self, *, timeout_s: float = TIMEOUT_S, max_bytes: int = MAX_BYTES) -> None:
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._client: httpx.AsyncClient | None = None

    async def fetch(self, url: str) -> bytes:
        if self._client is None:
            self._client = httpx.AsyncClient(verify=ssl.create_default_context(), follow_redirects=False)
        body = bytearray()
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._client.stream("GET", url, headers={"Accept": "application/json"}) as response,
            ):
                if response.status_code != 200:
                    raise KeySetUnavailable(f"the answer's status is {response.status_code}")
                async for part in response.aiter_bytes():
                    body += part
                    if len(body) > self._max_bytes:
                        raise KeySetUnavailable(f"the answer is larger than {self._max_bytes} bytes")
        except TimeoutError:
            raise KeySetUnavailable(f"no answer within {self._timeout_s:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise KeySetUnavailable(type(error).__name__) from None
        return bytes(body)

    async def aclose(self) -> None:
        """Safe to repeat."""
        if self._client is not None:
            await self._client.aclose()
