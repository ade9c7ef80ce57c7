"""Credentials and origins as strangers send them: each refused with the right code, and nothing of it comes back."""

from __future__ import annotations

import asyncio
import base64
import json
import time

import jwt
import pytest

from tests.conftest import SECRETS, Running
from tests.transports.client import Client, Closed, Socket

ORIGIN = "https://app.example"


def segment(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


async def raw(running: Running, *lines: str) -> tuple[int, bytes]:
    """Send a request of these header lines as they are, and read the whole answer."""
    host, port = running.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = ["GET /v1/conversations HTTP/1.1", "Host: x", "Connection: close", *lines, "", ""]
    writer.write("\r\n".join(head).encode("utf-8", "surrogateescape"))
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    return int(answer.split(b" ", 2)[1]), answer


async def test_token_that_is_not_sound_is_refused_with_its_code(running: Running, client: Client) -> None:
    """Over HTTP as in every door: expired can be renewed, all else is invalid."""
    head, body, signature = client.token.removeprefix("hgt_").split(".")
    kid = jwt.get_unverified_header(f"{head}.{body}.{signature}")["kid"]
    claims = jwt.decode(f"{head}.{body}.{signature}", options={"verify_signature": False})
    now_s = int(time.time())

    def signed(**changed: object) -> str:
        return "hgt_" + jwt.encode({**claims, **changed}, SECRETS.signing_key, algorithm="HS256", headers={"kid": kid})

    rows = [
        (signed(exp=now_s - 60, iat=now_s - 100), "token_expired"),
        (signed(nbf=now_s + 1000), "credential_invalid"),
        (signed(aud="another"), "credential_invalid"),
        (signed(aud="hyperleap-gateway-ticket"), "credential_invalid"),
        (signed(ten="nobody"), "credential_invalid"),
        (f"hgt_{segment({'alg': 'none', 'kid': kid})}.{body}.", "credential_invalid"),
        (f"hgt_{head}.{body}.{signature[:-4]}AAAA", "credential_invalid"),
        (signed(note="x" * 4096), "credential_invalid"),
        (f"{head}.{body}.{signature}", "credential_invalid"),
        (f"hgv_{head}.{body}.{signature}", "credential_invalid"),
        (running.secret_key, "forbidden"),
    ]
    for token, code in rows:
        answer = await Client(running, {"Authorization": f"Bearer {token}"}).call("GET", "/v1/conversations")
        assert (answer.status, answer.body["code"]) == (403 if code == "forbidden" else 401, code), token[:40]
        for piece in token.split("."):
            assert len(piece) < 12 or piece not in answer.raw.decode() + str(answer.headers)
    assert (await client.call("GET", "/v1/conversations")).status == 200


async def test_header_of_a_token_at_its_limit_and_beyond_what_is_read(running: Running, client: Client) -> None:
    """4 KiB + 1 is an invalid token; above 8,190 bytes aiohttp answers before any of our handlers, as a problem too."""
    for size, status, code in ((4097, 401, "credential_invalid"), (9000, 431, "headers_too_large")):
        token = "hgt_" + "a" * (size - 4)
        answer = await Client(running, {"Authorization": f"Bearer {token}"}).call("GET", "/v1/conversations")
        assert (answer.status, answer.body["code"]) == (status, code)
        assert "aaaaaaaa" not in answer.raw.decode() + str(answer.headers)


async def test_credential_shown_twice_is_refused(running: Running, client: Client) -> None:
    """Of two Authorization headers nobody can say which is meant, be they the same."""
    for other in (client.token, "hgt_x"):
        status, answer = await raw(running, f"Authorization: Bearer {client.token}", f"authorization: Bearer {other}")
        assert status == 401
        assert b"credential_invalid" in answer
        assert client.token.encode() not in answer


@pytest.mark.parametrize(
    "line",
    ["Authorization: Bearer", "Authorization:", "Authorization: Bearer  ", "Authorization: Basic {token}"],
)
async def test_header_without_a_bearer_token_is_refused(running: Running, client: Client, line: str) -> None:
    """A scheme without a credential, or another scheme, is no credential."""
    status, answer = await raw(running, line.format(token=client.token))
    assert status == 401
    assert b"credential_invalid" in answer


async def test_header_injection_reaches_no_answer(running: Running) -> None:
    """What a stranger puts into a value never becomes a header or a line of ours."""
    for line in (
        "x-request-id: a\rInjected: 1",
        "x-request-id: a%0d%0aInjected: 1",
        "traceparent: 00-\x0bInjected-01",
        "Origin: https://app.example\x0b",
        "Authorization: Bearer a\x00b",
    ):
        _, answer = await raw(running, line)
        head = answer.partition(b"\r\n\r\n")[0].lower()
        assert b"injected" not in head
        assert b"access-control-allow-origin" not in head


@pytest.mark.parametrize(
    "origin",
    [
        "HTTPS://APP.EXAMPLE",
        "https://App.example",
        "http://app.example",
        "https://app.example:443",
        "https://app.example:8443",
        "https://app.example.",
        "https://app.example/",
        "https://app.example.evil.example",
        "https://evil.example#https://app.example",
        "https://app.example@evil.example",
        "https://user@app.example",
        "https://sub.app.example",
        "https://\u0430pp.example",  # a Cyrillic а
        "https://xn--pp-7kc.example",
        "https://app\u3002example",
        "null",
        "*",
    ],
)
async def test_origin_that_only_looks_like_a_listed_one_is_refused(
    running: Running, client: Client, origin: str
) -> None:
    """Origins are compared as browsers send them, byte by byte: no case, port, dot or look-alike passes."""
    status, answer = await raw(running, f"Authorization: Bearer {client.token}", f"Origin: {origin}")
    assert status == 403
    assert b"origin_not_allowed" in answer
    assert b"access-control-allow-origin" not in answer.lower()
    key = Client(running, {"Authorization": f"Bearer {running.publishable_key}"})
    if origin.isascii():
        opened = await key.call("POST", "/v1/sessions", {}, Origin=origin)
        assert (opened.status, opened.body["code"]) == (403, "origin_not_allowed")


async def test_origin_shown_twice_is_not_the_listed_one(running: Running, client: Client) -> None:
    """A second Origin header does not hide behind a listed first one."""
    for first, second in ((ORIGIN, "https://evil.example"), ("https://evil.example", ORIGIN)):
        status, answer = await raw(
            running, f"Authorization: Bearer {client.token}", f"Origin: {first}", f"Origin: {second}"
        )
        assert status in (400, 403)
        assert b"access-control-allow-origin" not in answer.lower()


async def test_websocket_that_shows_two_tokens_is_refused(running: Running, client: Client) -> None:
    """One credential a socket: not two entries, not an entry beside a header."""
    entry = f"hgt.{client.token}"
    for protocols, headers in (
        (("hyperleap.chat.v1", entry, "hgt.hgt_x"), {}),
        (("hyperleap.chat.v1", entry, entry), {}),
        (("hyperleap.chat.v1", entry), {"Authorization": f"Bearer {client.token}"}),
    ):
        async with running.http.ws_connect(f"{running.url}/v1/ws", protocols=protocols, headers=headers) as ws:
            assert await Socket(ws).closed() == Closed(4503, "credential_invalid")
