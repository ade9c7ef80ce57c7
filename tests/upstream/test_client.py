"""Hyperleap's client: every answer and every failure in the gateway's own terms, in time, and without the key."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.core.conversation import ConversationId, Feedback
from gateway.core.errors import Code, GatewayError
from gateway.core.turn import AnswerItem
from gateway.core.vendor_keys import DEFAULT_KEY
from gateway.options import UpstreamSettings
from gateway.sections import Secret
from gateway.simulator.server import Simulator, SimulatorSettings
from gateway.upstream import client as client_module
from gateway.upstream import errors
from gateway.upstream.chat import HyperleapChat
from gateway.upstream.client import HyperleapClient
from gateway.upstream.codes import CODES, told
from gateway.upstream.errors import UpstreamError
from gateway.upstream.key_files import KeyFiles
from gateway.upstream.keyring import KeyRing
from gateway.upstream.pool import PoolSettings
from gateway.upstream.rules import StreamForm, UpstreamRules
from tests.upstream.peer import PATIENCE_S, Exchange, Peer

KEY = "vendor-key-that-must-never-leave"
PERSONA = "6f1c8f0e-4f3e-4a9e-9d2c-0d4b1f0a2b3c"
NO_ONE = ConversationId("00000000-0000-4000-8000-000000000000")
ENTRY = {"conversationId": str(NO_ONE), "externalUserId": "acme:h", "chatMessages": []}


class Answer:
    """A turn as the client sees it: takes items and the one ending."""

    def __init__(self) -> None:
        self.items: list[AnswerItem] = []
        self.endings: list[GatewayError | None] = []
        self._changed = asyncio.Event()

    def chat_items(self, items: Sequence[AnswerItem], /) -> None:
        assert not self.endings
        self.items += items
        self._changed.set()

    def chat_ended(self, error: GatewayError | None, /) -> None:
        self.endings.append(error)
        self._changed.set()

    @property
    def text(self) -> str:
        return "".join(item.text or "" for item in self.items if not item.index and item.role != "tool")

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def ended(self) -> GatewayError | None:
        await self.until(lambda: bool(self.endings))
        assert len(self.endings) == 1
        return self.endings[0]

    async def failed(self) -> GatewayError:
        error = await self.ended()
        assert error is not None
        assert_keyless(error)
        return error


def assert_keyless(error: BaseException) -> None:
    """No exception of a chain shows the vendor key, by its text, its repr or the repr of what it carries."""
    chain: BaseException | None = error
    seen: set[int] = set()
    while chain is not None and id(chain) not in seen:
        seen.add(id(chain))
        assert KEY not in f"{chain} {chain!r} {chain.args!r}"
        if isinstance(chain, GatewayError):
            assert KEY not in f"{chain.detail} {chain.extra}"
        chain = chain.__cause__ or chain.__context__


async def refused(work: Awaitable[object]) -> GatewayError:
    with pytest.raises(GatewayError) as error:
        await work
    assert_keyless(error.value)
    return error.value


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


class Bench:
    """Opens simulators, peers and clients that are closed after the test."""

    def __init__(self, stack: AsyncExitStack, certificates: Path) -> None:
        self._stack = stack
        self._certificates = certificates
        self.form: StreamForm = "array"
        self.done = False  # whether the simulator ends its event streams by `[DONE]`

    async def simulator(self, **options: Any) -> Simulator:
        wanted: dict[str, Any] = {
            "api_key": KEY,
            "rate_per_s": 0.0,
            "data_dir": self._certificates,
            "sse_done": self.done,
            **options,
        }
        return await self._stack.enter_async_context(Simulator(SimulatorSettings(**wanted)))

    async def peer(self, handler: Callable[[Exchange], Awaitable[None]], **options: Any) -> Peer:
        return await self._stack.enter_async_context(Peer(handler, tls=False, **options))

    async def client(self, server: Simulator | Peer, **options: Any) -> HyperleapClient:
        pool = options.pop("pool", PoolSettings(connect_timeout_s=2.0))
        ca_file = server.ca_file if isinstance(server, Simulator) else None
        wanted: dict[str, Any] = {"base_url": server.url, "ca_file": ca_file, "stream": self.form, **options}
        keys = KeyRing(KeyFiles(UpstreamSettings(api_key=Secret(KEY))))
        client = HyperleapClient(UpstreamRules(**wanted), keys, pool)
        self._stack.push_async_callback(client.aclose)
        return client


@pytest.fixture
async def bench(certificates: Path) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        yield Bench(stack, certificates)


@pytest.fixture(params=["array", "sse", "sse-done"])
def forms(request: pytest.FixtureRequest, bench: Bench) -> Bench:
    """The bench with clients that ask for each of the vendor's streaming forms, ended in each way."""
    bench.form, bench.done = ("array", False) if request.param == "array" else ("sse", request.param == "sse-done")
    return bench


