"""Server: the listening side of the simulator and the handle that tests hold it by."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from gateway.simulator.api import Api, ApiSettings, Traced
from gateway.simulator.bill import Bill, State
from gateway.simulator.certificates import ensure_certificates, server_context
from gateway.simulator.chats import Chats, ChatSettings
from gateway.simulator.connection import Connection
from gateway.simulator.conversations import Conversations
from gateway.simulator.faults import Fault, FaultName, FaultPlan, parse_fault
from gateway.simulator.pace import Pace
from gateway.simulator.runs import OnDisconnect

DEFAULT_API_KEY = "sim-key"  # of a stand-in, so not a secret
_CLOSE_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorSettings:
    """Says how the simulator behaves.

    ``port`` 0 picks a free one. ``rate_per_s`` is items a second and stream (0: as fast as flow control allows).
    ``on_disconnect`` says what becomes of an answer whose reader left: ``finish`` completes, stores and bills it
    whole, at its rate; ``drop`` stores and bills what was sent. ``more_api_keys`` are of one workspace with
    ``api_key``, each of ``other_workspaces`` holds the keys of one more; a conversation is found by its workspace's
    only. ``personas`` and ``prompts`` are the known ids (empty: any). ``blob`` keeps messages behind a URI.
    ``limit_per_minute`` is the plan limit of each key (0: none), and ``limit_period_s`` how long its minute is.
    ``data_dir`` keeps the certificates (None: a directory that lives as long as the server).
    """

    host: str = "127.0.0.1"
    port: int = 0
    h2c: bool = False
    api_key: str = DEFAULT_API_KEY
    more_api_keys: tuple[str, ...] = ()
    other_workspaces: tuple[tuple[str, ...], ...] = ()
    rate_per_s: float = 25.0
    first_token_s: float = 0.0
    faults: tuple[Fault | str, ...] = ()
    max_concurrent_streams: int = 100
    on_disconnect: OnDisconnect = "finish"
    raw_utf8: bool = False
    sse_done: bool = False
    blob: bool = False
    personas: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    persona_prompt: str | None = None
    limit_per_minute: int = 0
    limit_period_s: float = 60.0
    data_dir: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        keys = [self.api_key, *self.more_api_keys, *(key for keys in self.other_workspaces for key in keys)]
        if not all(keys) or len(set(keys)) < len(keys):
            raise ValueError("a key must not be empty, and belongs to one workspace")
        if self.rate_per_s < 0 or self.first_token_s < 0 or self.limit_per_minute < 0 or self.limit_period_s <= 0:
            raise ValueError("rates, delays and limits must not be negative")
        if not 0 <= self.port <= 65535 or self.max_concurrent_streams < 1:
            raise ValueError("port must be from 0 to 65535 and max_concurrent_streams at least 1")
        object.__setattr__(self, "faults", _faults(self.faults))


class Simulator:
    """Is a running stand-in. Use it as an async context manager, or call `start` and `aclose`."""

    def __init__(self, settings: SimulatorSettings | None = None) -> None:
        self.settings = settings or SimulatorSettings()
        self.bill = Bill()
        self.state = State()
        self.url = ""
        self.ca_file: Path | None = None
        self._plan = FaultPlan(_faults(self.settings.faults), self.settings.seed)
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._pace: Pace | None = None
        self._api: Api | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        low = self._plan.connection_fault(FaultName.LOW_STREAMS)
        self._max_streams = int(low.value) if low else self.settings.max_concurrent_streams

    async def start(self) -> None:
        """Listens; afterwards `url` and, with TLS, `ca_file` are known. Raises OSError when the port is taken."""
        settings = self.settings
        loop = asyncio.get_running_loop()
        context = None
        if not settings.h2c:
            directory = settings.data_dir
            if directory is None:
                self._temporary = tempfile.TemporaryDirectory(prefix="simulator-")
                directory = Path(self._temporary.name)
            hosts = () if settings.host in {"", "0.0.0.0", "::"} else (settings.host,)  # noqa: S104 - compared, not bound
            self.ca_file = ensure_certificates(directory, hosts)
            without_h2 = self._plan.connection_fault(FaultName.NO_ALPN)
            context = server_context(directory, alpn=("http/1.1",) if without_h2 else ("h2",))
        self._pace = Pace(loop)
        chats = Chats(_chat_settings(settings), self._plan, self._pace, self.bill, self.state)
        self._api = api = Api(_api_settings(settings), chats, self.bill, self.state)
        self._server = await loop.create_server(
            lambda: Connection(api.handle, self.state, self._connections, self._max_streams),
            settings.host,
            settings.port,
            ssl=context,
            backlog=1024,
        )
        port = self._server.sockets[0].getsockname()[1]
        host = "127.0.0.1" if settings.host in {"", "0.0.0.0"} else settings.host  # noqa: S104 - compared, not bound
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.url = f"{'h2c' if settings.h2c else 'https'}://{place}"
        api.base_url = f"{'http' if settings.h2c else 'https'}://{place}"

    async def aclose(self) -> None:
        """Stops listening and cuts what is open; safe to call again, and after a `start` that failed."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._pace is not None:
            self._pace.close()
        closing = [connection.closed for connection in self._connections]
        for connection in list(self._connections):
            connection.abort()
        if closing:
            await asyncio.wait(closing, timeout=_CLOSE_S)
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def conversations(self) -> Conversations:
        """What is kept in memory; only while the server runs."""
        return self._running.conversations

    @property
    def _running(self) -> Api:
        if self._api is None:
            raise RuntimeError("the simulator has not been started")
        return self._api

    def set_faults(self, *faults: Fault | str) -> None:
        """Replaces the faults of chats from now on and counts chats anew; raises ValueError for a bad one."""
        self._plan = FaultPlan(_faults(faults), self.settings.seed)
        if self._api is not None:
            self._api.chats.plan = self._plan

    def refuse_key(self, api_key: str) -> None:
        """Answers 401 to whoever shows this key from now on."""
        self._running.refused.add(api_key)

    def accept_key(self, api_key: str) -> None:
        """Takes a refused key again."""
        self._running.refused.discard(api_key)

    def served(self, api_key: str) -> int:
        """Returns how many requests showed this key while it was valid."""
        return self._running.served[api_key]

    @property
    def traced(self) -> Sequence[Traced]:
        """The latest requests that named a trace."""
        return tuple(self._running.traced)

    def set_max_streams(self, limit: int) -> None:
        """Tells open connections, and those to come, a new limit of concurrent streams."""
        self._max_streams = limit
        for connection in self._connections:
            connection.set_max_streams(limit)

    def goaway(self) -> None:
        """Sends GOAWAY on every connection, as a deploy does; streams in flight finish, then they close."""
        for connection in list(self._connections):
            connection.goaway()

    def drop_connections(self) -> None:
        """Cuts every TCP connection at once, as a crash does."""
        for connection in list(self._connections):
            connection.abort()


def _faults(faults: tuple[Fault | str, ...]) -> tuple[Fault, ...]:
    return tuple(parse_fault(fault) if isinstance(fault, str) else fault for fault in faults)


def _chat_settings(settings: SimulatorSettings) -> ChatSettings:
    return ChatSettings(
        rate_per_s=settings.rate_per_s,
        first_token_s=settings.first_token_s,
        on_disconnect=settings.on_disconnect,
        raw_utf8=settings.raw_utf8,
        sse_done=settings.sse_done,
    )


def _api_settings(settings: SimulatorSettings) -> ApiSettings:
    return ApiSettings(
        workspaces=((settings.api_key, *settings.more_api_keys), *settings.other_workspaces),
        blob=settings.blob,
        personas=frozenset(persona.lower() for persona in settings.personas),
        prompts=frozenset(prompt.lower() for prompt in settings.prompts),
        persona_prompt=settings.persona_prompt,
        limit_per_minute=settings.limit_per_minute,
        limit_period_s=settings.limit_period_s,
        raw_utf8=settings.raw_utf8,
    )
