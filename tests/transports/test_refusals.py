"""What aiohttp refuses by itself: bytes on a socket that no handler ever sees, and addresses that break handlers.

Every answer is a problem document, names a request id and repeats nothing of the request. These tests also stand
guard over what ``gateway.transports.refusals`` leans on in aiohttp: any change there fails one of them.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import Any, NamedTuple

import msgspec
import pytest
from aiohttp import web, web_protocol

import gateway.telemetry.logging
from gateway.core.errors import WIRE, Code
from gateway.services.conversations import PAGE_MAX
from gateway.telemetry.throttle import Throttle
from gateway.transports.page import FILES
from gateway.transports.refusals import EdgeRunner
from tests.conftest import Running
from tests.transports.client import Client, metric

ORIGIN = "https://app.example"
CANARY = "canary-of-a-credential"
HEAD = f"GET /v1/conversations HTTP/1.1\r\nHost: x\r\nOrigin: {ORIGIN}\r\nAuthorization: Bearer {CANARY}\r\n"
CLIENT_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + CANARY.encode() + b"\x00" * 400


class Reply(NamedTuple):
    """One answer as it came over the socket, which was closed after it."""

    status: int
    headers: dict[str, str]
    body: bytes


async def exchange(url: str, request: bytes) -> Reply:
    """Send bytes, and read until the other side closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    try:
        writer.write(request)
        async with asyncio.timeout(5):
            answer = await reader.read()
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = [line.partition(":") for line in lines]
    names = [name.lower() for name, _, _ in pairs]
    assert len(set(names)) == len(names), names
    return Reply(int(first.split(" ")[1]), {name.lower(): value.strip() for name, _, value in pairs}, body)


def check_refusal(reply: Reply, code: Code) -> dict[str, Any]:
    """Check all that every such refusal has in common; return the problem document."""
    assert reply.status == WIRE[code].http, reply
    headers = reply.headers
    assert headers["content-type"] == "application/problem+json"
    assert headers["server"] == "hyperleap-gateway"
    assert headers["connection"].lower() == "close"
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert int(headers["content-length"]) == len(reply.body)
    problem: dict[str, Any] = msgspec.json.decode(reply.body)
    assert problem["code"] == code
    assert problem["status"] == reply.status
    assert problem["title"] == WIRE[code].title
    assert problem["request_id"] == headers["x-request-id"] != ""
    assert CANARY not in reply.body.decode()
    assert CANARY not in str(headers)
    return problem


def head(*lines: str) -> bytes:
    return (HEAD + "".join(f"{line}\r\n" for line in lines) + "\r\n").encode("latin-1")