async def conversation(client: HyperleapClient, **fields: Any) -> ConversationId:
    wanted: dict[str, Any] = {
        "persona_id": PERSONA,
        "persona_version_id": None,
        "replacements": {},
        "metadata": {},
        "external_user_id": "acme:h",
        "key": DEFAULT_KEY,
        **fields,
    }
    return (await client.create_conversation(**wanted)).id


async def ask(client: HyperleapClient, message: str) -> Answer:
    """Open a conversation and send it a message."""
    answer = Answer()
    await client.open_chat(await conversation(client), message, answer, key=DEFAULT_KEY)
    return answer


# --- the whole way ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("h2c", [False, True])
async def test_client_creates_chats_scores_and_reads(forms: Bench, h2c: bool) -> None:
    """The four calls of a turn's life work over TLS by ALPN and in the clear by prior knowledge."""
    client = await forms.client(await forms.simulator(h2c=h2c))
    created = await client.create_conversation(
        persona_id=PERSONA,
        persona_version_id=None,
        replacements={"name": "Ann"},
        metadata={"a": "b"},
        external_user_id="acme:h",
        key=DEFAULT_KEY,
    )
    assert (created.external_user_id, created.persona_id, created.metadata) == ("acme:h", PERSONA, {"a": "b"})
    answer = Answer()
    await client.open_chat(created.id, "#echo #citations Grüße 😀", answer, key=DEFAULT_KEY)
    assert await answer.ended() is None
    assert answer.text == "Grüße 😀"
    last = answer.items[-1]
    assert last.finish_reason == "stop"
    assert last.usage is not None
    assert last.citations
    message_id = last.message_id
    assert message_id is not None
    scored = await client.score_message(
        created.id, message_id, Feedback(PERSONA, 8, "good", ["clear"], 0.9), key=DEFAULT_KEY
    )
    assert scored.id == created.id
    found = await client.read_conversation(created.id, key=DEFAULT_KEY)
    assert found is not None
    assert [message.content for message in found.messages][-1] == "Grüße 😀"
    assert found.messages[-1].feedback is not None
    kept = found.messages[-1].feedback[0]
    assert (kept.feedback_id, kept.score, kept.comments, kept.tags, kept.confidence) == (
        PERSONA,
        8,
        "good",
        ["clear"],
        0.9,
    )


async def test_read_of_a_conversation_that_the_vendor_does_not_know_is_none(bench: Bench) -> None:
    """A 404 is an answer, not a failure."""
    assert await (await bench.client(await bench.simulator())).read_conversation(NO_ONE, key=DEFAULT_KEY) is None


@pytest.mark.parametrize("fault", ["split:1", "split:3", "batch:4", "goaway"])
async def test_chat_however_it_is_framed_is_the_same(forms: Bench, fault: str) -> None:
    """Items split anywhere, joined in a frame, or cut by a GOAWAY around them give the same answer."""
    client = await forms.client(await forms.simulator())
    whole = await ask(client, "#seed=5 #tokens=20 #raw tell")
    odd = await ask(client, f"#seed=5 #tokens=20 #raw #fault={fault} tell")
    assert await whole.ended() is None
    assert await odd.ended() is None
    assert odd.text == whole.text != ""


