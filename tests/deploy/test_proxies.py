"""The shipped files of four proxies, run by those in front of a gateway: what users of a stream need of them."""

from __future__ import annotations

import asyncio
import io
import json
import re
import time
from collections.abc import Callable

import msgspec
import pytest
from aiohttp import ClientError

from gateway.options import StreamSettings, UpstreamSettings
from gateway.protocol.sse import SseDecoder
from tests.conftest import PERSONA_ID, Running, StartGateway
from tests.deploy.conftest import Front, StartFront
from tests.deploy.proxies import HOST, PROXIES, SHIPPED, Proxy, Setting, Upstream
from tests.transports.client import Event, check_log, eventually

WITHIN_S = 20.0
CHECK_S = 1.0  # between two looks of a proxy at who is ready
CLOCK = re.compile(rb"\d+@(\d+) ")
SLOW = "Count #clock #tokens=15 #rate=6"
PAGE = {"Origin": "https://app.example", "Content-Type": "application/json"}
TENANT = """
[tenants.{name}]
origins = ["https://app.example"]
anonymous = true
limits.tenant = {{ requests_per_min = 0 }}
limits.user = {{ requests_per_min = 0, concurrent_turns = 0 }}
limits.anonymous = {{ requests_per_min = 0, concurrent_turns = 0 }}
limits.address = {{ requests_per_min = {per_address} }}
disconnect = {{ policy = "stop" }}
[tenants.{name}.personas.default]
persona_id = "{persona}"
"""


def tenant(name: str, *, per_address: int = 0) -> str:
    return TENANT.format(name=name, persona=PERSONA_ID, per_address=per_address)


@pytest.fixture(params=PROXIES, ids=lambda proxy: proxy.name)
def proxy(request: pytest.FixtureRequest) -> Proxy:
    """Each proxy that is installed."""
    one: Proxy = request.param
    if one.program is None:
        pytest.skip(f"no {one.name}: install {one.package}")
    return one


@pytest.fixture
async def stopping(start_gateway: StartGateway, request: pytest.FixtureRequest) -> Running:
    """A gateway whose tenant wants an answer stopped when its reader has left."""
    return await start_gateway(simulator={"h2c": True}, toml=tenant(f"leave-{request.node.callspec.id}"))


def test_shipped_file_is_valid(proxy: Proxy, setting: Callable[..., Setting]) -> None:
    """The proxy's own check finds nothing in the file."""
    gateway = Upstream("127.0.0.1", 8080, 9090)
    proxy.validate(setting((gateway, gateway)))


@pytest.mark.parametrize("one", PROXIES, ids=lambda proxy: proxy.name)
def test_silence_of_a_whole_answer_is_waited_for(one: Proxy) -> None:
    """No proxy gives up on an answer before the gateway does; keep-alives come far more often than it asks for."""
    text = (SHIPPED / one.file).read_text("utf-8")
    longest_s = UpstreamSettings().queue_wait_s + UpstreamSettings().turn_timeout_s
    for words in QUIET_S[one.name]:
        before, _, after = words.partition("{}")
        found = text.partition(before)[2].partition(after)[0]
        assert before in text, words
        assert float(found) > longest_s, words
    if one.name == "haproxy":
        assert "timeout tunnel 120s" in text
        assert StreamSettings().keepalive_s * 4 <= 120


QUIET_S = {
    "caddy": (),  # has no limit
    "nginx": ("proxy_read_timeout {}s;",),
    "haproxy": ("timeout client {}s\n", "timeout server {}s\n"),
    "envoy": ("stream_idle_timeout: {}s\n",),
}


# --- streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_sse_over_http2_arrives_as_it_is_made(
    proxy: Proxy, front: StartFront, start_gateway: StartGateway
) -> None:
    """Events come one by one while the answer is still being made, over HTTP/2 and TLS, whole and in order."""
    running = await start_gateway(simulator={"h2c": True})
    headers = await running.user()
    conversation = await running.conversation(headers)
    arrivals = Arrivals()
    async with front(proxy, running) as to, to.http2() as http:
        async with http.stream(
            "POST",
            f"/v1/conversations/{conversation}/turns",
            json={"message": SLOW},
            headers=headers
            | {"Accept": "text/event-stream", "Accept-Encoding": "gzip, br", "X-Request-Id": "asked-by-me"},
        ) as response:
            assert response.status_code == 200
            assert response.http_version == "HTTP/2"
            assert "content-encoding" not in response.headers
            assert response.headers["x-request-id"] == "asked-by-me"
            decoder = SseDecoder()
            async for data in response.aiter_raw():
                for event in decoder.feed(data):
                    arrivals.take(Event(event.id or "", event.event, msgspec.json.decode(event.data)), running)
        arrivals.check()
        # The same connection takes a second stream while the first is read: that is what HTTP/2 is for.
        assert (await http.get(f"/v1/conversations/{conversation}", headers=headers)).status_code == 200


