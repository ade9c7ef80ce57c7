"""CORS: a page of a listed origin can read every answer, errors and streams included; others can read none."""

from __future__ import annotations

import pytest
from multidict import CIMultiDictProxy

from tests.conftest import Running
from tests.transports.client import Client, check_log

ORIGIN = "https://app.example"
EVIL = "https://evil.example"
EXPOSED = {"location", "retry-after", "x-request-id", "x-turn-id", "preference-applied", "traceparent"}


def assert_readable(headers: CIMultiDictProxy[str]) -> None:
    """Check that a page of the listed origin may read the answer, and nobody else by a cache's mistake."""
    assert headers.getall("Access-Control-Allow-Origin") == [ORIGIN]
    exposed = {name.strip() for name in headers["Access-Control-Expose-Headers"].lower().split(",")}
    assert exposed >= EXPOSED
    assert "Origin" in headers.getall("Vary")
    assert "Access-Control-Allow-Credentials" not in headers


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/v1/sessions", "POST"),
        ("/v1/conversations", "POST"),
        ("/v1/conversations/x/turns", "POST"),
        ("/v1/turns/x/events", "GET"),
        ("/v1/conversations/x/messages/y/feedback", "PUT"),
    ],
)
async def test_cors_preflight_of_listed_origin_allows_what_the_doors_need(
    path: str, method: str, running: Running
) -> None:
    """The preflight names the method and every header that the API asks clients to send, and may be kept a while."""
    anyone = Client(running, {})
    answer = await anyone.call(
        "OPTIONS",
        path,
        Origin=ORIGIN,
        Access_Control_Request_Method=method,
        Access_Control_Request_Headers="authorization,content-type,idempotency-key,last-event-id",
    )
    assert answer.status in (200, 204)
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert method in answer.headers["Access-Control-Allow-Methods"]
    allowed = {name.strip() for name in answer.headers["Access-Control-Allow-Headers"].lower().split(",")}
    assert allowed >= {
        "authorization",
        "content-type",
        "idempotency-key",
        "last-event-id",
        "prefer",
        "x-request-id",
        "traceparent",
    }
    assert int(answer.headers["Access-Control-Max-Age"]) > 0
    assert "Origin" in answer.headers.getall("Vary")


async def test_cors_preflight_of_unknown_origin_allows_nothing(running: Running) -> None:
    """A site that no tenant lists gets no permission, and no crash."""
    answer = await Client(running, {}).call(
        "OPTIONS", "/v1/conversations", Origin=EVIL, Access_Control_Request_Method="POST"
    )
    assert not [name for name in answer.headers if name.lower().startswith("access-control-")]
    assert "Origin" in answer.headers.getall("Vary")


async def test_cors_is_on_every_kind_of_answer(running: Running, client: Client) -> None:
    """Answers, 204s, and errors of every origin, from the router's to the services', are readable."""
    conversation = await client.conversation()
    ending = (await client.complete(conversation, "Hi #tokens=1"))[-1]
    anyone = Client(running, {})
    nobody = Client(running, {"Authorization": "Bearer nonsense"})
    rows = [
        (client, "GET", "/v1/conversations", None, 200),
        (client, "POST", "/v1/conversations", {}, 201),
        (client, "GET", f"/v1/conversations/{conversation}/events", None, 204),
        (client, "GET", f"/v1/turns/{ending.turn_id}/events?after={ending.id}", None, 204),
        (client, "POST", f"/v1/conversations/{conversation}/turns", {"message": ""}, 422),
        (client, "POST", f"/v1/conversations/{conversation}/turns", {"message": "Hi #fault=429"}, 503),
        (client, "GET", "/v1/nowhere", None, 404),
        (client, "DELETE", "/v1/conversations", None, 405),
        (anyone, "GET", "/v1/conversations", None, 401),
        (nobody, "GET", "/v1/conversations", None, 401),
        (anyone, "POST", "/v1/sessions", {}, 401),
    ]
    for who, method, path, body, status in rows:
        answer = await who.call(method, path, body, Origin=ORIGIN)
        assert answer.status == status, (method, path)
        assert_readable(answer.headers)


async def test_cors_is_on_streamed_answers(client: Client) -> None:
    """A stream's headers are sent before its first event, with CORS in them."""
    conversation = await client.conversation()
    async with client.ask(conversation, "Hi #tokens=2", Origin=ORIGIN) as reader:
        check_log(await reader.rest())
    assert_readable(reader.response.headers)
    async with client.follow(reader.turn_id, Origin=ORIGIN) as again:
        check_log(await again.rest())
    assert_readable(again.response.headers)


async def test_cors_of_foreign_origin_with_good_token_is_403_and_unreadable(running: Running, client: Client) -> None:
    """A token on a page of a site that is not listed opens nothing, and its script can read nothing."""
    conversation = await client.conversation()
    for method, path, body in (
        ("GET", "/v1/conversations", None),
        ("POST", f"/v1/conversations/{conversation}/turns", {"message": "Hi"}),
    ):
        answer = await client.call(method, path, body, Origin=EVIL)
        assert (answer.status, answer.body["code"]) == (403, "origin_not_allowed")
        assert "Access-Control-Allow-Origin" not in answer.headers
    assert len(running.simulator.bill) == 0


async def test_cors_of_null_origin_is_refused(client: Client) -> None:
    """A sandboxed frame's origin ``null`` is nobody's."""
    answer = await client.call("GET", "/v1/conversations", Origin="null")
    assert (answer.status, answer.body["code"]) == (403, "origin_not_allowed")
    assert "Access-Control-Allow-Origin" not in answer.headers


async def test_cors_without_origin_varies_all_the_same(client: Client) -> None:
    """An answer to a program without an origin may not be taken for a page's by a cache."""
    answer = await client.call("GET", "/v1/conversations")
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert "Origin" in answer.headers.getall("Vary")
