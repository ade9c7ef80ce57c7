"""Secrets: whatever a session does, no log line, metric or error holds a key, a token, a prompt or an answer."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Iterator

import pytest

from gateway.options import LoggingSettings
from gateway.sections import Secret
from gateway.telemetry.logging import QUIET, configure
from tests.collector import Collector, collector
from tests.conftest import VENDOR_KEY, Running, StartGateway
from tests.transports.client import Client, eventually
from tests.transports.conftest import SignIn

PROMPT = "canary-of-the-prompt"
ANSWER = f"{PROMPT} #echo"  # the answer says the canary too
COMMENT = "canary-of-the-comment"
USER = "canary-user@example.com"


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Everything that is logged, at DEBUG, as the formatter of a running gateway writes it."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    levels = {name: logging.getLogger(name).level for name in QUIET}
    stream = io.StringIO()
    configure(LoggingSettings(level="debug", format="json"), secrets=[Secret(VENDOR_KEY)], stream=stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, old in levels.items():
        logging.getLogger(name).setLevel(old)


async def raw(running: Running, request: bytes) -> bytes:
    """Send bytes that need not be HTTP and read what comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(running.url.rpartition(":")[2]))
    writer.write(request)
    writer.write_eof()
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    return answer


async def varied_session(running: Running, client: Client) -> list[bytes]:
    """Do a bit of everything, and return the errors and the answers that have no answer's text to tell."""
    told: list[bytes] = []

    async def call(method: str, path: str, body: object = None, **headers: str) -> None:
        told.append((await client.call(method, path, body, **headers)).raw)

    conversation = await client.conversation(replacements={"name": COMMENT}, metadata={"note": "plain"})
    turns = f"/v1/conversations/{conversation}/turns"
    ending = (await client.complete(conversation, ANSWER))[-1]
    for fault in ("500", "cut:3", "garbage:2", "reset:2", "429"):
        await client.complete(conversation, f"{PROMPT} #fault={fault}")
    async with client.ask(conversation, f"{ANSWER} #rate=5") as reader:
        await call("POST", turns, {"message": PROMPT})
        await reader.until("message.started")
        await client.stop(reader.turn_id)
        await reader.rest()
    feedback = f"/v1/conversations/{conversation}/messages/{ending.data['message_id']}/feedback"
    assert (await client.call("PUT", feedback, {"score": 1, "comments": COMMENT})).status == 200
    await call("PUT", feedback, {"score": 99, "comments": COMMENT})
    await call("POST", turns, {"message": PROMPT, PROMPT: 1})
    await call("POST", turns, {"message": [PROMPT]})
    await call("POST", turns, {"massage": PROMPT})
    await call("POST", turns, {"message": PROMPT * 2000})
    await call("POST", turns, {"message": PROMPT}, Idempotency_Key="k" * 300)
    await call("POST", "/v1/conversations", {"replacements": {"system": PROMPT}})
    await call("GET", f"/v1/turns/{ending.turn_id}/events?after={client.token}")
    await call("GET", f"/v1/turns/{client.token}/events")
    await call("GET", f"/{running.secret_key}")
    await call("GET", "/v1/conversations", Authorization=f"Bearer {running.secret_key}")
    await call("GET", "/v1/conversations", Authorization=f"Bearer {running.secret_key}x")
    await call("GET", "/v1/conversations", Authorization=f"Bearer {client.token}x")
    await call("GET", "/v1/conversations", Authorization=f"Basic {client.token}")
    await call("POST", "/v1/sessions", {"user_id": USER}, Authorization=f"Bearer {client.token}")
    await call("GET", "/v1/conversations", Origin="https://evil.example")
    asked = {"model": "default", "messages": [{"role": "user", "content": ANSWER}]}
    for stream in (True, False):
        body = {**asked, "stream": stream, "safety_identifier": USER, "metadata": {"note": COMMENT}}
        answer = await client.call("POST", "/v1/chat/completions", body, Authorization=f"Bearer {running.secret_key}")
        assert answer.status == 200
    await call("POST", "/v1/chat/completions", asked | {"model": PROMPT})
    await call("POST", "/v1/chat/completions", asked | {PROMPT: 1})
    await call("POST", "/v1/chat/completions", asked, Authorization=f"Bearer {running.secret_key}x")
    await call("POST", "/v1/responses", {"model": "default", "input": PROMPT, "previous_response_id": client.token})
    await call("POST", "/v1/responses", {"model": "default", "input": f"{PROMPT} #fault=500", "stream": True})
    await call("GET", f"/v1/responses/{client.token}")
    spoken = {"role": "user", "parts": [{"type": "text", "text": ANSWER}]}
    for more in ({}, {PROMPT: 1}, {"persona": PROMPT}, {"trigger": PROMPT}, {"replacements": {PROMPT: PROMPT}}):
        await call("POST", "/api/chat", {"id": f"chat {PROMPT}", "messages": [spoken], **more})
    await call("POST", "/api/chat", {"id": "c", "messages": [{"role": PROMPT, "parts": [{"type": PROMPT}]}]})
    for path in (
        *(f"/api/chat/{PROMPT}/stream", f"/api/chat/{client.token}"),
        f"/v1/ag-ui/{PROMPT}/stream?runId={PROMPT}&protocolVersion={PROMPT}",
    ):
        await call("GET", path)
    run = {"threadId": "t", "runId": "r", "messages": [{"role": "user", "content": ANSWER}]}
    await call("POST", "/v1/ag-ui", run)
    await call("POST", "/v1/ag-ui", run | {"forwardedProps": {PROMPT: PROMPT}})
    await call("POST", "/v1/ag-ui", run | {"messages": [{"role": PROMPT}]})
    for token in (client.token, client.token + "x", running.secret_key):
        async with running.http.ws_connect(
            f"{running.url}/v1/ws", protocols=("hyperleap.chat.v1", f"hgt.{token}")
        ) as ws:
            await ws.send_str('{"type":"turn.start","conversation_id":"x","message":"' + PROMPT + '"}')
            await ws.send_str('{"type":"' + PROMPT + '","token":"' + client.token + '"}')
            await ws.send_str("{" + PROMPT)
            await ws.send_bytes(PROMPT.encode())
            async with asyncio.timeout(5):
                told += [str(message.data).encode() async for message in ws]
    head = f"POST {turns} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {client.token}\r\n".encode()
    json_head = head + b"Content-Type: application/json\r\n"
    for request in (
        json_head + b"Transfer-Encoding: chunked\r\n\r\n" + b'{"message":"' + PROMPT.encode() + b'"}',
        json_head + b"Content-Length: 20\r\n\r\n" + b'{"message":"' + PROMPT.encode() + b'"}',
        json_head + b"Bad\x00Header: " + running.secret_key.encode() + b"\r\n\r\n",
        head + b"Cookie: session=" + client.token.encode() + b"\x00\r\n\r\n",
        head + b"X-Note: " + client.token.encode() + b"\x01\r\n\r\n",
        head + b" folded " + client.token.encode() + b"\r\n\r\n",
    ):
        await raw(running, request)
    return told


