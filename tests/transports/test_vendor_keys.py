"""Vendor keys of tenants: rotated and refused under load without a failed turn, each its tenants' only, never shown."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.core.identity import TenantId
from gateway.core.keys import KeyKind
from gateway.sections import SettingsError
from gateway.upstream import keyring
from tests.conftest import PERSONA_ID, Running, StartGateway
from tests.transports.client import Client, check_log, eventually, metric
from tests.transports.conftest import SignIn
from tests.transports.test_secrets import log

__all__ = ["log"]  # a fixture

OLD, NEW, OTHER = "hl-old-key-of-acme-0001", "hl-new-key-of-acme-0002", "hl-other-key-of-acme-0003"
FOREIGN = "hl-key-of-umbrella-0004"

TENANT = """
[tenants.{tenant}]
vendor_keys = [{keys}]
limits.tenant = {{ requests_per_min = 0 }}
limits.user = {{ requests_per_min = 0, concurrent_turns = 0 }}
[tenants.{tenant}.personas.default]
persona_id = "{persona}"
"""


def written(**tenants: tuple[str, ...]) -> str:
    """Write the settings of tenants with their keys' labels."""
    return "".join(
        TENANT.format(tenant=tenant.replace("_", "-"), keys=", ".join(f'"{key}"' for key in keys), persona=PERSONA_ID)
        for tenant, keys in tenants.items()
    )


def unique(name: str) -> str:
    return f"{name}_{uuid.uuid4().hex[:8]}"


class Site:
    """A directory of keys and a gateway that is given nothing else."""

    def __init__(self, path: Path, start: StartGateway) -> None:
        self.path = path / "keys"
        self.path.mkdir()
        self._start = start

    def write(self, label: str, key: str) -> None:
        (self.path / label).write_text(key + "\n")

    async def start(self, toml: str, **simulator: Any) -> Running:
        environ = {"HYPERLEAP_API_KEY": "", "HYPERLEAP_KEYS_DIR": str(self.path)}
        return await self._start(toml=toml, environ=environ, simulator={"rate_per_s": 0.0, **simulator})


@pytest.fixture
def site(tmp_path: Path, start_gateway: StartGateway) -> Site:
    return Site(tmp_path, start_gateway)


async def converse(client: Client, until: Callable[[], bool]) -> int:
    """Open conversations, ask and rate until a condition holds and one round more; every one must complete."""
    rounds, over = 0, False
    while not over:
        over = until()
        conversation = await client.conversation()
        ending = check_log(await client.complete(conversation, "Hi #tokens=20"))
        assert ending.name == "turn.completed", ending
        feedback = f"/v1/conversations/{conversation}/messages/{ending.data['message_id']}/feedback"
        assert (await client.call("PUT", feedback, {"score": 5})).status == 200
        rounds += 1
    return rounds


# --- rotation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["rewrite", "swap"])
@pytest.mark.parametrize("overlap", [True, False], ids=["overlap", "at-once"])
async def test_rotation_under_load_fails_no_turn(site: Site, sign_in: SignIn, way: str, overlap: bool) -> None:
    """A key file that is rewritten, or swapped as Kubernetes does, is taken up while turns run, whether or not the
    old key still works meanwhile; answers under way go on."""
    tenant = unique("acme")
    if way == "swap":
        for version, key in (("..1", OLD), ("..2", NEW)):
            (site.path / version).mkdir()
            (site.path / version / "acme").write_text(key)
        (site.path / "..data").symlink_to("..1")
        (site.path / "acme").symlink_to("..data/acme")
    else:
        site.write("acme", OLD)
    running = await site.start(written(**{tenant: ("acme",)}), api_key=OLD, more_api_keys=(NEW,))
    simulator = running.simulator
    clients = [await sign_in(running, f"u{n}") for n in range(4)]
    slow = await clients[0].conversation()
    async with clients[0].ask(slow, "Long #tokens=60 #rate=30") as reader:
        await reader.until("message.delta")
        load = [asyncio.create_task(converse(client, lambda: simulator.served(NEW) > 8)) for client in clients]
        await eventually(lambda: simulator.served(OLD) > 20, "the old key to be used")
        if not overlap:
            simulator.refuse_key(OLD)
        if way == "swap":
            (site.path / "..data_tmp").symlink_to("..2")
            os.replace(site.path / "..data_tmp", site.path / "..data")
        else:
            site.write("acme", NEW)
        async with asyncio.timeout(20):
            rounds = await asyncio.gather(*load)
        assert min(rounds) >= 2
        assert check_log(await reader.rest()).name == "turn.completed"
    used = simulator.served(OLD)
    await converse(clients[0], lambda: True)
    assert simulator.served(OLD) == used


