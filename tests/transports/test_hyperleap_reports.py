"""The drop-in's reports: a tenant's backend gets what its own users did, of a workspace that it shares with others."""

from __future__ import annotations

import uuid
from typing import Any, Final, NamedTuple

import httpx
import pytest

from gateway.core.identity import TenantId
from gateway.core.keys import KeyKind
from tests.conftest import PERSONA_ID, Running, StartGateway
from tests.transports.conftest import SignIn
from tests.transports.dropin import PROMPT_ID, App, error_of, start, toml

HI: Final = "Hi #tokens=3"
SPAN: Final = {"callerId": PROMPT_ID, "startDate": "2026-01-01T00:00:00Z", "endDate": "2027-01-01T00:00:00Z"}
REPORTS: Final = (
    "/audit/conversations",
    "/audit/prompt-runs",
    "/feedback-report/conversations",
    "/feedback-report/prompt-runs",
)


class Shared(NamedTuple):
    """Two tenants in one workspace of the vendor's, each with a rated answer and a rated run; others are in it, too."""

    running: Running
    keys: list[str]
    conversations: list[str]
    runs: list[str]
    prompt_runs: list[str]


@pytest.fixture
async def shared(start_gateway: StartGateway) -> Shared:
    names = [f"t-{uuid.uuid4().hex[:12]}" for _ in range(2)]
    running = await start_gateway(toml="".join(toml(name) for name in names))
    made = Shared(running, [], [], [], [])
    for name in names:
        key = (await running.gateway.auth.keys.mint(TenantId(name), KeyKind.SECRET, "reports")).key
        headers = {"Authorization": f"Bearer {key}"}
        async with running.http.post(f"{running.url}/v1/sessions", json={"user_id": "u"}, headers=headers) as response:
            token = (await response.json())["token"]
        async with App(running, token) as app:
            conversation = await app.create()
            said = (await app.chat(conversation, HI, "chat")).json()
            ran = (await app.run(HI)).json()
            await app.call("PATCH", f"/conversations/{conversation}/set-score/{said['messageId']}", {"score": 4})
            await app.call("PATCH", f"/prompt-runs/{ran['runId']}/set-score", {"score": 4})
        made.keys.append(key)
        made.conversations.append(conversation)
        made.runs.append(said["runId"])
        made.prompt_runs.append(ran["runId"])
    await beside(running)
    return made


async def beside(running: Running) -> None:
    """Let somebody use the workspace without the gateway."""
    url = running.simulator.url.replace("h2c://", "http://")
    headers = {"x-hl-api-key": running.simulator.settings.api_key}
    async with httpx.AsyncClient(base_url=url, http1=False, http2=True, headers=headers, trust_env=False) as vendor:
        entry = (await vendor.post("/conversations/persona", json={"personaId": PERSONA_ID})).json()
        await vendor.patch(f"/conversations/{entry['conversationId']}/chat", json={"message": HI})
        await vendor.post("/prompt-runs/run-sync", json={"promptId": PROMPT_ID})


@pytest.mark.parametrize("path", REPORTS)
async def test_report_holds_the_tenants_own_alone(shared: Shared, path: str) -> None:
    """Of a workspace that others use each tenant's backend sees its own conversations and runs, whatever it asks."""
    for number, key in enumerate(shared.keys):
        others = 1 - number
        async with App(shared.running, key) as backend:
            for asked in (
                {},
                {"conversationId": shared.conversations[others]},
                {"promptRunId": shared.prompt_runs[others]},
            ):
                body = {**asked, **SPAN} if path == REPORTS[2] else asked
                page = (await backend.call("POST", path, body)).json()
                found = {one.get("promptRunId") or one["conversationId"] for one in page["data"]}
                own = shared.conversations if path.endswith("conversations") else shared.prompt_runs
                assert found <= {own[number]}
                assert asked or found == {own[number]}


async def test_details_of_runs_are_the_tenants_own(shared: Shared) -> None:
    """A run of another tenant's is not found as one that does not exist; the vendor is not asked for prompt runs."""
    async with App(shared.running, shared.keys[0]) as backend:
        mine = await backend.call("GET", f"/audit/conversation-run/{shared.runs[0]}")
        ran = await backend.call("GET", f"/audit/prompt-run/{shared.prompt_runs[0]}")
        answers = [
            await backend.call("GET", f"/audit/conversation-run/{shared.runs[1]}"),
            await backend.call("GET", f"/audit/conversation-run/{uuid.uuid4()}"),
        ]
        before = shared.running.simulator.state.requests
        answers += [
            await backend.call("GET", f"/audit/prompt-run/{shared.prompt_runs[1]}"),
            await backend.call("GET", f"/audit/prompt-run/{uuid.uuid4()}"),
        ]
        assert shared.running.simulator.state.requests == before
    assert (mine.json()["conversationId"], ran.json()["promptRunId"]) == (
        shared.conversations[0],
        shared.prompt_runs[0],
    )
    assert {(answer.status_code, answer.text) for answer in answers} == {
        (404, '{"error":{"code":"not_found","message":"Not found.","details":[]}}')
    }


async def test_page_of_a_report_may_be_short_and_leads_on(shared: Shared) -> None:
    """A page is what is left of the vendor's; its token leads to the rest."""
    found: list[str] = []
    token, pages = None, 0
    async with App(shared.running, shared.keys[0]) as backend:
        while pages == 0 or token is not None:
            body: dict[str, Any] = {"pageSize": 1, "continuationToken": token}
            page = (await backend.call("POST", "/audit/conversations", body)).json()
            found += [one["conversationId"] for one in page["data"]]
            token, pages = page["continuationToken"], pages + 1
    assert (found, pages) == ([shared.conversations[0]], 3)


@pytest.mark.parametrize("path", [*REPORTS, f"/audit/prompt-run/{PROMPT_ID}", f"/audit/conversation-run/{PROMPT_ID}"])
async def test_reports_are_closed_to_users_and_pages(start_gateway: StartGateway, sign_in: SignIn, path: str) -> None:
    """Only the tenant's secret key opens them; the vendor is not asked."""
    running = await start(start_gateway)
    method = "POST" if path in REPORTS else "GET"
    for key in ((await sign_in(running)).token, running.publishable_key):
        async with App(running, key, Origin="https://app.example") as app:
            answer = await app.call(method, path, SPAN if method == "POST" else None)
        assert (answer.status_code, error_of(answer)["code"]) == (403, "forbidden")
    assert running.simulator.state.requests == 0


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"pageSize": 21}, "pageSize"),
        ({"conversationId": "x"}, "conversationId"),
        ({"startDate": "yesterday"}, "startDate"),
        ({"includeFeedback": "yes"}, "includeFeedback"),
    ],
)
async def test_report_that_cannot_be_asked_for_names_its_field(
    start_gateway: StartGateway, body: dict[str, Any], field: str
) -> None:
    """Bounds are those of the contract."""
    running = await start(start_gateway)
    async with App(running, running.secret_key) as backend:
        answer = await backend.call("POST", "/audit/conversations", body)
    assert (answer.status_code, error_of(answer)["details"][0]["field"]) == (422, field)
