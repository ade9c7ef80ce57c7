"""Two tenants with users who chat, so that there is something to see at the console."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from playwright.async_api import APIRequestContext, APIResponse

from tests.page.demo import Demo
from tests.page.operator import TOKEN

ACME, GLOBEX = "acme", "globex"
HOSTILE = '<img src=x onerror="window.harm=1">'
PRICES = {"currency": "EUR", "prompt_per_million": "2.50", "completion_per_million": "10"}
LONG = "Tell me all of it #tokens=6000 #rate=20"


@dataclass(slots=True)
class Customers:
    """Speaks to the gateway as the tenants' backends and users do."""

    demo: Demo
    http: APIRequestContext
    tokens: dict[str, str]

    @classmethod
    async def move_in(cls, demo: Demo, http: APIRequestContext) -> Customers:
        """Make both tenants, with a user each."""
        customers = cls(demo, http, {})
        fixed = await customers.admin("GET", "/tenants/default")
        persona = fixed["settings"]["personas"]["default"]
        for name, aliases in ((ACME, ("support", "sales")), (GLOBEX, ("default",))):
            table: dict[str, Any] = {
                "personas": dict.fromkeys(aliases, persona),
                "limits": {"user": {"requests_per_min": 0, "concurrent_turns": 0, "tokens_per_min": 0}},
            }
            if name == ACME:
                table["prices"] = PRICES
            await customers.admin("PUT", f"/tenants/{name}", table)
            label = HOSTILE if name == ACME else "backend"
            key = await customers.admin("POST", f"/tenants/{name}/keys", {"label": label})
            customers.tokens[name] = await customers._session(key["secret"])
        return customers

    async def _session(self, secret: str) -> str:
        """Open a session; a worker that has not heard of the tenant yet does so within 2 s."""
        async with asyncio.timeout(10):
            while True:
                answer = await self.http.post(
                    f"{self.demo.url}/v1/sessions",
                    data={"user_id": "ada"},
                    headers={"Authorization": f"Bearer {secret}"},
                )
                if answer.status == 201:
                    return str((await answer.json())["token"])
                await asyncio.sleep(0.05)

    async def admin(self, method: str, path: str, body: Any = None) -> Any:
        answer = await self.http.fetch(
            f"{self.demo.internal_url}/admin/v1{path}",
            method=method,
            data=body,
            headers={"Authorization": f"Bearer {TOKEN}"},
        )
        assert answer.ok, await answer.text()
        return await answer.json()

    async def post(self, tenant: str, path: str, body: Any, **headers: str) -> APIResponse:
        shown = {"Authorization": f"Bearer {self.tokens[tenant]}", **headers}
        return await self.http.post(self.demo.url + path, data=body, headers=shown)

    async def ask(self, tenant: str, persona: str, message: str, *, score: int | None = None) -> APIResponse:
        """Ask something in a new conversation and wait for the answer; judge it where a score is given.

        Returns the answer, or the refusal of either.
        """
        made = await self.post(tenant, "/v1/conversations", {"persona": persona})
        if not made.ok:
            return made
        path = f"/v1/conversations/{(await made.json())['id']}"
        answer = await self.post(tenant, f"{path}/turns", {"message": message}, Accept="application/json")
        if score is not None:
            message_id = (await answer.json())["message_id"]
            judged = await self.http.put(
                f"{self.demo.url}{path}/messages/{message_id}/feedback",
                data={"score": score},
                headers={"Authorization": f"Bearer {self.tokens[tenant]}"},
            )
            assert judged.ok, await judged.text()
        return answer

    async def begin(self, tenant: str, persona: str, message: str = LONG) -> str:
        """Set a turn going and leave; returns its id."""
        conversation = (await (await self.post(tenant, "/v1/conversations", {"persona": persona})).json())["id"]
        path = f"/v1/conversations/{conversation}/turns"
        begun = await self.post(tenant, path, {"message": message}, Prefer="respond-async")
        assert begun.status == 202, await begun.text()
        return str((await begun.json())["turn_id"])

    async def settled(self, turns: int) -> None:
        """Wait until so many turns are settled: the tokens of some must be looked up first."""
        begun = f"{datetime.now(UTC) - timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}"
        async with asyncio.timeout(30):
            while True:
                report = await self.admin("GET", f"/usage?from={begun}")
                if sum(row["turns"] for row in report["data"]) >= turns:
                    return
                await asyncio.sleep(0.05)

    async def ending(self, tenant: str, turn_id: str) -> str:
        """Follow a turn to its end; returns the last event as it came."""
        answer = await self.http.get(
            f"{self.demo.url}/v1/turns/{turn_id}/events",
            headers={"Authorization": f"Bearer {self.tokens[tenant]}"},
            timeout=30_000,
        )
        return (await answer.text()).rstrip().split("\n\n")[-1]