@pytest.mark.parametrize(
    ("fault", "code", "has_text"),
    [
        ("cut:3", Code.UPSTREAM_TRUNCATED, True),
        ("cut-after-finish", Code.UPSTREAM_TRUNCATED, True),
        ("reset:3", Code.UPSTREAM_RESET, True),
        ("drop:3", Code.UPSTREAM_RESET, True),
        ("garbage:3", Code.UPSTREAM_MALFORMED, True),
        ("garbage:0", Code.UPSTREAM_MALFORMED, False),
        ("huge-item:5000000", Code.UPSTREAM_MALFORMED, True),
        ("refuse", Code.UPSTREAM_RESET, False),
        ("goaway-unseen", Code.UPSTREAM_RESET, False),
    ],
)
async def test_chat_that_breaks_ends_once_with_its_code_and_what_came(
    forms: Bench, fault: str, code: Code, has_text: bool
) -> None:
    """Each way to break has its code, comes once and last, and takes back nothing that was said."""
    client = await forms.client(await forms.simulator(), queue_timeout_s=1.0)
    answer = await ask(client, f"#tokens=20 #rate=1000 #fault={fault} tell")
    if fault == "cut-after-finish" and forms.form == "sse":  # which is how such a stream may end
        assert await answer.ended() is None
    else:
        assert (await answer.failed()).code is code
    assert bool(answer.text) == has_text


@pytest.mark.parametrize(
    ("fault", "code", "status", "retry_after_s"),
    [
        ("429:3", Code.UPSTREAM_RATE_LIMITED, 429, 3.0),
        ("500", Code.UPSTREAM_ERROR, 500, None),
        ("empty-body-error:503", Code.UPSTREAM_ERROR, 503, None),
        ("empty-body-error:404", Code.UPSTREAM_REJECTED, 404, None),
        ("empty-body-error:401", Code.UPSTREAM_UNAUTHORIZED, 401, None),
        ("empty-body-error:504", Code.UPSTREAM_TIMEOUT, 504, None),
    ],
)
async def test_chat_refused_by_status_is_told_by_it_alone(
    forms: Bench, fault: str, code: Code, status: int, retry_after_s: float | None
) -> None:
    """A vendor's status becomes our code with the status noted; its words stay behind."""
    client = await forms.client(await forms.simulator())
    answer = await ask(client, f"#fault={fault} secret question")
    error = await answer.failed()
    assert (error.code, error.vendor_status, error.retry_after_s) == (code, status, retry_after_s)
    assert "secret" not in error.detail
    assert answer.items == []


async def test_chat_refused_with_a_retry_after_of_nonsense_is_told(forms: Bench) -> None:
    """A Retry-After that is a number to Unicode alone neither raises nor hides the refusal."""

    async def answer_it(exchange: Exchange) -> None:
        exchange.respond(429, [("retry-after", "\u00b2")], end=True)

    client = await forms.client(await forms.peer(answer_it))
    answer = Answer()
    await client.open_chat(NO_ONE, "Hi", answer, key=DEFAULT_KEY)
    error = await answer.failed()
    assert (error.code, error.retry_after_s) == (Code.UPSTREAM_RATE_LIMITED, None)


async def test_chat_cancelled_resets_the_stream_and_hears_nothing_more(forms: Bench) -> None:
    """Leaving reaches the vendor as RST_STREAM(CANCEL) at once; afterwards nothing is called."""
    simulator = await forms.simulator(rate_per_s=200.0)
    client = await forms.client(simulator)
    answer = Answer()
    chat = await client.open_chat(await conversation(client), "#tokens=1000 tell", answer, key=DEFAULT_KEY)
    await answer.until(lambda: bool(answer.items))
    chat.cancel()
    chat.cancel()
    count = len(answer.items)
    async with asyncio.timeout(PATIENCE_S):
        while not simulator.bill.runs[0].saw_cancel:
            await asyncio.sleep(0.005)
    assert (len(answer.items), answer.endings) == (count, [])
    assert client.facts.streams == 0


