"""Users who chat without end, each tenant's about one thing at a time."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
from aiohttp import ClientError, ClientSession, TCPConnector

from tests.monitoring.site import Site

WELL: Final = "Hello #tokens=8"
PAUSE_S: Final = 1.0
SMALL_BYTES: Final = 4096


class User:
    """One user with a conversation. What is refused or fails is an answer, too; only a lost connection is none."""

    def __init__(self, site: Site, token: str) -> None:
        self._site = site
        self.headers = {"Authorization": f"Bearer {token}"}
        self.conversation = ""

    @classmethod
    async def of(cls, site: Site, secret_key: str, name: str = "ada") -> User:
        """Sign in."""
        async with site.http.post(
            f"{site.url}/v1/sessions", json={"user_id": name}, headers={"Authorization": f"Bearer {secret_key}"}
        ) as response:
            assert response.status == 201, await response.text()
            return cls(site, (await response.json())["token"])

    async def call(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        async with self._site.http.request(
            method, self._site.url + path, json=body, headers=self.headers | headers
        ) as response:
            text = await response.read()
            told = text.decode() if response.content_type == "text/event-stream" else msgspec.json.decode(text or b"{}")
            return response.status, told

    async def converse(self) -> int:
        """Open a conversation; returns the status."""
        status, told = await self.call("POST", "/v1/conversations", {})
        if status == 201:
            self.conversation = told["id"]
        return status

    async def say(self, message: str, accept: str = "application/json") -> tuple[int, Any]:
        """Send a message and wait for the whole answer."""
        return await self.call(
            "POST", f"/v1/conversations/{self.conversation}/turns", {"message": message}, Accept=accept
        )

    async def visit(self) -> None:
        """Do what a chat does: read a stream, take it up again from its middle, judge it, and talk over a socket."""
        status, body = await self.say(WELL, "text/event-stream")
        lines = body.splitlines() if status == 200 else []
        ids = [line.removeprefix("id: ") for line in lines if line.startswith("id: ")]
        ending = msgspec.json.decode(lines[-2].removeprefix("data: ")) if len(ids) > 2 else {}
        if "message_id" not in ending:
            return  # it failed, which is others' subject
        turn = ids[0].partition(".")[0]
        await self.call("GET", f"/v1/turns/{turn}/events", None, **{"Last-Event-ID": ids[1]})
        feedback = f"/v1/conversations/{self.conversation}/messages/{ending['message_id']}/feedback"
        await self.call("PUT", feedback, {"score": 7})
        await self._leave()
        await self._talk()

    @asynccontextmanager
    async def reading(self, message: str) -> AsyncIterator[str]:
        """Send a message and read the beginning of its answer; gives the turn's id, and leaves in the end."""
        async with self._site.http.post(
            f"{self._site.url}/v1/conversations/{self.conversation}/turns",
            json={"message": message},
            headers=self.headers | {"Accept": "text/event-stream"},
        ) as response:
            with contextlib.suppress(asyncio.IncompleteReadError):
                await response.content.readuntil(b"event: message.delta")
            yield response.headers.get("x-turn-id", "")

    async def _leave(self) -> None:
        """Leave a stream in its middle, come back to it, and stop it."""
        async with self.reading("Tell #tokens=200 #rate=50") as turn:
            pass
        async with self._site.http.get(f"{self._site.url}/v1/turns/{turn}/events", headers=self.headers) as response:
            await response.content.readany()
        await self.call("POST", f"/v1/turns/{turn}/stop")

    async def _talk(self) -> None:
        async with self._site.http.ws_connect(
            f"{self._site.url}/v1/ws", protocols=("hyperleap.chat.v1",), headers=self.headers
        ) as ws:
            await ws.send_json(
                {"type": "turn.start", "request_id": "r", "conversation_id": self.conversation, "message": WELL}
            )
            async with asyncio.timeout(10):
                async for frame in ws:
                    if msgspec.json.decode(frame.data)["event"] in ("turn.completed", "turn.failed", "error"):
                        break


class Traffic:
    """A user of each tenant who says something again and again; ``about`` says what, None: nothing."""

    def __init__(self, site: Site) -> None:
        self.about: dict[str, str | None] = {}
        self.keys: dict[str, str] = {}
        self.users: dict[str, User] = {}
        self.site = site
        self._tasks: list[asyncio.Task[None]] = []

    async def join(self, name: str, about: str | None = WELL) -> User:
        """Sign a user of the tenant in, open a conversation, and begin to talk."""
        self.keys[name] = await self.site.secret_key(name)
        user = self.users[name] = await User.of(self.site, self.keys[name])
        assert await user.converse() == 201
        self.about[name] = about
        self._tasks.append(asyncio.create_task(self._talk(name, user)))
        return user

    def visit(self, name: str) -> None:
        """Have another user of a tenant visit again and again."""
        self._tasks.append(asyncio.create_task(self._visit(name)))

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        for ended in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended

    async def _talk(self, name: str, user: User) -> None:
        while True:
            message = self.about[name]
            if message is not None:
                with contextlib.suppress(ClientError, TimeoutError):
                    await user.say(message)
            await asyncio.sleep(PAUSE_S)

    async def _visit(self, name: str) -> None:
        user = await User.of(self.site, self.keys[name], "bob")
        assert await user.converse() == 201
        while True:
            if self.about[name] is not None:
                with contextlib.suppress(ClientError, TimeoutError):
                    await user.visit()
            await asyncio.sleep(PAUSE_S)


@asynccontextmanager
async def traffic(site: Site) -> AsyncIterator[Traffic]:
    everyone = Traffic(site)
    try:
        yield everyone
    finally:
        await everyone.aclose()


def _narrow(info: Any) -> socket.socket:
    """Make a socket that takes little, and for which the gateway's side of the connection holds little."""
    made = socket.socket(info[0], info[1], info[2])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BYTES)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    return made


@asynccontextmanager
async def stalled_readers(site: Site, user: User, turn: str, *, per_s: float) -> AsyncIterator[None]:
    """Have readers of a long answer come all the time who take nothing in."""
    connector = TCPConnector(socket_factory=_narrow, force_close=True, limit=0)
    async with ClientSession(connector=connector, read_bufsize=SMALL_BYTES) as http, asyncio.TaskGroup() as group:

        async def stall() -> None:
            with contextlib.suppress(ClientError):
                async with http.get(f"{site.url}/v1/turns/{turn}/events", headers=user.headers):
                    await asyncio.sleep(5)

        async def come() -> None:
            while True:
                group.create_task(stall())
                await asyncio.sleep(1 / per_s)

        coming = group.create_task(come())
        yield
        coming.cancel()


@asynccontextmanager
async def idle_connections(site: Site, count: int) -> AsyncIterator[None]:
    """Hold connections open that ask nothing."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(count):
            made = stack.enter_context(socket.socket())
            made.setblocking(False)
            await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", site.port))
        yield
