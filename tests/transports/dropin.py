"""An app that was written for Hyperleap, pointed at a gateway: a stock HTTP client with a base URL and a key."""

from __future__ import annotations

import json
import uuid
from typing import Any

import httpx

from tests.conftest import OTHER_PERSONA_ID, PERSONA_ID, Running, StartGateway

ORIGIN = "https://app.example"
PROMPT_ID = "7c0d7c8e-1111-4d53-9a52-0d1d6a7f0001"
PINNED_ID = "7c0d7c8e-2222-4d53-9a52-0d1d6a7f0002"
VERSION_ID = "7c0d7c8e-3333-4d53-9a52-0d1d6a7f0003"
DATASPACE_ID = "7c0d7c8e-4444-4d53-9a52-0d1d6a7f0004"

TOML = """
[tenants.{tenant}]
origins = ["https://app.example"]
anonymous = true
{tenant_lines}
[tenants.{tenant}.limits]
{limits}
[tenants.{tenant}.personas.default]
persona_id = "{persona}"
replacements = ["name"]
[tenants.{tenant}.personas.other]
persona_id = "{other}"
persona_version_id = "{version}"
[tenants.{tenant}.prompts.summary]
prompt_id = "{prompt}"
replacements = ["topic"]
[tenants.{tenant}.prompts.pinned]
prompt_id = "{pinned}"
prompt_version_id = "{version}"
replacements = ["topic"]
[tenants.{tenant}.models.plain]
ai_system = 1
model = "m-1"
system_message = "Be brief."
dataspaces = ["{dataspace}"]
[tenants.{tenant}.models.free]
ai_system = 2
model = "m-2"
stated = ["system_message", "configuration"]
"""
NO_LIMITS = """
tenant = { requests_per_min = 0 }
user = { requests_per_min = 0, concurrent_turns = 0 }
anonymous = { requests_per_min = 0, concurrent_turns = 0 }
address = { requests_per_min = 0 }
"""


def toml(tenant: str | None = None, *, limits: str = NO_LIMITS, lines: str = "") -> str:
    """Return the settings of a tenant with personas, prompts and models."""
    return TOML.format(
        tenant=tenant or f"t-{uuid.uuid4().hex[:12]}",
        limits=limits,
        tenant_lines=lines,
        persona=PERSONA_ID,
        other=OTHER_PERSONA_ID,
        prompt=PROMPT_ID,
        pinned=PINNED_ID,
        version=VERSION_ID,
        dataspace=DATASPACE_ID,
    )


async def start(start_gateway: StartGateway, *, limits: str = NO_LIMITS, lines: str = "", **options: Any) -> Running:
    """Start a gateway with such a tenant."""
    return await start_gateway(toml=toml(limits=limits, lines=lines), **options)


class App:
    """An app with a key. Its calls return what the vendor's API would."""

    def __init__(self, running: Running, key: str, *, base: str = "/hyperleap", **headers: str) -> None:
        self.running = running
        self.http = httpx.AsyncClient(
            base_url=running.url + base, headers={"x-hl-api-key": key, **headers}, timeout=15, trust_env=False
        )

    async def __aenter__(self) -> App:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.http.request(method, path, json=body, headers=named)

    async def create(self, **fields: Any) -> str:
        """Open a conversation with the default persona and return its id."""
        answer = await self.call("POST", "/conversations/persona", {"personaId": PERSONA_ID, **fields})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["conversationId"])

    async def chat(self, conversation: str, message: str, form: str = "continue", **headers: str) -> httpx.Response:
        return await self.call("PATCH", f"/conversations/{conversation}/{form}", {"message": message}, **headers)

    async def run(self, words: str, path: str = "run-sync", **fields: Any) -> httpx.Response:
        body = {"promptId": PROMPT_ID, "replacements": {"topic": words}, **fields}
        return await self.call("POST", f"/prompt-runs/{path}", body)


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """Return an error of the documented shape; fails for any other."""
    body = answer.json()
    assert list(body) == ["error"], body
    error: dict[str, Any] = body["error"]
    assert list(error) == ["code", "message", "details"]
    assert all(list(one) == ["field", "issue"] for one in error["details"])
    return error


def sse_items(text: str) -> list[dict[str, Any]]:
    assert text.endswith("\n\n")
    return [json.loads(event.removeprefix("data: ")) for event in text.split("\n\n")[:-1]]


def text_of(items: list[dict[str, Any]]) -> str:
    return "".join(item["choice"]["message"]["content"] or "" for item in items)