async def test_chat_opening_cancelled_leaves_no_stream(forms: Bench) -> None:
    """Who stops waiting for a stream has sent nothing and leaves nothing queued."""
    simulator = await forms.simulator(rate_per_s=50.0, max_concurrent_streams=1)
    client = await forms.client(simulator, pool=PoolSettings(max_connections=1))
    conversation_id = await conversation(client)
    first = await client.open_chat(conversation_id, "#tokens=1000 tell", Answer(), key=DEFAULT_KEY)
    waiting = asyncio.ensure_future(client.open_chat(conversation_id, "second", Answer(), key=DEFAULT_KEY))
    async with asyncio.timeout(PATIENCE_S):
        while client.facts.queued == 0:
            await asyncio.sleep(0.005)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert client.facts.queued == 0
    first.cancel()
    assert [run.message for run in simulator.bill.runs] == ["#tokens=1000 tell"]


# --- the four clocks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "rules", "named"),
    [
        ("#fault=slow-headers:5 x", {"first_token_timeout_s": 0.1}, "first token"),
        ("#fault=slow-first-token:5 x", {"first_token_timeout_s": 0.1}, "first token"),
        ("#fault=stall:0 x", {"first_token_timeout_s": 0.1}, "first token"),
        ("#tokens=20 #fault=stall:3 x", {"between_tokens_timeout_s": 0.1}, "between tokens"),
        ("#tokens=20 #fault=deaf:3 x", {"between_tokens_timeout_s": 0.1}, "between tokens"),
        ("#tokens=1000 #rate=100 x", {"turn_timeout_s": 0.3, "between_tokens_timeout_s": 0.2}, "whole turn"),
    ],
)
async def test_chat_clock_that_fires_is_named_and_resets_the_stream(
    forms: Bench, message: str, rules: dict[str, float], named: str
) -> None:
    """Each clock ends a chat in time, says which one it was, keeps what came, and frees the stream."""
    client = await forms.client(await forms.simulator(), **rules)
    answer = Answer()
    conversation_id = await conversation(client)
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    await client.open_chat(conversation_id, message, answer, key=DEFAULT_KEY)
    error = await answer.failed()
    assert error.code is Code.UPSTREAM_TIMEOUT
    assert f"({named})" in error.detail
    assert loop.time() - begun_s < max(rules.values()) + 1.0
    assert client.facts.streams == 0
    assert bool(answer.items) == (named != "first token")


async def test_chat_clock_between_tokens_starts_anew_with_each(forms: Bench) -> None:
    """An answer that keeps coming outlives the clock between tokens many times over."""
    client = await forms.client(
        await forms.simulator(), first_token_timeout_s=0.25, between_tokens_timeout_s=0.25, turn_timeout_s=30.0
    )
    answer = await ask(client, "#tokens=20 #rate=25 x")
    assert await answer.ended() is None


async def test_chat_connect_clock_is_named(bench: Bench) -> None:
    """A peer that takes the connection and says nothing is a connect timeout, and the chat was not sent."""

    async def never(exchange: Exchange) -> None:
        raise AssertionError("nothing arrives")

    client = await bench.client(
        await bench.peer(never, greets=False), pool=PoolSettings(connect_timeout_s=0.1), queue_timeout_s=0.5
    )
    error = await refused(client.open_chat(NO_ONE, "Hi", Answer(), key=DEFAULT_KEY))
    assert (error.code, "(connect)" in error.detail) == (Code.UPSTREAM_TIMEOUT, True)


async def test_chat_queue_clock_is_named(bench: Bench) -> None:
    """A chat that finds no free stream in time is told so: the gateway is full, the vendor is not to blame."""
    simulator = await bench.simulator(max_concurrent_streams=1)
    client = await bench.client(simulator, pool=PoolSettings(max_connections=1), queue_timeout_s=0.2)
    conversation_id = await conversation(client)
    first = await client.open_chat(conversation_id, "#fault=stall:1 x", Answer(), key=DEFAULT_KEY)
    error = await refused(client.open_chat(conversation_id, "second", Answer(), key=DEFAULT_KEY))
    assert (error.code, "(queue)" in error.detail) == (Code.UPSTREAM_OVERLOADED, True)
    first.cancel()


