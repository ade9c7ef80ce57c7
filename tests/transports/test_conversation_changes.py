"""Changes of a conversation: what its owner sets is so at Hyperleap and in every answer, all else refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import TENANT_TOML, Running, StartGateway
from tests.transports.client import Client
from tests.transports.conftest import SignIn


def kept(running: Running, conversation: str) -> tuple[Any, ...]:
    """What the stand-in keeps of a conversation that can be changed."""
    one = running.simulator.conversations.get(conversation)
    assert one is not None
    return one.name, one.status, one.metadata, one.is_active


async def test_change_of_all_is_at_the_vendor_and_in_every_answer(running: Running, client: Client) -> None:
    """One PATCH sets all four; its answer, GET, the list and Hyperleap agree, and the transcript stays."""
    conversation = await client.conversation(metadata={"old": 1})
    await client.complete(conversation, "Hi #tokens=2")
    wanted = {"name": "Zürich trip", "status": "Closed", "metadata": {"stage": 2, "tags": ["a"]}, "active": False}
    changed = await client.call("PATCH", f"/v1/conversations/{conversation}", wanted)
    assert changed.status == 200
    assert {name: changed.body[name] for name in wanted} == wanted
    assert len(changed.body["messages"]) == 2
    assert kept(running, conversation) == ("Zürich trip", "Closed", wanted["metadata"], False)
    assert (await client.call("GET", f"/v1/conversations/{conversation}")).body == changed.body
    (listed,) = (await client.call("GET", "/v1/conversations")).body["data"]
    assert (listed["name"], listed["status"], listed["active"]) == ("Zürich trip", "Closed", False)


async def test_change_of_one_leaves_the_others(running: Running, client: Client) -> None:
    """What is not given stays; null empties a name; metadata are replaced as a whole."""
    conversation = await client.conversation(metadata={"old": 1})
    path = f"/v1/conversations/{conversation}"
    await client.call("PATCH", path, {"name": "One", "active": False})
    assert (await client.call("PATCH", path, {"metadata": {"new": 1}})).body["name"] == "One"
    assert (await client.call("PATCH", path, {"name": None, "active": True})).body["metadata"] == {"new": 1}
    assert kept(running, conversation) == (None, "Active", {"new": 1}, True)


async def test_change_outlives_the_cache(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """A record that left the cache comes back from Hyperleap with what was set."""
    running = await start_gateway()
    client = await sign_in(running)
    conversation = await client.conversation()
    changed = await client.call("PATCH", f"/v1/conversations/{conversation}", {"name": "Kept", "active": False})
    await running.gateway.redis.call("DEL", f"hg:{{{running.tenant}}}:conv:{conversation}")
    (listed,) = (await client.call("GET", "/v1/conversations")).body["data"]
    assert (listed["name"], listed["active"]) == ("Kept", False)
    again = (await client.call("GET", f"/v1/conversations/{conversation}")).body
    assert again | {"created_at": None} == changed.body | {"created_at": None}


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({}, "missing_field", "name"),
        ({"title": "x"}, "unknown_field", "title"),
        ({"name": "x", "conversationName": "y"}, "unknown_field", "conversationName"),
        ({"name": 7}, "wrong_type", "name"),
        ({"name": "x" * 257}, "invalid_value", "name"),
        ({"status": ["Closed"]}, "wrong_type", "status"),
        ({"status": "x" * 257}, "invalid_value", "status"),
        ({"metadata": None}, "wrong_type", "metadata"),
        ({"metadata": "x"}, "wrong_type", "metadata"),
        ({"metadata": {str(n): n for n in range(33)}}, "invalid_value", "metadata"),
        ({"metadata": {"x": "y" * 16_384}}, "invalid_value", "metadata"),
        ({"active": None}, "wrong_type", "active"),
        ({"active": "false"}, "wrong_type", "active"),
        ({"name": "fine", "active": 1}, "wrong_type", "active"),
        ({"active": False, "name": "x" * 257}, "invalid_value", "name"),
    ],
)
async def test_change_that_is_wrong_changes_nothing(
    body: dict[str, Any], code: str, field: str, running: Running, client: Client
) -> None:
    """Each wrong body is 422 with its code and field; nothing of it reaches Hyperleap, what is right beside it too."""
    conversation = await client.conversation()
    before, requests = kept(running, conversation), running.simulator.state.requests
    answer = await client.call("PATCH", f"/v1/conversations/{conversation}", body)
    assert (answer.status, answer.body["code"], answer.body["field"]) == (422, code, field)
    assert (kept(running, conversation), running.simulator.state.requests) == (before, requests)


async def test_change_that_the_vendor_breaks_off_tells_what_stands(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """Of several attributes those before the failure stand, here and there, and are named; the rest is as it was."""
    running = await start_gateway(simulator={"limit_per_minute": 3})
    client = await sign_in(running)
    conversation = await client.conversation()
    answer = await client.call(
        "PATCH", f"/v1/conversations/{conversation}", {"name": "New", "status": "Closed", "metadata": {"a": 1}}
    )
    assert (answer.status, answer.body["code"]) == (503, "upstream_rate_limited")
    assert answer.body["changed"] == ["name", "status"]
    assert kept(running, conversation) == ("New", "Closed", {}, True)
    body = (await client.call("GET", f"/v1/conversations/{conversation}")).body
    assert (body["name"], body["status"], body["metadata"]) == ("New", "Closed", {})


async def test_change_of_what_is_gone_at_the_vendor_is_not_found(running: Running, client: Client) -> None:
    """A conversation that is cached here, and deleted there, is told as gone."""
    conversation = await client.conversation()
    del running.simulator.conversations._by_id[conversation]
    answer = await client.call("PATCH", f"/v1/conversations/{conversation}", {"name": "New"})
    assert (answer.status, answer.body["code"]) == (404, "not_found")


async def test_change_is_limited_by_itself_and_as_one(start_gateway: StartGateway, sign_in: SignIn) -> None:
    """A PATCH of several attributes is one request of its kind; beyond the limit nothing is asked of Hyperleap."""
    toml = TENANT_TOML.format(tenant="t-changes", persona="6f1c8f0e-4f3e-4a9e-9d2c-0d4b1f0a2b3c")
    toml = toml.replace(
        "limits.user = { requests_per_min = 0, concurrent_turns = 0 }", "limits.user = { requests_per_min = 2 }"
    )
    running = await start_gateway(toml=toml)
    client = await sign_in(running)
    path = f"/v1/conversations/{await client.conversation()}"
    both = {"name": "A", "status": "B"}
    statuses = [(await client.call("PATCH", path, both)).status for _ in range(3)]
    assert statuses == [200, 200, 429]
    assert running.simulator.state.requests == 1 + 2 * len(both)