# --- refusal ------------------------------------------------------------------------------------------------------


async def test_refused_key_is_left_out_and_restored_without_a_failed_turn(
    site: Site, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one key of a ring is refused the other serves everything; once it is taken again, it is used again."""
    monkeypatch.setattr(keyring, "REST_MIN_S", 0.3)
    tenant = unique("acme")
    site.write("acme", OLD)
    site.write("acme-2", OTHER)
    running = await site.start(written(**{tenant: ("acme", "acme-2")}), api_key=OLD, more_api_keys=(OTHER,))
    simulator, client = running.simulator, await sign_in(running)
    await converse(client, lambda: min(simulator.served(OLD), simulator.served(OTHER)) >= 4)
    simulator.refuse_key(OTHER)
    before = simulator.served(OLD)
    await converse(client, lambda: simulator.served(OLD) >= before + 9)
    assert await metric(running, "gateway_vendor_key_healthy", key="acme-2") == 0
    assert await metric(running, "gateway_vendor_key_healthy", key="acme") == 1
    assert await metric(running, "gateway_vendor_key_requests_total", key="acme-2", outcome="refused") >= 1
    simulator.accept_key(OTHER)
    before = simulator.served(OTHER)
    async with asyncio.timeout(10):
        await converse(client, lambda: simulator.served(OTHER) >= before + 4)
    assert await metric(running, "gateway_vendor_key_healthy", key="acme-2") == 1


async def test_keys_that_are_all_refused_are_told_as_the_vendors_refusal(site: Site, sign_in: SignIn) -> None:
    """With no key that works left, turns and creations fail by the vendor's own refusal, and work again with one."""
    tenant = unique("acme")
    site.write("acme", OLD)
    site.write("acme-2", OTHER)
    running = await site.start(written(**{tenant: ("acme", "acme-2")}), api_key=OLD, more_api_keys=(OTHER, NEW))
    client = await sign_in(running)
    conversation = await client.conversation()
    for key in (OLD, OTHER):
        running.simulator.refuse_key(key)
    for _ in range(3):
        ending = (await client.complete(conversation, "Hi"))[-1]
        assert (ending.name, ending.data["error"]["code"]) == ("turn.failed", "upstream_unauthorized")
        refused = await client.call("POST", "/v1/conversations", {})
        assert (refused.status, refused.body["code"]) == (502, "upstream_unauthorized")
    site.write("acme", NEW)
    await eventually(
        lambda: _completes(client, conversation), "the new key to be taken up", within_s=keyring.LOOK_EVERY_S + 5
    )


async def _completes(client: Client, conversation: str) -> bool:
    return (await client.complete(conversation, "Hi"))[-1].name == "turn.completed"


@pytest.mark.parametrize(("status", "attempts"), [(401, 2), (403, 1), (400, 1), (500, 1), (503, 1)])
async def test_chat_is_sent_again_after_401_alone_and_once(
    site: Site, sign_in: SignIn, status: int, attempts: int
) -> None:
    """A 401 is sent once more with another key; any other refusal, and a second 401, are told as they are."""
    tenant = unique("acme")
    site.write("acme", OLD)
    site.write("acme-2", OTHER)
    running = await site.start(written(**{tenant: ("acme", "acme-2")}), api_key=OLD, more_api_keys=(OTHER,))
    client = await sign_in(running)
    conversation = await client.conversation()
    ending = (await client.complete(conversation, f"Hi #fault=empty-body-error:{status}"))[-1]
    assert ending.name == "turn.failed"
    assert ending.data["usage"]["total_tokens"] == 0
    assert [run.outcome for run in running.simulator.bill.runs] == ["refused"] * attempts


# --- isolation ----------------------------------------------------------------------------------------------------


async def test_key_of_one_tenant_is_never_used_for_another(site: Site, sign_in: SignIn) -> None:
    """Two tenants with keys of two workspaces, at once: each one's conversations are in its own, all of them."""
    acme, umbrella = unique("acme"), unique("umbrella")
    site.write("acme", OLD)
    site.write("acme-2", OTHER)
    site.write("umbrella", FOREIGN)
    running = await site.start(
        written(**{acme: ("acme", "acme-2"), umbrella: ("umbrella",)}),
        api_key=OLD,
        more_api_keys=(OTHER,),
        other_workspaces=((FOREIGN,),),
    )
    simulator = running.simulator
    ours = await sign_in(running)
    second = await running.gateway.auth.keys.mint(TenantId(umbrella.replace("_", "-")), KeyKind.SECRET, "tests")
    async with running.http.post(
        f"{running.url}/v1/sessions", json={"user_id": "u1"}, headers={"Authorization": f"Bearer {second.key}"}
    ) as response:
        theirs = Client(running, {"Authorization": f"Bearer {(await response.json())['token']}"})
    conversations: dict[int, list[str]] = {0: [], 1: []}
    for _ in range(8):
        for workspace, client in enumerate((ours, theirs)):
            conversations[workspace].append(await client.conversation())
    endings = await asyncio.gather(
        *(ours.complete(conversation, "Hi") for conversation in conversations[0]),
        *(theirs.complete(conversation, "Hi") for conversation in conversations[1]),
    )
    assert {events[-1].name for events in endings} == {"turn.completed"}
    for workspace, ids in conversations.items():
        for conversation in ids:
            kept = simulator.conversations.get(conversation)
            assert kept is not None
            assert kept.workspace == workspace
    await running.gateway.redis.call("DEL", *(await _keys_of(running, ":conv:")))
    for workspace, client in enumerate((ours, theirs)):
        for conversation in conversations[workspace]:  # now read back from the vendor
            assert (await client.call("GET", f"/v1/conversations/{conversation}")).status == 200
        for conversation in conversations[1 - workspace]:
            assert (await client.call("GET", f"/v1/conversations/{conversation}")).status == 404
    assert min(simulator.served(key) for key in (OLD, OTHER)) >= 8
    assert simulator.served(FOREIGN) >= 24


async def _keys_of(running: Running, part: str) -> list[str]:
    names = [name.decode() for tenant in running.gateway.auth.tenants for name in await _names(running, tenant)]
    return [name for name in names if part in name]


async def _names(running: Running, tenant: str) -> list[bytes]:
    found: list[bytes] = await running.gateway.redis.call("KEYS", f"hg:{{{tenant}}}:*")
    return found


# --- secrecy ------------------------------------------------------------------------------------------------------


async def test_keys_are_in_no_store_log_metric_or_answer(site: Site, sign_in: SignIn, log: io.StringIO) -> None:
    """Through refusals and a rotation, no key shows anywhere; one that a programmer logs is masked, the newest too."""
    tenant = unique("acme")
    bad = unique("key").replace("_", "-")  # a label of its own, since warnings are throttled by label
    site.write("acme", OLD)
    site.write(bad, OTHER)
    running = await site.start(written(**{tenant: ("acme", bad)}), api_key=OLD, more_api_keys=(OTHER, NEW))
    client = await sign_in(running)
    told = bytearray()
    conversation = await client.conversation()
    await client.complete(conversation, "Hi")
    for key in (OLD, OTHER):
        running.simulator.refuse_key(key)
    for path, body in (("/v1/conversations", {}), (f"/v1/conversations/{conversation}/turns", {"message": "Hi"})):
        answer = await client.call("POST", path, body)
        told += answer.raw + repr(answer.headers).encode()
    (site.path / bad).write_text("two\nlines-of-a-key")  # cannot be one
    site.write("acme", NEW)

    async def told_of_both() -> bool:  # files are looked at when a key is needed
        return await _completes(client, conversation) and "vendor_key.unreadable" in log.getvalue()

    await eventually(told_of_both, "the new key to be taken up, and the bad file to be told")
    for key in (OLD, NEW, OTHER):
        logging.getLogger("gateway.tests").warning("a key %s", key)
    async with running.http.get(f"{running.internal_url}/metrics") as response:
        metrics = await response.text()
    lines = log.getvalue()
    for event in ("vendor_key.refused", "vendor_key.rotated", "vendor_key.restored"):
        assert event in lines
    names = await running.gateway.redis.call("KEYS", "*")
    stored = b"".join([name + (await running.gateway.redis.call("DUMP", name) or b"") for name in names])
    for key in (OLD, NEW, OTHER, "lines-of-a-key"):
        assert key not in lines
        assert key not in metrics
        assert key.encode() not in told
        assert key.encode() not in stored


async def test_start_with_a_key_that_is_missing_names_tenant_and_field(site: Site, sign_in: SignIn) -> None:
    """A tenant whose key cannot be read stops the start; a default key that nobody uses is not missed."""
    tenant = unique("acme")
    site.write("acme", OLD)
    with pytest.raises(SettingsError) as refused:
        await site.start(written(**{tenant: ("acme", "acme-2")}), api_key=OLD)
    assert refused.value.key == f"tenants.{tenant.replace('_', '-')}.vendor_keys"
    assert "acme-2" in refused.value.message
    running = await site.start(written(**{tenant: ("acme",)}), api_key=OLD)
    assert (await (await sign_in(running)).call("POST", "/v1/conversations", {})).status == 201