# --- errors -------------------------------------------------------------------------------------------------------


def subclasses(kind: type[UpstreamError]) -> set[type[UpstreamError]]:
    return {kind}.union(*(subclasses(each) for each in kind.__subclasses__()))


def test_codes_cover_every_upstream_error() -> None:
    """No lower error lacks its place in the table."""
    assert set(CODES) == subclasses(UpstreamError)


@pytest.mark.parametrize("kind", list(CODES))
def test_told_gives_our_code_and_none_of_the_words(kind: type[UpstreamError]) -> None:
    """A lower error's own words stay below the border."""
    error = kind("secret words", code=2) if kind is errors.StreamReset else kind("secret words")
    outside = told(error)
    assert (outside.code, outside.detail) == CODES[kind]
    assert "secret" not in f"{outside!r}"


async def test_calls_to_nobody_are_unavailable(bench: Bench) -> None:
    """Where nothing listens, chat and cold calls say so with the same code, soon."""
    simulator = await bench.simulator()
    client = await bench.client(simulator)
    await simulator.aclose()
    for work in (
        client.open_chat(NO_ONE, "Hi", Answer(), key=DEFAULT_KEY),
        client.read_conversation(NO_ONE, key=DEFAULT_KEY),
    ):
        assert (await refused(work)).code is Code.UPSTREAM_UNAVAILABLE


async def test_calls_without_http2_or_trust_are_unavailable_with_their_reason(bench: Bench) -> None:
    """A peer without h2, and one whose certificate nobody vouches for, are told apart in words."""
    simulator = await bench.simulator(faults=("no-alpn",))
    error = await refused((await bench.client(simulator)).read_conversation(NO_ONE, key=DEFAULT_KEY))
    assert (error.code, "HTTP/2" in error.detail) == (Code.UPSTREAM_UNAVAILABLE, True)
    untrusted = await bench.client(await bench.simulator(), ca_file=None)
    error = await refused(untrusted.open_chat(NO_ONE, "Hi", Answer(), key=DEFAULT_KEY))
    assert (error.code, "TLS" in error.detail) == (Code.UPSTREAM_UNAVAILABLE, True)


async def test_cold_call_with_a_wrong_key_is_unauthorized_without_it(bench: Bench) -> None:
    """A key that the vendor refuses is the operator's problem, told without the key."""
    client = await bench.client(await bench.simulator(api_key="another-key"))
    error = await refused(conversation(client))
    assert (error.code, error.vendor_status) == (Code.UPSTREAM_UNAUTHORIZED, 401)
    answer = Answer()
    await client.open_chat(NO_ONE, "Hi", answer, key=DEFAULT_KEY)
    assert (await answer.failed()).code is Code.UPSTREAM_UNAUTHORIZED


async def test_cold_call_that_is_never_answered_ends_in_time(bench: Bench) -> None:
    """A vendor that trickles or stays silent costs the call's own time and no more."""

    async def trickle(exchange: Exchange) -> None:
        exchange.respond(200)
        while exchange.reset_code is None:
            await exchange.send(b" ")
            await asyncio.sleep(0.02)

    async def silent(exchange: Exchange) -> None:
        await exchange.until_reset()

    for handler in (trickle, silent):
        client = await bench.client(await bench.peer(handler), call_timeout_s=0.2)
        begun_s = asyncio.get_running_loop().time()
        assert (await refused(client.read_conversation(NO_ONE, key=DEFAULT_KEY))).code is Code.UPSTREAM_TIMEOUT
        assert asyncio.get_running_loop().time() - begun_s < 1.0
        async with asyncio.timeout(PATIENCE_S):
            while client.facts.streams:
                await asyncio.sleep(0.005)