UNREADABLE = {
    "bad method": (f"{CANARY} / HTTP/1.1\r\nHost: x\r\n\r\n".encode(), Code.BAD_REQUEST),
    "TLS": (CLIENT_HELLO, Code.BAD_REQUEST),
    "nonsense": (f"\x00\x01{CANARY}\r\n\r\n".encode(), Code.BAD_REQUEST),
    "bad version": (f"GET /{CANARY} HTTP/9.z\r\n\r\n".encode(), Code.BAD_REQUEST),
    "bad address": (f"GET http://[{CANARY}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode(), Code.BAD_REQUEST),
    "no host": (f"GET /?{CANARY} HTTP/1.1\r\n\r\n".encode(), Code.BAD_REQUEST),
    "bad length": (head(f"Content-Length: {CANARY}"), Code.BAD_REQUEST),
    "negative length": (head("Content-Length: -1"), Code.BAD_REQUEST),
    "two lengths": (head("Content-Length: 1", "Content-Length: 2"), Code.BAD_REQUEST),
    "length and chunks": (head("Content-Length: 5", "Transfer-Encoding: chunked"), Code.BAD_REQUEST),
    "NUL in a header": (head(f"X-Note: {CANARY}\x00"), Code.BAD_REQUEST),
    "bad header name": (head(f"Bad Name {CANARY}: x"), Code.BAD_REQUEST),
    "folded header": (head(f" {CANARY}"), Code.BAD_REQUEST),
    "two hosts": (head(f"Host: {CANARY}"), Code.BAD_REQUEST),
    "long header": (head(f"Cookie: {CANARY}{'x' * 8190}"), Code.HEADERS_TOO_LARGE),
    "long header name": (head(f"{CANARY}{'x' * 8190}: x"), Code.HEADERS_TOO_LARGE),
    "long address": (f"GET /{CANARY}{'a' * 8190} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), Code.HEADERS_TOO_LARGE),
    "many headers": (head(*(f"X-{n}: {CANARY}" for n in range(200))), Code.HEADERS_TOO_LARGE),
}


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What is logged, at DEBUG; nothing was held back before."""
    monkeypatch.setattr(gateway.telemetry.logging, "_throttle", Throttle())
    caplog.set_level(logging.DEBUG)
    return caplog


def check_log(log: pytest.LogCaptureFixture, *codes: Code) -> None:
    """One warning a code and nothing worse, and the request's words in no record, its arguments or its exception."""
    told = [record for record in log.records if record.levelno >= logging.WARNING]
    assert [(record.levelno, record.getMessage()) for record in told] == [
        (logging.WARNING, "request.unreadable") for _ in codes
    ]
    assert [vars(record)["fields"]["code"] for record in told] == list(codes)
    for record in log.records:
        assert CANARY not in f"{vars(record)} {record.getMessage()}"


@pytest.mark.parametrize("name", UNREADABLE)
async def test_unreadable_request_is_a_problem_that_repeats_nothing(
    name: str, running: Running, log: pytest.LogCaptureFixture
) -> None:
    """Neither the answer nor the log holds a word of it; it is one warning, and one error of its code."""
    request, code = UNREADABLE[name]
    reply = await exchange(running.url, request)
    check_refusal(reply, code)
    assert "access-control-allow-origin" not in reply.headers  # whose it is was never read
    check_log(log, code)
    assert await metric(running, "gateway_errors_total", code=code) == 1


async def test_unreadable_requests_in_a_row_are_logged_once(running: Running, log: pytest.LogCaptureFixture) -> None:
    """A scanner cannot fill the log; another kind of refusal has a line of its own."""
    for _ in range(20):
        await exchange(running.url, CLIENT_HELLO)
    check_refusal(await exchange(running.url, UNREADABLE["long header"][0]), Code.HEADERS_TOO_LARGE)
    check_log(log, Code.BAD_REQUEST, Code.HEADERS_TOO_LARGE)


async def test_unreadable_request_after_a_good_one_is_refused_after_its_answer(running: Running) -> None:
    """Over a connection kept alive, the first answer comes whole, then the refusal, then the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(running.url.rpartition(":")[2]))
    writer.write(b"GET /v1/nowhere HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(5):
        answers = await reader.readuntil(b'"code":"not_found"')
        writer.write(CLIENT_HELLO)
        answers += await reader.read()
    writer.close()
    assert answers.count(b"HTTP/1.") == 2
    assert answers.index(b'"code":"not_found"') < answers.index(b'"code":"bad_request"')


async def test_unreadable_request_on_the_internal_port_is_a_problem_too(running: Running) -> None:
    """The internal port has no doors, and the same manners."""
    check_refusal(await exchange(running.internal_url, CLIENT_HELLO), Code.BAD_REQUEST)


async def test_header_just_short_enough_is_read(running: Running) -> None:
    """The bound that the refusal tells is the one that holds."""
    reply = await exchange(running.url, head("Connection: close", f"Cookie: {'x' * 8000}"))
    assert reply.status == 401
    told = check_refusal(await exchange(running.url, UNREADABLE["long header"][0]), Code.HEADERS_TOO_LARGE)
    assert "8190" in told["detail"]


async def test_unknown_expectation_is_a_problem_with_cors(running: Running, log: pytest.LogCaptureFixture) -> None:
    """Its headers could be read, so a page of a listed origin may read the answer."""
    for path in ("/v1/conversations", "/v1/nowhere"):
        request = head(f"Expect: {CANARY}").replace(b"/v1/conversations", path.encode())
        reply = await exchange(running.url, request)
        check_refusal(reply, Code.EXPECTATION_FAILED)
        assert reply.headers["access-control-allow-origin"] == ORIGIN
        assert reply.headers["vary"] == "Origin"
    check_log(log, Code.EXPECTATION_FAILED)


async def test_known_expectation_is_met(running: Running) -> None:
    """``100-continue`` is answered as ever."""
    reply = await exchange(running.url, head("Expect: 100-continue", "Connection: close"))
    assert reply.status == 100
    assert reply.body.startswith(b"HTTP/1.1 401 ")


async def test_body_that_is_not_in_its_encoding_is_a_problem(client: Client, log: pytest.LogCaptureFixture) -> None:
    """A body that says gzip and is not is the sender's mistake, not ours, before and after it is refused."""
    answer = await client.call("POST", "/v1/conversations", {"metadata": {}}, Content_Encoding="gzip")
    assert (answer.status, answer.body["code"]) == (400, "bad_request")
    unread = b"POST /v1/conversations HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    await exchange(client.running.url, unread + CANARY.encode() + b"\r\n")
    assert {record.getMessage() for record in log.records if record.levelno >= logging.WARNING} == {
        "request.unreadable"
    }


# --- what it leans on -------------------------------------------------------------------------------------------------


async def test_edge_runner_keeps_what_aiohttp_would_have_served(caplog: pytest.LogCaptureFixture) -> None:
    """The server in its place has the same handler, factory and options, and what no handler catches is a problem."""

    async def crash(request: web.Request) -> web.Response:
        raise ValueError(CANARY)

    app = web.Application()
    app.router.add_get("/", crash)
    options: dict[str, Any] = {"access_log": None, "handler_cancellation": True, "keepalive_timeout": 7.0}
    runner = EdgeRunner(app, **options)
    await runner.setup()
    try:
        made, server = app._make_handler(**options), runner.server
        assert server is not None
        assert vars(made).keys() <= vars(server).keys()
        assert server._kwargs == made._kwargs | {"access_log_class": server._kwargs["access_log_class"]}
        assert server.handler_cancellation
        assert server.request_factory == made.request_factory
        protocol = server()
        assert isinstance(protocol, web.RequestHandler)
        assert protocol.keepalive_timeout == 7.0
        assert protocol.access_logger is None
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        reply = await exchange(f"http://127.0.0.1:{runner.addresses[0][1]}", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        check_refusal(reply, Code.INTERNAL)
        assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
            (logging.ERROR, "request.crashed")
        ]
    finally:
        await runner.cleanup()


def test_aiohttp_still_has_what_refusals_lean_on() -> None:
    """``handle_error`` is called with what we override it to take, for what its parser refuses."""
    parameters = list(inspect.signature(web.RequestHandler.handle_error).parameters)
    assert parameters == ["self", "request", "status", "exc", "message"]
    assert [field.name for field in web_protocol._ErrInfo.__attrs_attrs__] == ["status", "exc", "message"]
    assert inspect.iscoroutinefunction(web.AppRunner._make_server)


# --- addresses that broke handlers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["0" * 4000 + "1", "1" * 5000, str(PAGE_MAX + 1), "0", "-1", "+1", "1.0", "", "²"])
async def test_limit_out_of_range_is_refused_with_the_range(limit: str, client: Client) -> None:
    """However long it is; no limit is quietly made smaller."""
    answer = await client.call("GET", f"/v1/conversations?limit={limit}")
    assert (answer.status, answer.body["code"], answer.body["field"]) == (422, "invalid_value", "limit")
    assert answer.body["detail"] == f"limit lies between 1 and {PAGE_MAX}."


@pytest.mark.parametrize("limit", [1, PAGE_MAX])
async def test_limit_at_its_bounds_is_kept(limit: int, client: Client) -> None:
    """Exactly so many come as were asked for."""
    for _ in range(limit + 1):
        await client.conversation()
    answer = await client.call("GET", f"/v1/conversations?limit={limit}")
    assert (answer.status, len(answer.body["data"])) == (200, limit)


@pytest.mark.parametrize(
    "name",
    ["a%00b.js", "a" * 5000, "../app.py", "%2e%2e/app.py", "..%2fapp.py", "vendor", "vendor/README.md", "/app.js"],
)
async def test_page_file_that_is_none_is_not_found(name: str, running: Running) -> None:
    """Whatever the name, it is looked up among the page's files and nowhere else."""
    request = f"GET /page/{name} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    reply = await exchange(running.url, request.encode())
    assert (reply.status, msgspec.json.decode(reply.body)["code"]) == (404, "not_found")


async def test_page_files_are_all_served(running: Running) -> None:
    """Every file that the page consists of is there under its name, those in folders too."""
    assert {"index.html", "app.js", "style.css", "vendor/marked.js"} <= FILES.keys()
    for name, path in FILES.items():
        async with running.http.get(f"{running.url}/page/{name}") as response:
            assert (response.status, await response.read()) == (200, path.read_bytes()), name


@pytest.mark.parametrize(
    "headers", [{}, {"Connection": "Upgrade", "Upgrade": "h2c"}, {"Connection": "close", "Upgrade": "websocket"}]
)
async def test_websocket_without_upgrade_is_told_what_is_missing(headers: dict[str, str], client: Client) -> None:
    """426 with what to send; the usual cause, a proxy, is named."""
    answer = await client.call("GET", "/v1/ws", Origin=ORIGIN, **headers)
    assert (answer.status, answer.body["code"]) == (426, "upgrade_required")
    assert answer.headers["Upgrade"] == "websocket"
    assert answer.headers["Connection"].lower() == "upgrade"
    assert "proxy" in answer.body["detail"]
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN


async def test_websocket_handshake_that_is_wrong_is_a_bad_request(client: Client) -> None:
    """An upgrade without a key, or of another version, is no missing upgrade."""
    answer = await client.call("GET", "/v1/ws", Connection="Upgrade", Upgrade="websocket", Sec_WebSocket_Version="7")
    assert (answer.status, answer.body["code"]) == (400, "bad_request")