async def test_secrets_and_words_are_in_no_log_metric_span_or_error(
    start_gateway: StartGateway, sign_in: SignIn, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a varied session logs, audit, metrics, spans and errors hold no credential, no user id and no words."""
    async with collector() as spans:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", spans.url)
        await _search_all(await start_gateway(), sign_in, log, spans)


async def _search_all(running: Running, sign_in: SignIn, log: io.StringIO, spans: Collector) -> None:
    client = await sign_in(running, USER)
    told = await varied_session(running, client)
    await eventually(lambda: running.gateway.turns.running == 0, "all turns to end")
    async with running.http.get(f"{running.internal_url}/metrics") as response:
        metrics = await response.text()
    await running.gateway.tracing.aclose()  # which sends what there is
    exported = b"".join(spans.bodies).decode("utf-8", "replace")
    assert len(spans.spans) > 100
    assert {span.name for span in spans.spans} >= {"turn", "chat default", "command turn.start", "admission"}
    lines = log.getvalue().splitlines()
    assert len(lines) > 40
    assert len([line for line in lines if '"gateway.audit"' in line]) > 5
    assert any('"turn.ended"' in line for line in lines)
    signature = client.token.rpartition(".")[2]
    secrets = {
        "vendor key": VENDOR_KEY,
        "secret key": running.secret_key.rpartition(".")[2],
        "publishable key": running.publishable_key.rpartition(".")[2],
        "token": signature,
    }
    words = {"prompt or answer": PROMPT, "comment": COMMENT, "user": USER}
    found = [f"{name} in the log: {line}" for line in lines for name, word in (secrets | words).items() if word in line]
    found += [f"{name} in a span" for name, word in (secrets | words).items() if word in exported]
    found += [f"{name} in the metrics" for name, word in (secrets | words).items() if word in metrics]
    found += [
        f"{name} in an error: {raw[:300]!r}"
        for raw in told
        for name, word in (secrets | {"comment": COMMENT, "user": USER}).items()
        if word.encode() in raw
    ]
    # A field that a client made up is named in the error, cut short; its value is not.
    found += [f"prompt in an error: {raw[:300]!r}" for raw in told if raw.count(PROMPT.encode()) > 1]
    assert not found, "\n".join(found)


async def test_secrets_of_the_vendor_reach_no_client(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """No answer, stream or header of a user holds the vendor's key, persona id or the hash that the vendor knows."""
    running = await start_gateway()
    client = await sign_in(running)
    conversation = await client.conversation()
    shown = bytearray()
    async with client.ask(conversation, "Hi #citations #tokens=4") as reader:
        await reader.rest()
        shown += reader.raw + repr(reader.response.headers).encode()
    for method, path, body in (
        ("POST", "/v1/conversations", {}),
        ("GET", "/v1/conversations", None),
        ("GET", f"/v1/conversations/{conversation}", None),
        ("GET", f"/v1/turns/{reader.turn_id}/events", None),
    ):
        answer = await client.call(method, path, body)
        shown += answer.raw + repr(answer.headers).encode()
    kept = running.simulator.conversations.get(conversation)
    assert kept is not None
    assert kept.external_user_id is not None
    for word in (VENDOR_KEY, str(kept.persona_id), kept.external_user_id, kept.external_user_id.partition(":")[2]):
        assert word.encode() not in shown


async def test_secrets_in_the_store_are_hashed_and_keys_carry_the_tenant(running: Running, sign_in: SignIn) -> None:
    """Redis holds no key, token or user id in clear, and every key of this tenant begins with its name."""
    client = await sign_in(running, USER)
    conversation = await client.conversation()
    await client.call(
        "POST", f"/v1/conversations/{conversation}/turns", {"message": "Hi #tokens=1"}, Idempotency_Key="k1"
    )
    redis = running.gateway.redis
    names = [name.decode() for name in await redis.call("KEYS", f"*{running.tenant}*")]
    assert len(names) > 5
    assert [name for name in names if not name.startswith(f"hg:{{{running.tenant}}}:")] == []
    for name in names:
        dump = await redis.call("DUMP", name)
        for word in (
            USER,
            running.secret_key.rpartition(".")[2],
            running.publishable_key.rpartition(".")[2],
            client.token.rpartition(".")[2],
        ):
            assert word not in name
            assert word.encode() not in dump
        assert int(await redis.call("TTL", name)) > 0 or ":key" in name, f"{name} would stay for ever"