@pytest.mark.slow
async def test_websocket_arrives_as_it_is_made(proxy: Proxy, front: StartFront, start_gateway: StartGateway) -> None:
    """Frames come one by one while the answer is still being made, and the subprotocol is the one asked for."""
    running = await start_gateway(simulator={"h2c": True})
    arrivals = Arrivals()
    async with front(proxy, running) as to, to.client(running) as client, client.socket() as socket:
        assert socket.ws.protocol == "hyperleap.chat.v1"
        await socket.send("turn.start", request_id="r", conversation_id=await client.conversation(), message=SLOW)
        while not arrivals.ended:
            frame = await socket.next()
            assert isinstance(frame, dict), frame
            if "turn_id" in frame:
                arrivals.take(Event(frame["id"], frame["event"], frame["data"]), running)
    arrivals.check()


@pytest.mark.slow
async def test_array_of_the_drop_in_arrives_as_it_is_made(
    proxy: Proxy, front: StartFront, start_gateway: StartGateway
) -> None:
    """An array that is written item by item, which no content type tells from any other JSON, is sent on so too."""
    running = await start_gateway(simulator={"h2c": True})
    arrivals, body = Arrivals(), bytearray()
    async with front(proxy, running) as to, to.client(running) as client, to.http2() as http:
        key = {"x-hl-api-key": client.token}
        created = await http.post("/hyperleap/conversations/persona", json={"personaId": PERSONA_ID}, headers=key)
        path = f"/hyperleap/conversations/{created.json()['conversationId']}/chat-http2"
        async with http.stream("PATCH", path, json={"message": SLOW}, headers=key) as response:
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("application/json")
            async for data in response.aiter_raw():
                body += data
                arrivals.saw(len(CLOCK.findall(body)), running)
    assert json.loads(body)[-1]["choice"]["finish_reason"] == "stop"
    arrivals.check_delays([int(made) for made in CLOCK.findall(body)])


