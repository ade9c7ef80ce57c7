"""A thousand hostile requests make no more series than the configuration allows, and leave no word of theirs behind."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest
from aiohttp import ClientError, WSServerHandshakeError

from tests.conftest import PERSONA_ID, Running, StartGateway
from tests.transports.client import Client, eventually, metric
from tests.transports.conftest import SignIn

REQUESTS = 1000
AT_ONCE = 8
SERIES = re.compile(r"^([a-zA-Z_:]\w*)(\{.*\})? \S+$", re.MULTILINE)
TOML = f"""
[tenants.acme]
anonymous = true
origins = ["https://app.example"]
[tenants.acme.limits]
user = {{ requests_per_min = 100000, concurrent_turns = 1000 }}
tenant = {{ requests_per_min = 100000, tokens_per_day = 100000000 }}
[tenants.acme.personas.default]
persona_id = "{PERSONA_ID}"
"""
FAULTS = ("500", "cut", "reset", "garbage", "empty-body-error:418", "no-usage", "moderated", "batch", "extra-role")
ODD_METHODS = ("PROPFIND", "PURGE", "SEARCH", "TRACE", "MKCOL", "UNLOCK")
Attack = Callable[["Mallory", str], Awaitable[object]]


class Mallory:
    """One who has a token like anybody, and writes a word of her own wherever there is room for one."""

    def __init__(self, running: Running, client: Client, conversation: str) -> None:
        self.running = running
        self.client = client
        self.conversation = conversation
        self.chance = random.Random(7)

    async def send(self, method: str, path: str, body: Any = None, /, **headers: str) -> int:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.running.http.request(
            method, self.running.url + path, json=body, headers={**self.client.headers, **named}
        ) as response:
            await response.read()
            return response.status

    async def path(self, word: str) -> object:
        return await self.send("GET", f"/{word}/{word}.php?{word}={word}")

    async def method(self, word: str) -> object:
        method = self.chance.choice((*ODD_METHODS, word.upper().replace("-", "")))  # the last is refused as no HTTP
        return await self.send(method, self.chance.choice(("/v1/conversations", "/", "/v1/ws")))

    async def host(self, word: str) -> object:
        return await self.send("GET", "/v1/conversations", Host=f"{word}.example", Origin=f"https://{word}.example")

    async def headers(self, word: str) -> object:
        return await self.send(
            *("POST", "/v1/conversations", {}),
            X_Request_Id=word * 3,
            traceparent=f"00-{word}-{word}-01",
            tracestate=f"{word}={word}",
            User_Agent=word,
            Idempotency_Key=word,
            **{word: word},
        )

    async def persona(self, word: str) -> object:
        return await self.send("POST", "/v1/conversations", {"persona": word, "replacements": {word: word}})

    async def model(self, word: str) -> object:
        body = {"model": word, "messages": [{"role": "user", "content": word}], "stream": self.chance.random() < 0.5}
        return await self.send("POST", "/v1/chat/completions", body)

    async def drop_in(self, word: str) -> object:
        return await self.send("POST", f"/hyperleap/{word}", {"personaId": word}, x_hl_api_key=word)

    async def tenant(self, word: str) -> object:
        return await self.send("GET", "/v1/conversations", Authorization=f"Bearer hgs_{word}.{word}.{word}")

    async def user(self, word: str) -> object:
        token = await self.running.token(word)
        return await self.send("POST", "/v1/conversations", {}, Authorization=f"Bearer {token}")

    async def question(self, word: str) -> object:
        conversation = await self.client.conversation()
        path = f"/v1/conversations/{conversation}/turns"
        fault = self.chance.choice(FAULTS)
        return await self.send("POST", path, {"message": f"{word} #tokens=3 #rate=0 #fault={fault}"})

    async def judgement(self, word: str) -> object:
        path = f"/v1/conversations/{self.conversation}/messages/{self.chance.choice((word, PERSONA_ID))}/feedback"
        return await self.send("PUT", path, {"score": self.chance.randint(-99, 99), "tags": [word], "comments": word})

    async def ids(self, word: str) -> object:
        what = self.chance.choice(("turns/{}/events", "turns/{}/stop", "conversations/{}", "conversations/{}/events"))
        return await self.send(self.chance.choice(("GET", "POST")), "/v1/" + what.format(word), Last_Event_ID=word)

    async def nonsense(self, word: str) -> object:
        async with self.running.http.post(
            f"{self.running.url}/v1/conversations/{self.conversation}/turns",
            data=f'{{"{word}": '.encode(),
            headers={**self.client.headers, "Content-Type": self.chance.choice(("application/json", f"text/{word}"))},
        ) as response:
            return await response.read()

    async def socket(self, word: str) -> object:
        with suppress(WSServerHandshakeError):
            async with self.running.http.ws_connect(
                f"{self.running.url}/v1/ws", protocols=("hyperleap.chat.v1", f"hgt.{self.client.token}", word)
            ) as ws:
                await ws.send_str(f'{{"type":"{word}","request_id":"{word}"}}')
                await ws.receive(timeout=10)
        return None


ATTACKS: Sequence[Attack] = (
    *(Mallory.path, Mallory.method, Mallory.host, Mallory.headers, Mallory.persona, Mallory.model, Mallory.drop_in),
    *(Mallory.tenant, Mallory.user, Mallory.question, Mallory.judgement, Mallory.ids, Mallory.nonsense, Mallory.socket),
)


async def series(running: Running) -> list[str]:
    async with running.http.get(f"{running.internal_url}/metrics") as response:
        return [name + labels for name, labels in SERIES.findall(await response.text())]


@pytest.mark.timeout(180)
async def test_a_thousand_hostile_requests_stay_within_the_series_that_were_computed(
    start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """Paths, methods, hosts, headers, personas, tenants, users and bodies of a stranger's make no series of their own.

    The bound is what the gateway itself computed from its configuration before the first of them.
    """
    running = await start_gateway(toml=TOML)
    client = await sign_in(running)
    mallory = Mallory(running, client, await client.conversation())
    bound = await metric(running, "gateway_metrics_series_max")
    words = [f"evil-{mallory.chance.randbytes(6).hex()}" for _ in range(REQUESTS)]
    refused = 0

    async def attack(number: int) -> None:
        nonlocal refused
        try:
            await ATTACKS[number % len(ATTACKS)](mallory, words[number])
        except (ClientError, OSError, ValueError):
            refused += 1  # aiohttp closes on some: that is an answer too

    for first in range(0, REQUESTS, AT_ONCE):
        await asyncio.gather(*(attack(number) for number in range(first, min(first + AT_ONCE, REQUESTS))))
    await eventually(lambda: not running.gateway.turns.running, "every turn to end")
    seen = await series(running)
    assert refused < REQUESTS / 20
    assert await metric(running, "gateway_requests_total") > REQUESTS * 0.9
    assert len(seen) == len(set(seen))
    assert await metric(running, "gateway_metrics_series") == len(await series(running))
    assert await metric(running, "gateway_metrics_series_max") == bound >= len(seen)
    told = "\n".join(seen).lower()
    assert [word for word in words if word in told or word.replace("-", "") in told] == []
    others = [line for line in seen if '"other"' in line]
    assert any(line.startswith("gateway_requests_total") and 'method="other"' in line for line in others)
    assert any(line.startswith("gateway_requests_total") and 'route="other"' in line for line in others)


async def test_further_strangers_add_no_series(running: Running, client: Client) -> None:
    """Once each kind of nonsense has been seen, more of it with other words adds nothing."""
    mallory = Mallory(running, client, await client.conversation())
    kinds = (Mallory.path, Mallory.persona, Mallory.model, Mallory.tenant, Mallory.headers)
    for kind in kinds:
        await kind(mallory, "evil-first")
    before = set(await series(running))
    for number in range(10):
        for kind in kinds:
            await kind(mallory, f"evil-{number}")
    assert set(await series(running)) == before
