"""Proxies in front of gateways, as production has them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import trustme
from aiohttp import ClientError, ClientSession, TCPConnector

from gateway.upstream.pool import Pool, PoolSettings
from gateway.upstream.transport import Http2Transport
from tests.conftest import Running
from tests.deploy.proxies import HOST, Proxy, Setting, Upstream
from tests.store.topologies import free_port
from tests.transports.client import Client, eventually


@dataclass(slots=True, kw_only=True)
class Front:
    """A proxy that runs, and how clients reach it."""

    port: int
    log: Path
    authority: trustme.CA
    root: Path | None  # of the proxy's own authority, where it made its certificate itself

    @property
    def url(self) -> str:
        return f"https://{HOST}:{self.port}"

    def trust(self) -> ssl.SSLContext:
        """Make what a client needs to trust the proxy."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        if self.root is not None:
            context.load_verify_locations(self.root)
        return context

    async def answers(self) -> None:
        """Wait until a gateway answers through the proxy: it may ask first whether they are ready."""
        async with self.session() as http:

            async def answered() -> bool:
                with contextlib.suppress(ClientError):  # Caddy makes its certificate after it has begun to listen
                    async with http.get(f"{self.url}/client.js") as response:
                        return response.status == 200
                return False

            await eventually(answered, "an answer through the proxy", within_s=20)

    @contextlib.asynccontextmanager
    async def session(self, address: str = "127.0.0.1") -> AsyncIterator[ClientSession]:
        """Give an HTTP/1.1 client that comes from an address of this machine."""
        connector = TCPConnector(ssl=self.trust(), local_addr=(address, 0), family=socket.AF_INET)
        async with ClientSession(connector=connector) as http:
            yield http

    @contextlib.asynccontextmanager
    async def client(self, running: Running, headers: dict[str, str] | None = None) -> AsyncIterator[Client]:
        """Give a user of the gateway behind the proxy, who speaks HTTP/1.1 to it."""
        async with self.session() as http:
            through = dataclasses.replace(running, url=self.url, http=http)
            yield Client(through, headers or await running.user())

    @contextlib.asynccontextmanager
    async def http2(self) -> AsyncIterator[httpx.AsyncClient]:
        """Give a client that speaks HTTP/2 where the proxy offers it."""
        transport = httpx.AsyncHTTPTransport(http2=True, verify=self.trust(), local_address="127.0.0.1")
        async with httpx.AsyncClient(base_url=self.url, transport=transport, timeout=30) as http:
            yield http

    @contextlib.asynccontextmanager
    async def leaving(self) -> AsyncIterator[httpx.AsyncClient]:
        """Give a client that resets the stream that it leaves and keeps its connection, as browsers do.

        httpx's own transport only forgets such a stream.
        """
        transport = Http2Transport(Pool(self.url, settings=PoolSettings(), ssl_context=self.trust()), owns_pool=True)
        async with httpx.AsyncClient(base_url=self.url, transport=transport, timeout=30) as http:
            yield http

    async def connection(self) -> asyncio.StreamWriter:
        """Open a connection to write bytes to."""
        _, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self.trust(), server_hostname=HOST)
        return writer


StartFront = Callable[..., contextlib.AbstractAsyncContextManager[Front]]


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """Who vouches for the proxies."""
    return trustme.CA()


@pytest.fixture
def setting(tmp_path: Path, authority: trustme.CA) -> Callable[..., Setting]:
    """Make what a proxy is run with; ``changes`` are texts of its file that a test needs otherwise."""

    def make(gateways: tuple[Upstream, Upstream], changes: Mapping[str, str] | None = None) -> Setting:
        directory = tmp_path / "proxy"
        directory.mkdir(exist_ok=True)
        return Setting(
            directory=directory,
            port=free_port(),
            gateways=gateways,
            certificate=authority.issue_cert(HOST),
            changes=changes or {},
        )

    return make


@pytest.fixture
def front(setting: Callable[..., Setting], authority: trustme.CA) -> StartFront:
    """Run a proxy in front of one gateway of this process, or of several elsewhere."""

    @contextlib.asynccontextmanager
    async def start(
        proxy: Proxy, gateways: Running | tuple[Upstream, Upstream], **changes: Any
    ) -> AsyncIterator[Front]:
        if isinstance(gateways, Running):
            address, internal = urlsplit(gateways.url), urlsplit(gateways.internal_url)
            assert address.port is not None
            assert internal.port is not None
            only = Upstream("127.0.0.1", address.port, internal.port)
            gateways = (only, only)
        made = setting(gateways, **changes)
        async with proxy.run(made) as log:
            root = made.directory / "caddy/pki/authorities/local/root.crt" if proxy.name == "caddy" else None
            if root is not None:
                await eventually(root.exists, "Caddy's own authority", within_s=10)
            one = Front(port=made.port, log=log, authority=authority, root=root)
            await one.answers()
            yield one

    return start
