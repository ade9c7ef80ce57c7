"""Keys and workspaces: a key finds its workspace's conversations only, has a limit of its own, and can be refused."""

from __future__ import annotations

import pytest

from gateway.simulator.server import SimulatorSettings
from tests.simulator.conftest import Start, http_client
from tests.simulator.test_conversations import create, say


def named(key: str) -> dict[str, str]:
    return {"x-hl-api-key": key}


async def test_conversation_is_found_by_the_keys_of_its_workspace_only(start: Start) -> None:
    """Two keys of one workspace share its conversations; to another one they are not there, whatever is asked."""
    simulator = await start(api_key="a", more_api_keys=("a2",), other_workspaces=(("b", "b2"),))
    async with http_client(simulator) as http:
        mine = await create(http, externalUserId="u")
        path = f"/conversations/{mine}"
        message_id = (await say(http, mine, "Hi"))["messageId"]
        score = {"score": 1, "comments": None, "tags": None}
        requests: list[tuple[str, str, object]] = [
            ("GET", path, None),
            ("PATCH", f"{path}/chat", {"message": "Hi"}),
            ("PATCH", f"{path}/set-score/{message_id}", score),
        ]
        for key, status in (("a2", 200), ("b", 404), ("b2", 404)):
            for method, where, body in requests:
                response = await http.request(method, where, json=body, headers=named(key))
                assert response.status_code == status, (key, where, response.text)
            listed = (await http.get("/conversations/user/u", headers=named(key))).json()["data"]
            assert [one["conversationId"] for one in listed] == ([mine] if status == 200 else [])


async def test_limit_is_counted_for_each_key_by_itself(start: Start) -> None:
    """A key that has used up its plan limit takes nothing from another, of its workspace or not."""
    simulator = await start(api_key="a", more_api_keys=("a2",), other_workspaces=(("b",),), limit_per_minute=2)
    async with http_client(simulator) as http:
        statuses = [(await http.get("/conversations")).status_code for _ in range(3)]
        assert statuses == [200, 200, 429]
        for key in ("a2", "b"):
            response = await http.get("/conversations", headers=named(key))
            assert (response.status_code, response.headers["x-ratelimit-remaining"]) == (200, "1")
    assert [simulator.served(key) for key in ("a", "a2", "b")] == [3, 1, 1]


async def test_key_that_is_refused_is_unknown_until_it_is_accepted(start: Start) -> None:
    """A key can be taken away while the simulator runs, and given back."""
    simulator = await start()
    async with http_client(simulator) as http:
        simulator.refuse_key(simulator.settings.api_key)
        assert (await http.get("/conversations")).status_code == 401
        simulator.accept_key(simulator.settings.api_key)
        assert (await http.get("/conversations")).status_code == 200


@pytest.mark.parametrize(
    "keys", [{"api_key": ""}, {"more_api_keys": ("",)}, {"api_key": "a", "other_workspaces": (("a",),)}]
)
def test_key_that_is_empty_or_of_two_workspaces_is_refused(keys: dict[str, object]) -> None:
    """A key says which workspace it opens, and one only."""
    with pytest.raises(ValueError, match="workspace"):
        SimulatorSettings(**keys)  # type: ignore[arg-type]  # what is wrong is the point