async def test_cold_call_with_too_large_an_answer_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer beyond the cap is not read to its end."""
    monkeypatch.setattr(client_module, "ANSWER_MAX_BYTES", 100_000)

    async def endless(exchange: Exchange) -> None:
        exchange.respond(200)
        while exchange.reset_code is None:
            await exchange.send(b"x" * 16_000)

    client = await bench.client(await bench.peer(endless))
    error = await refused(client.read_conversation(NO_ONE, key=DEFAULT_KEY))
    assert error.code is Code.UPSTREAM_MALFORMED


@pytest.mark.parametrize("body", [b"", b"<html>secret</html>", b"[]", b"{}", b'{"conversationId":7}'])
async def test_cold_call_with_an_unreadable_answer_is_malformed(bench: Bench, body: bytes) -> None:
    """What is no conversation becomes our code, with nothing of what came."""

    async def answer_it(exchange: Exchange) -> None:
        exchange.respond(200)
        await exchange.send(body, end=True)

    client = await bench.client(await bench.peer(answer_it))
    error = await refused(client.read_conversation(NO_ONE, key=DEFAULT_KEY))
    assert error.code is Code.UPSTREAM_MALFORMED
    assert "secret" not in f"{error} {error.__cause__}"


# --- the key ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("style", "value"), [("x-hl-api-key", KEY), ("authorization", f"Bearer {KEY}")])
async def test_key_travels_in_the_header_that_is_set(bench: Bench, style: str, value: str) -> None:
    """Both header styles of the vendor's are spoken, by chats and by cold calls, and never both at once."""
    seen: list[dict[bytes, bytes]] = []

    async def answer_it(exchange: Exchange) -> None:
        seen.append(exchange.headers)
        await exchange.until_complete()
        exchange.respond(200)
        await exchange.send(b"[]" if b"chat" in exchange.headers[b":path"] else json.dumps(ENTRY).encode(), end=True)

    client = await bench.client(await bench.peer(answer_it), auth_header=style)
    await client.read_conversation(NO_ONE, key=DEFAULT_KEY)
    answer = Answer()
    await client.open_chat(NO_ONE, "Hi", answer, key=DEFAULT_KEY)
    await answer.ended()
    other = {"x-hl-api-key", "authorization"} - {style}
    for headers in seen:
        assert headers[style.encode()] == value.encode()
        assert other.pop().encode() not in headers if other else True
    assert [headers[b":method"] for headers in seen] == [b"GET", b"PATCH"]
    assert seen[1][b":path"] == f"/conversations/{NO_ONE}/chat-http2".encode()
    assert seen[1][b"content-type"] == b"application/json"


@pytest.mark.parametrize(("form", "path"), [("array", "chat-http2"), ("sse", "chat-sse")])
async def test_form_of_the_answer_is_asked_for_by_path_and_accept(bench: Bench, form: StreamForm, path: str) -> None:
    """The setting chooses the vendor's path for a chat, and the header says what is expected there."""
    seen: list[dict[bytes, bytes]] = []

    async def answer_it(exchange: Exchange) -> None:
        seen.append(exchange.headers)
        await exchange.until_complete()
        exchange.respond(200)
        await exchange.send(b"[]" if form == "array" else b"data: [DONE]\n\n", end=True)

    bench.form = form
    answer = Answer()
    await (await bench.client(await bench.peer(answer_it))).open_chat(NO_ONE, "Hi", answer, key=DEFAULT_KEY)
    assert await answer.ended() is None
    assert seen[0][b":path"] == f"/conversations/{NO_ONE}/{path}".encode()
    assert seen[0][b"accept"] == (b"application/json" if form == "array" else b"text/event-stream")


async def test_base_url_with_a_path_prefixes_every_call(bench: Bench) -> None:
    """The vendor answers under /api and /app as well; a base URL may say so."""
    seen: list[bytes] = []

    async def answer_it(exchange: Exchange) -> None:
        seen.append(exchange.headers[b":path"])
        await exchange.until_complete()
        exchange.respond(200)
        await exchange.send(b"[]" if b"chat" in seen[-1] else json.dumps(ENTRY).encode(), end=True)

    peer = await bench.peer(answer_it)
    client = await bench.client(peer, base_url=f"{peer.url}/api/")
    await client.read_conversation(NO_ONE, key=DEFAULT_KEY)
    answer = Answer()
    await client.open_chat(NO_ONE, "Hi", answer, key=DEFAULT_KEY)
    await answer.ended()
    assert seen == [f"/api/conversations/{NO_ONE}".encode(), f"/api/conversations/{NO_ONE}/chat-http2".encode()]