class Arrivals:
    """When events arrived, and when the stand-in made them (``#clock``)."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.running: list[int] = []
        self.at_ns: list[int] = []
        self.ended = False

    def take(self, event: Event, running: Running) -> None:
        self.events.append(event)
        self.ended = event.name == "turn.completed"
        if event.name == "message.delta":
            self.saw(len(self.at_ns) + 1, running)

    def saw(self, count: int, running: Running) -> None:
        """So many pieces of the answer have come by now."""
        while len(self.at_ns) < count:
            self.at_ns.append(time.monotonic_ns())
            self.running.append(running.gateway.turns.running)

    def check(self) -> None:
        """The log is whole, and came as it was made."""
        assert check_log(self.events).name == "turn.completed"
        self.check_delays([int(event.text.partition("@")[2]) for event in self.events if event.name == "message.delta"])

    def check_delays(self, made_ns: list[int]) -> None:
        """The first piece came in mid-answer, and most before the next one was made."""
        assert len(made_ns) >= 10
        assert self.running[0] == 1
        prompt = [came < following for came, following in zip(self.at_ns, made_ns[1:], strict=False)]
        assert sum(prompt) > len(prompt) / 2, prompt


@pytest.mark.slow
async def test_keepalives_carry_a_stream_over_every_timeout(
    proxy: Proxy, front: StartFront, start_gateway: StartGateway
) -> None:
    """While the model thinks for longer than the proxy waits, comments and pings keep streams and sockets open."""
    running = await start_gateway(simulator={"h2c": True}, environ={"GATEWAY_STREAMS_KEEPALIVE_S": "0.25"})
    message = "Think #delay=5 #tokens=3"
    async with front(proxy, running, changes=IMPATIENT[proxy.name]) as to, to.client(running) as client:
        one, two, three = [await client.conversation() for _ in range(3)]

        async def stream() -> None:
            async with client.ask(one, message) as reader:
                assert check_log(await reader.rest(WITHIN_S)).name == "turn.completed"

        async def socket() -> None:
            async with client.socket() as opened:
                reply = await opened.reply("turn.start", conversation_id=two, message=message)
                assert check_log(await opened.ending(reply["data"]["turn_id"])).name == "turn.completed"

        async def whole() -> int:
            path = f"/v1/conversations/{three}/turns"
            try:
                return (await client.call("POST", path, {"message": message}, Accept="application/json")).status
            except ClientError:
                return 0

        _, _, status = await asyncio.gather(stream(), socket(), whole())
        # The timeout is really that short: an answer that is waited for as a whole does not outlive it.
        assert status == 200 if proxy.name == "caddy" else status in (0, 408, 504), status


IMPATIENT = {
    "caddy": {"idle 5m": "idle 1s"},  # it has no timeout that an answer could meet
    "nginx": {"proxy_read_timeout 720s": "proxy_read_timeout 1s", "proxy_send_timeout 60s": "proxy_send_timeout 1s"},
    "haproxy": {
        "timeout client 720s": "timeout client 1s",
        "timeout server 720s": "timeout server 1s",
        "timeout tunnel 120s": "timeout tunnel 1s",
    },
    "envoy": {"stream_idle_timeout: 720s": "stream_idle_timeout: 1s"},
}


# --- leaving ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_leaving_is_seen_through_the_proxy(proxy: Proxy, front: StartFront, stopping: Running) -> None:
    """Who leaves a stream, a socket or an answer that was waited for whole: Hyperleap is told to stop at once."""
    running, message = stopping, "Hi #rate=20 #tokens=4000"
    async with front(proxy, running) as to, to.client(running) as client, to.leaving() as http:
        conversations = {name: await client.conversation() for name in ("stream", "h2", "silent", "socket", "whole")}

        async def told(name: str) -> None:
            """The vendor hears the message, the reader leaves, the vendor hears of that."""
            (run,) = running.simulator.bill.of(conversations[name])
            await eventually(lambda: run.saw_cancel, f"the vendor to see that {name} has left", within_s=WITHIN_S)

        async def heard(name: str) -> None:
            await eventually(lambda: running.simulator.bill.of(conversations[name]), "the message to be sent")

        async with client.ask(conversations["stream"], message) as reader:
            await reader.until("message.delta", 2)
        await told("stream")

        for name, words in (("h2", message), ("silent", "Hi #delay=300")):
            async with http.stream(
                "POST",
                f"/v1/conversations/{conversations[name]}/turns",
                json={"message": words},
                headers=client.headers | {"Accept": "text/event-stream"},
            ):
                await heard(name)
            await told(name)

        async with client.socket() as socket:
            await socket.reply("turn.start", conversation_id=conversations["socket"], message=message)
            await heard("socket")
        await told("socket")

        whole = conversations["whole"]
        connection = await to.connection()
        body = json.dumps({"message": message})
        lines = {**client.headers, "Host": HOST, "Content-Length": str(len(body)), "Content-Type": "application/json"}
        connection.write(f"POST /v1/conversations/{whole}/turns HTTP/1.1\r\n".encode())
        connection.write("".join(f"{name}: {value}\r\n" for name, value in lines.items()).encode())
        connection.write(f"\r\n{body}".encode())
        await heard("whole")
        connection.transport.abort()  # as a process that is killed does; aiohttp would wait for a goodbye
        await told("whole")


# --- what arrives at the gateway, and what does not -------------------------------------------------------------------


@pytest.mark.slow
async def test_client_address_arrives_and_cannot_be_forged(
    proxy: Proxy, front: StartFront, start_gateway: StartGateway
) -> None:
    """Visitors of one network share its limit behind the proxy too, whatever they write into a header."""
    running = await start_gateway(
        simulator={"h2c": True},
        toml=tenant(f"address-{proxy.name}", per_address=2),
        environ={"GATEWAY_TRUSTED_PROXIES": "127.0.0.1/32"},
    )
    async with front(proxy, running) as to:
        assert [await visit(to, running, "127.0.1.9") for _ in range(3)] == [200, 200, 429]
        assert await visit(to, running, "127.0.1.10", **{"X-Forwarded-For": "198.51.100.7"}) == 429
        assert await visit(to, running, "127.0.2.9") == 200


async def visit(to: Front, running: Running, address: str, **headers: str) -> int:
    """Come from an address as somebody new and say something; return the status of that, or of what was refused."""
    page = headers | PAGE
    async with to.session(address) as http:
        async with http.post(
            f"{to.url}/v1/sessions", json={}, headers=page | {"Authorization": f"Bearer {running.publishable_key}"}
        ) as response:
            assert response.status == 201, await response.text()
            token = (await response.json())["token"]
        signed = page | {"Authorization": f"Bearer {token}"}
        async with http.post(f"{to.url}/v1/conversations", json={}, headers=signed) as response:
            if response.status != 201:
                return response.status
            conversation = (await response.json())["id"]
        async with http.post(
            f"{to.url}/v1/conversations/{conversation}/turns",
            json={"message": "Hi #tokens=2"},
            headers=signed | {"Accept": "application/json"},
        ) as response:
            return response.status


@pytest.mark.slow
async def test_refusals_are_the_gateways_own(proxy: Proxy, front: StartFront, start_gateway: StartGateway) -> None:
    """A body that is too large is refused so that a page can read it; the internal port's paths are nowhere."""
    running = await start_gateway(simulator={"h2c": True})
    async with front(proxy, running) as to, to.client(running) as client:
        path = f"/v1/conversations/{await client.conversation()}/turns"
        for size, ours in ((1_048_577, True), (3_000_000, False)):
            try:
                async with client.running.http.post(
                    to.url + path, data=io.BytesIO(b"x" * size), headers=client.headers | PAGE
                ) as response:
                    status, body = response.status, await response.read()
            except ClientError:  # it closes while the body is still being sent
                assert not ours
                continue
            if ours:
                assert (status, msgspec.json.decode(body)["code"]) == (413, "body_too_large")
                assert response.headers["access-control-allow-origin"] == "https://app.example"
            else:
                assert status in (413, 502)  # Caddy says either
        assert len(running.simulator.bill) == 0
        for hidden in ("/metrics", "/readyz", "/livez", "/admin/v1/tenants"):
            answer = await client.call("GET", hidden)
            assert (answer.status, answer.body["code"]) == (404, "not_found"), hidden


