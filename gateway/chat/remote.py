"""A gateway as its clients see it: over HTTP, with a token or a key, through connections that may be cut at any time.

What can be repeated is: a message under its idempotency key, an event stream from its cursor. So a connection that is
lost, or a gateway that restarts, is only a pause, until nothing has been heard for GIVE_UP_S.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from datetime import datetime
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import msgspec
from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout

from gateway.protocol.sse import SseDecoder

GIVE_UP_S: Final = 60.0
FIRST_S: Final = 5.0  # for a gateway that has never answered: its address may be wrong
PAUSE_S: Final = 0.2  # before the first attempt to come back, doubled with each …
PAUSE_MAX_S: Final = 5.0
RENEW_S: Final = 30.0  # a token that ends sooner is replaced, where there is a key to do it with
CONNECT_S: Final = 10.0
SILENCE_S: Final = 45.0  # the gateway says something every 15 s
ENDINGS: Final = frozenset({"turn.completed", "turn.stopped", "turn.failed"})
PASSING: Final = frozenset({"draining", "store_unavailable"})  # codes that a gateway may get over by itself
PROXY: Final = frozenset({502, 503, 504})  # without a problem document: of something in between


class Refused(Exception):
    """The gateway said no, and why (RFC 9457)."""

    def __init__(self, problem: dict[str, Any]) -> None:
        self.problem = problem
        super().__init__(f"{problem.get('code', 'unknown')}: {problem.get('detail') or problem.get('title', '')}")


class Unreachable(Exception):
    """The gateway could not be reached, for as long as is sensible."""


class Event(NamedTuple):
    """One event of an answer, as the gateway sends it."""

    name: str
    id: str
    data: dict[str, Any]

    @property
    def turn_id(self) -> str:
        return self.id.rpartition(".")[0]


class _Cut(Exception):
    """The connection was lost; what was asked may be asked again."""


class Remote:
    """One gateway and one user of it. Use it as a context; methods raise Refused and Unreachable."""

    def __init__(
        self,
        url: str,
        credential: str,
        *,
        user: str,
        origin: str | None = None,
        on_cut: Callable[[], None] = lambda: None,
        give_up_s: float = GIVE_UP_S,
    ) -> None:
        """``credential``: a token, or a key that opens a session, a secret one for ``user``. ``on_cut`` is told once
        for each time that the connection was lost in the middle of an answer."""
        self._url = url.rstrip("/")
        self._credential = credential
        self._user = user
        self._origin = origin
        self._on_cut = on_cut
        self._give_up_s = give_up_s
        self._is_key = credential.startswith(("hgs_", "hgp_"))
        self._token = None if self._is_key else credential
        self._ends_s = float("inf")  # Unix time
        self._visitor: str | None = None
        self._reached = False

    async def __aenter__(self) -> Self:
        headers = {"Origin": self._origin} if self._origin else {}
        timeout = ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
        self._http = ClientSession(headers=headers, timeout=timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.close()

    async def open(self, persona: str) -> dict[str, Any]:
        """Open a conversation and return it."""
        key = {"Idempotency-Key": uuid.uuid4().hex}
        return await self._call("POST", "/v1/conversations", {"persona": persona}, key)

    async def conversation(self, conversation_id: str) -> dict[str, Any]:
        return await self._call("GET", f"/v1/conversations/{conversation_id}")

    async def stop(self, turn_id: str) -> None:
        await self._call("POST", f"/v1/turns/{turn_id}/stop")

    async def rate(self, conversation_id: str, message_id: str, score: int, comments: str | None) -> dict[str, Any]:
        body = {"score": score} | ({"comments": comments} if comments else {})
        return await self._call("PUT", f"/v1/conversations/{conversation_id}/messages/{message_id}/feedback", body)

    async def ask(self, conversation_id: str, message: str) -> AsyncGenerator[Event, None]:
        """Send a message and yield its answer's events to the ending, each once, however often the way is cut."""
        key = {"Idempotency-Key": uuid.uuid4().hex}
        path, cursor = f"/v1/conversations/{conversation_id}/turns", ""
        patience = self._patience()
        while True:
            try:
                if cursor:
                    resumed = {"Last-Event-ID": cursor}
                    events = self._stream("GET", f"/v1/turns/{cursor.rpartition('.')[0]}/events", None, resumed)
                else:
                    events = self._stream("POST", path, {"message": message}, key)
                async with contextlib.aclosing(events):
                    async for event in events:
                        patience.heard()
                        cursor = event.id
                        yield event
                        if event.name in ENDINGS:
                            return
                raise _Cut
            except _Cut:
                if patience.fresh and cursor:
                    self._on_cut()
                await patience.wait()

    def _patience(self) -> _Patience:
        return _Patience(self._give_up_s if self._reached else min(FIRST_S, self._give_up_s))

    # --- requests ------------------------------------------------------------------------------------------------

    async def _call(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        """Make a call that may be repeated, until it is answered."""
        patience = self._patience()
        while True:
            try:
                async with self._request(method, path, body, headers or {}) as response:
                    return _object(await response.read())
            except _Cut:
                await patience.wait()

    async def _stream(self, method: str, path: str, body: Any, headers: dict[str, str]) -> AsyncGenerator[Event, None]:
        """Yield the events of one connection; raises _Cut when it was lost."""
        async with self._request(method, path, body, {"Accept": "text/event-stream", **headers}) as response:
            decoder = SseDecoder()
            async for data in response.content.iter_any():
                for event in decoder.feed(data):
                    value = _object(event.data.encode())
                    if event.event != "stream.error":
                        yield Event(event.event, event.id or "", value)
                        continue
                    self._judge(value)
                    raise _Cut

    @contextlib.asynccontextmanager
    async def _request(
        self, method: str, path: str, body: Any, headers: dict[str, str]
    ) -> AsyncIterator[ClientResponse]:
        """Send a request with a token and give its answer; raises Refused, _Cut."""
        authorization = {"Authorization": f"Bearer {await self._fresh_token()}"}
        async with self._sent(method, path, body, {**headers, **authorization}) as response:
            yield response

    @contextlib.asynccontextmanager
    async def _sent(self, method: str, path: str, body: Any, headers: dict[str, str]) -> AsyncIterator[ClientResponse]:
        try:
            async with self._http.request(
                *(method, self._url + path), json=body, headers=headers, allow_redirects=False
            ) as response:
                self._reached = True
                if not 200 <= response.status < 300:
                    await self._refuse(response)
                yield response
        except (ClientError, OSError, TimeoutError) as error:
            raise _Cut from error

    async def _refuse(self, response: ClientResponse) -> None:
        try:
            problem = _object(await response.read())
        except Refused as error:
            if response.status in PROXY:
                raise _Cut from None
            problem = {**error.problem, "detail": f"The answer, status {response.status}, is not a gateway's."}
        self._judge(problem)
        raise _Cut

    def _judge(self, problem: dict[str, Any]) -> None:
        """Return where trying again may help; else raise Refused."""
        code = problem.get("code")
        if code == "token_expired" and self._is_key:
            self._token = None
        elif code not in PASSING:
            raise Refused(problem)

    async def _fresh_token(self) -> str:
        """Return a token that is good for a while; raises Refused, _Cut."""
        if self._token is not None and time.time() < self._ends_s - RENEW_S:
            return self._token
        if not self._is_key:
            return self._credential
        body: dict[str, Any] = {}
        if self._credential.startswith("hgs_"):
            body["user_id"] = self._user
        elif self._visitor is not None:
            body["visitor_id"] = self._visitor
        key = {"Authorization": f"Bearer {self._credential}"}
        async with self._sent("POST", "/v1/sessions", body, key) as response:
            session = _object(await response.read())
        self._token, self._visitor = session["token"], session.get("visitor_id")
        self._ends_s = datetime.fromisoformat(session["expires_at"]).timestamp()
        return str(session["token"])


def _object(raw: bytes) -> dict[str, Any]:
    """Read a JSON object; raises Refused for what no gateway says."""
    try:
        return msgspec.json.decode(raw, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise Refused({"code": "not_understood", "detail": "The answer is not a gateway's."}) from None


class _Patience:
    """How long to wait before the next attempt, and when there is none any more."""

    def __init__(self, give_up_s: float) -> None:
        self._give_up_s = give_up_s
        self.heard()

    def heard(self) -> None:
        """Begin anew: something has come."""
        self._heard_s = asyncio.get_running_loop().time()
        self._pause_s = PAUSE_S

    @property
    def fresh(self) -> bool:
        """Whether nothing has failed since something was heard."""
        return self._pause_s == PAUSE_S

    async def wait(self) -> None:
        """Wait a while, longer each time, and never as long as others do; raises Unreachable."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._heard_s > self._give_up_s:
            raise Unreachable("The gateway cannot be reached.")
        await asyncio.sleep(self._pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load
        self._pause_s = min(PAUSE_MAX_S, self._pause_s * 2)