async def test_key_is_in_no_repr(bench: Bench) -> None:
    """What ends up in a log or a traceback by its repr does not hold the key."""
    client = await bench.client(await bench.simulator())
    answer = Answer()
    chat = await client.open_chat(await conversation(client), "#rate=1 x", answer, key=DEFAULT_KEY)
    assert isinstance(chat, HyperleapChat)
    ring = client._keys
    for thing in (client, chat, ring, ring.take(DEFAULT_KEY), client.facts, client._pool, client._http):
        assert KEY not in f"{thing!r} {thing}"
    chat.cancel()


# --- blobs --------------------------------------------------------------------------------------------------------


async def test_blob_is_fetched_from_an_allowed_host_without_the_key(bench: Bench) -> None:
    """A transcript kept apart is read where the setting allows its host; else it is said to be unavailable."""
    simulator = await bench.simulator(blob=True)
    allowed = await bench.client(simulator, blob_hosts=frozenset({"127.0.0.1"}))
    answer = Answer()
    conversation_id = await conversation(allowed)
    await allowed.open_chat(conversation_id, "#echo Hello", answer, key=DEFAULT_KEY)
    await answer.ended()
    found = await allowed.read_conversation(conversation_id, key=DEFAULT_KEY)
    assert found is not None
    assert not found.messages_unavailable
    assert [message.content for message in found.messages] == ["#echo Hello", "Hello"]
    for hosts in (frozenset[str](), frozenset({"blobs.example"}), frozenset({"127.0.0"})):
        other = await bench.client(simulator, blob_hosts=hosts)
        found = await other.read_conversation(conversation_id, key=DEFAULT_KEY)
        assert found is not None
        assert (found.messages_unavailable, found.messages) == (True, [])


@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1/x",
        "file:///etc/passwd",
        "https://[::1",
        "https://127.0.0.1:99999/x",
        "https://127.0.0.1@evil.example/x",
        "https://evil.example/127.0.0.1",
        "//127.0.0.1/x",
        "https://127.0.0.1:1/x",
        "nonsense",
        "",
        None,
    ],
)
async def test_blob_elsewhere_or_unreadable_is_unavailable(bench: Bench, uri: str | None) -> None:
    """A URI that may not or cannot be fetched leaves the record standing, its transcript unavailable."""

    async def answer_it(exchange: Exchange) -> None:
        exchange.respond(200)
        entry = ENTRY | {"chatMessages": None, "areChatMessagesInBlob": True, "chatMessagesBlobUri": uri}
        await exchange.send(json.dumps(entry).encode(), end=True)

    client = await bench.client(await bench.peer(answer_it), blob_hosts=frozenset({"127.0.0.1"}))
    found = await client.read_conversation(NO_ONE, key=DEFAULT_KEY)
    assert found is not None
    assert found.messages_unavailable


async def test_blob_request_carries_no_credential(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is the vendor API's alone; whoever keeps the blobs never sees it."""
    simulator = await bench.simulator(blob=True)
    client = await bench.client(simulator, blob_hosts=frozenset({"127.0.0.1"}))
    answer = Answer()
    conversation_id = await conversation(client)
    await client.open_chat(conversation_id, "#echo Hello", answer, key=DEFAULT_KEY)
    await answer.ended()
    sent: list[httpx.Request] = []
    send = httpx.AsyncHTTPTransport.handle_async_request

    async def watched(self: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return await send(self, request)

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", watched)
    await client.read_conversation(conversation_id, key=DEFAULT_KEY)
    assert len(sent) == 1
    assert "x-hl-api-key" not in sent[0].headers
    assert "authorization" not in sent[0].headers
    assert KEY not in str(sent[0].headers.raw)