@pytest.mark.slow
async def test_gateways_of_which_none_is_ready_are_asked_all_the_same(
    proxy: Proxy, front: StartFront, start_gateway: StartGateway
) -> None:
    """While Redis is away, say, every request still gets the gateway's own answer, well beyond the proxy's checks."""
    running = await start_gateway(simulator={"h2c": True})
    async with front(proxy, running) as to, to.client(running) as client:
        running.gateway.draining = True  # as far as /readyz tells; nothing else follows
        until_s = time.monotonic() + 8 * CHECK_S
        while time.monotonic() < until_s:
            answer = await client.call("GET", "/v1/conversations/x", Origin="https://app.example")
            assert (answer.status, answer.body["code"]) == (400, "invalid_id"), answer
            assert answer.headers["access-control-allow-origin"] == "https://app.example"
        events = await client.complete(await client.conversation(), "Hi #tokens=3")
        assert check_log(events).name == "turn.completed"


@pytest.mark.slow
async def test_log_of_the_proxy_holds_nothing_secret(
    proxy: Proxy, front: StartFront, start_gateway: StartGateway
) -> None:
    """Neither tokens nor tickets nor words get into what a proxy logs, and each request is there with its path."""
    running = await start_gateway(simulator={"h2c": True})
    async with front(proxy, running) as to, to.client(running) as client:
        conversation = await client.conversation()
        turn = await client.start(conversation, "A-SECRET-WORD #tokens=2")
        async with client.socket():
            pass
        answer = await client.call("POST", "/v1/tickets", {"path": f"/v1/turns/{turn}/events"})
        ticket = answer.body["ticket"]
        async with client.running.http.get(f"{to.url}/v1/turns/{turn}/events?ticket={ticket}") as response:
            assert response.status == 200
            await response.read()
        await eventually(lambda: f"/v1/turns/{turn}/events" in logged(to), "the request to be logged", within_s=10)
        await client.call("GET", "/v1/ws", x_hl_api_key=client.token)
    text = logged(to)
    assert "/v1/ws" in text
    for secret in (client.token, client.token.rpartition(".")[2], ticket, "A-SECRET-WORD"):
        assert secret not in text


def logged(to: Front) -> str:
    return to.log.read_text("utf-8", "replace")
