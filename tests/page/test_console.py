"""The console in a real browser: who gets in, and what an operator sees and does there."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from playwright.async_api import BrowserContext, expect

from tests.page.customers import ACME, GLOBEX, HOSTILE, Customers
from tests.page.demo import Demo
from tests.page.operator import TOKEN, Operator

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]


def number(text: str) -> float:
    """Read a number as it is shown."""
    return float(re.sub(r"[^\d.]", "", text))


# --- getting in -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "said"), [("", "is needed"), ("wrong", "not the admin token"), ("café", "not the admin token")]
)
async def test_wrong_token_is_told_and_shows_nothing(
    two_workers: Demo, desk: BrowserContext, shown: str, said: str
) -> None:
    """Without the token there is the form and nothing else; what was typed is kept nowhere."""
    operator = await Operator.arrive(two_workers, desk, "#/tenants")
    operator.expects_failures = True
    await operator.sign_in(shown)
    await expect(operator.see("door-problem")).to_contain_text(said)
    await expect(operator.see("token")).to_be_focused()
    await expect(operator.page.locator("#console")).to_be_hidden()
    assert await operator.page.evaluate("Object.keys(sessionStorage).length + Object.keys(localStorage).length") == 0
    await operator.check_calm()


async def test_token_lets_in_until_the_tab_ends_or_its_user_leaves(operator: Operator, desk: BrowserContext) -> None:
    """A reload stays in; signing out leaves nothing behind; another tab has to show the token itself."""
    await operator.page.reload()
    await expect(operator.see("title")).to_be_visible()
    assert TOKEN not in operator.page.url
    assert await desk.cookies() == []
    other = await Operator.arrive(operator.demo, desk)
    await expect(other.see("token")).to_be_visible()
    await operator.see("leave").click()
    await expect(operator.see("token")).to_be_visible()
    assert await operator.page.evaluate("sessionStorage.length") == 0
    await operator.page.reload()
    await expect(operator.see("token")).to_be_visible()


async def test_token_that_no_longer_lets_in_leads_back_to_the_form(operator: Operator) -> None:
    """When the gateway was given another token meanwhile, one is asked for it, and what was shown is gone."""
    operator.expects_failures = True
    await operator.page.evaluate("sessionStorage.setItem('hyperleap.admin-token', 'an-earlier-one')")
    await operator.page.evaluate("location.hash = '#/tenants'")
    await expect(operator.see("door-problem")).to_contain_text("not the admin token")
    assert await operator.page.locator("#view").inner_text() == ""
    await operator.sign_in()
    await expect(operator.see("title")).to_have_text("Tenants")


# --- figures ----------------------------------------------------------------------------------------------------------


async def test_outcomes_limits_and_feedback_are_those_of_the_metrics(operator: Operator, customers: Customers) -> None:
    """What the view counts is the sum of all workers' counters; the refused request is there with its limit."""
    table = (await operator.call("GET", f"/tenants/{GLOBEX}"))["settings"]
    limited = {**table, "limits": {**table["limits"], "tenant": {"requests_per_min": 1}}}
    await operator.call("PUT", f"/tenants/{GLOBEX}", limited)
    async with asyncio.timeout(20):  # until every worker has it
        while (await customers.ask(GLOBEX, "default", "Six #tokens=5 #rate=0")).status != 429:
            pass
    await operator.call("PUT", f"/tenants/{GLOBEX}", table)
    await operator.go("#/outcomes", "Outcomes")
    await expect(operator.see("since")).to_contain_text("by this gateway since the start of 2 workers")
    await expect(operator.see("since")).to_contain_text("dashboards have all gateways of a fleet")
    scrape = await (await operator.page.request.get(f"{operator.demo.internal_url}/metrics")).text()

    def summed(name: str, **labels: str) -> float:
        lines = [line for line in scrape.splitlines() if line.startswith(f"{name}{{")]
        return sum(
            float(line.rpartition(" ")[2])
            for line in lines
            if all(f'{label}="{value}"' in line for label, value in labels.items())
        )

    endings = await operator.rows("endings")
    named = [(reason, outcome, tenant, persona) for reason, outcome, _, _, tenant, persona in endings]
    assert ("upstream_truncated", "failed", GLOBEX, "default") in named
    assert ("user", "stopped", ACME, "sales") in named
    for reason, outcome, count, _, tenant, persona in endings:
        assert number(count) == summed(
            "gateway_turns_total", outcome=outcome, reason=reason, tenant=tenant, persona=persona
        )
    assert sum(number(row[2]) for row in endings) == summed("gateway_turns_total")
    refused = {row[2]: row for row in await operator.rows("refusals")}
    assert refused[GLOBEX][0] == "tenant_requests_per_min"
    judged = {(row[0], row[1]): row[2:] for row in await operator.rows("feedback")}
    assert judged[ACME, "support"] == ["2", "1", "0", "1", "+2"]
    assert judged[GLOBEX, "default"] == ["1", "1", "0", "0", "+10"]


async def test_latency_percentiles_are_those_of_the_histograms(operator: Operator) -> None:
    """Each row counts what both workers measured, and its percentiles lie in order within the buckets' bounds."""
    await operator.go("#/latency", "Latency")
    rows = {(row[0], row[1]): row[2:] for row in await operator.rows("latency-0")}
    assert rows[ACME, "support"][-1] == "2"
    scale = {"ms": 1.0, "s": 1000.0, "min": 60_000.0}
    for figures in rows.values():
        *percentiles, mean, _ = figures
        p50, p95, p99 = (number(text) * scale[text.split()[-1]] for text in percentiles)
        assert 0 < p50 <= p95 <= p99
        assert number(mean) > 0
    await operator.choose("choice-tenant")
    assert [row[0] for row in await operator.rows("latency-2")] == [ACME, GLOBEX]
    assert "by=tenant" in operator.page.url


async def test_usage_is_the_ledgers_by_tenant_persona_and_time(operator: Operator) -> None:
    """Cards and tables tell what the admin API sums up: tokens, turns, outcomes, and cost where there is a price."""
    report = await operator.call("GET", f"/usage?from={_hours_ago(20)}&by=tenant,persona")
    await operator.go("#/usage?range=24h", "Usage")
    turns = sum(row["turns"] for row in report["data"])
    tokens = sum(row["total_tokens"] for row in report["data"])
    micros = sum(row["cost_micros"] or 0 for row in report["data"])
    assert turns >= 6
    assert micros > 0
    assert number(await operator.see("card-turns").locator("b").inner_text()) == turns
    assert number(await operator.see("card-tokens").locator("b").inner_text()) == tokens
    cost = await operator.see("card-cost").locator("b").inner_text()
    assert cost.startswith("€")
    assert number(cost) == pytest.approx(micros / 1e6, rel=0.06)  # two figures are shown of so little
    await operator.choose("choice-persona")
    wanted = {
        (row["tenant"], row["persona"]): [
            *(row["total_tokens"], row["turns"], row["completed"], row["stopped"], row["failed"]),
            *(row["prompt_tokens"], row["completion_tokens"]),
        ]
        for row in report["data"]
    }
    rows = await operator.rows("usage-groups")
    assert {(row[0], row[1]): [number(figure) for figure in (row[2], *row[4:])] for row in rows} == wanted
    assert {row[0]: row[3] for row in rows}[GLOBEX] == "–"  # it has no price
    foot = await operator.see("usage-groups").locator("tfoot tr > *").all_inner_texts()
    assert [number(figure) for figure in (foot[4], *foot[8:], foot[2])] == [
        turns,
        *(sum(row[name] for row in report["data"]) for name in ("prompt_tokens", "completion_tokens")),
        tokens,
    ]
    assert sum(number(row[1]) for row in await operator.rows("usage-steps")) == tokens
    await operator.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await operator.see("usage-groups").get_by_test_id("copy").click()
    await expect(operator.see("usage-groups").get_by_test_id("copy")).to_have_text("Copied")
    copied = (await operator.page.evaluate("navigator.clipboard.readText()")).splitlines()
    assert copied[0].startswith("tenant,persona,total_tokens,turns,completed,stopped,failed,")
    assert {tuple(line.split(",")[:3]) for line in copied[1:]} == {
        (row["tenant"], row["persona"], str(row["total_tokens"])) for row in report["data"]
    }


async def test_chart_is_read_by_keyboard_and_follows_what_is_chosen(operator: Operator) -> None:
    """The arrow keys read the bars with their numbers; what is drawn, and by what, is in the address."""
    await operator.go("#/usage?range=7d&show=turns", "Usage")
    chart = operator.see("chart")
    await expect(chart.locator(".bar")).to_have_count(7)
    await chart.focus()
    await operator.page.keyboard.press("End")
    report = await operator.call("GET", f"/usage?from={_hours_ago(20)}&by=day&tenant={ACME}")
    latest = max(row["day"] for row in report["data"])
    if latest != _today():  # it was midnight since
        await operator.page.keyboard.press("ArrowLeft")
    spoken = operator.page.locator(".chart [role=status]")
    turns = sum(row["turns"] for row in report["data"] if row["day"] == latest)
    await expect(spoken).to_contain_text(f"{ACME} {turns}")
    await operator.page.keyboard.press("Home")
    await expect(spoken).to_contain_text("nothing")
    asked: list[str] = []
    operator.page.on("request", lambda request: asked.append(request.url))
    await operator.see("choice-outcome").press("Enter")
    await expect(operator.see("legend").locator("li")).to_have_text(["completed", "stopped", "failed"])
    await expect(operator.see("choice-outcome")).to_be_focused()
    assert [url for url in asked if "/admin/v1/" in url] == []  # the same numbers, drawn otherwise
    assert "by=outcome" in operator.page.url
    await operator.page.go_back()
    await expect(operator.see("legend").locator("li")).to_have_text([ACME, GLOBEX])


async def test_range_of_ones_own_is_checked_and_an_empty_one_says_so(operator: Operator) -> None:
    """Days the wrong way round are told at the fields; days without turns are told as such, not drawn as a failure."""
    await operator.go("#/usage", "Usage")
    await operator.see("range-custom").click()
    await operator.see("range-from").fill("2026-02-03")
    await operator.see("range-to").fill("2026-02-01")
    await operator.see("range-show").click()
    await expect(operator.see("range-problem")).to_have_text("The first day is after the last one.")
    quiet = _today(-3)
    await operator.see("range-from").fill(quiet)
    await operator.see("range-to").fill(quiet)
    await operator.see("range-show").click()
    await expect(operator.see("empty")).to_contain_text("Nothing was settled")
    assert f"from={quiet}" in operator.page.url


def _hours_ago(hours: int) -> str:
    return f"{datetime.now(UTC) - timedelta(hours=hours):%Y-%m-%dT%H:%M:%SZ}"


def _today(days: int = 0) -> str:
    """A day of UTC, in which the browser of these tests lives."""
    return (datetime.now(UTC) + timedelta(days=days)).strftime("%Y-%m-%d")


# --- live turns -------------------------------------------------------------------------------------------------------


async def test_stop_button_ends_a_live_turn_and_its_reader_is_told(operator: Operator, customers: Customers) -> None:
    """The turn appears by itself, is stopped after a question, and ends for its reader with the reason ``admin``."""
    await operator.go("#/live", "Live turns")
    turn_id = await customers.begin(ACME, "support")
    row = operator.page.locator(f'tr[data-key="{turn_id}"]')
    await expect(row.locator(".badge")).to_have_text("streaming")
    await expect(row).to_contain_text(ACME)
    reader = asyncio.ensure_future(customers.ending(ACME, turn_id))
    await expect(row.locator("td[data-label=Readers]")).to_have_text("1")
    (live,) = [turn for turn in (await operator.call("GET", "/turns"))["data"] if turn["turn_id"] == turn_id]
    assert (live["tenant"], live["persona"], live["readers"]) == (ACME, "support", 1)
    await row.get_by_test_id("stop-turn").click()
    await operator.see("cancel").click()
    await expect(operator.see("dialog")).to_be_hidden()
    assert not reader.done()
    await row.get_by_test_id("stop-turn").click()
    await operator.see("do").click()
    ending = await reader
    assert "event: turn.stopped" in ending
    assert json.loads(ending.rpartition("data: ")[2])["reason"] == "admin"
    await expect(row).to_have_count(0)


async def test_live_turns_can_be_held_still_and_survive_a_worker_that_is_away(operator: Operator) -> None:
    """Paused, nothing is asked; when the gateway does not answer that is said, and it goes on by itself afterwards."""
    await operator.page.clock.install()
    await operator.go("#/live", "Live turns")
    await expect(operator.see("live-count")).to_contain_text("every 2 s")
    asked: list[str] = []
    operator.page.on("request", lambda request: asked.append(request.url))
    async with operator.page.expect_request("**/admin/v1/turns*"):
        await operator.page.clock.fast_forward(2_000)
    await operator.see("pause").click()
    await expect(operator.see("pause")).to_have_text("Go on")
    before = len(asked)
    await operator.page.clock.fast_forward(10_000)
    await operator.page.evaluate("fetch('/livez')")  # what was asked before it is known by now
    assert [url for url in asked[before:] if "/admin/v1/" in url] == []
    operator.expects_failures = True
    await operator.page.route("**/admin/v1/turns*", lambda route: route.abort())
    await operator.see("pause").click()
    await expect(operator.see("problem")).to_contain_text("cannot be reached")
    await operator.page.unroute("**/admin/v1/turns*")
    await expect(operator.see("problem")).to_have_count(0)


# --- tenants and keys -------------------------------------------------------------------------------------------------


async def test_tenant_is_made_changed_shut_out_let_in_and_deleted(operator: Operator) -> None:
    """All of a tenant's life at the console; what is wrong with its table is said with the field and the line."""
    persona = (await operator.call("GET", "/tenants/default"))["settings"]["personas"]["default"]
    await operator.go("#/tenants", "Tenants")
    await operator.see("new-tenant").click()
    await operator.see("tenant-name").fill("Not A Name")
    await operator.see("save").click()
    await expect(operator.page.locator("#tenant-name-problem")).to_be_visible()
    await operator.see("tenant-name").fill("hooli")
    operator.expects_failures = True
    await operator.see("save").click()
    await expect(operator.see("editor-problem")).to_contain_text("personas.default.persona_id, line 4:")
    selected = "e => e.value.slice(e.selectionStart, e.selectionEnd).trim()"
    assert await operator.see("editor").evaluate(selected) == '"persona_id": ""'
    await operator.see("editor").fill("{")
    await operator.see("save").click()
    await expect(operator.see("editor-problem")).to_contain_text("This is no JSON")
    await operator.see("editor").fill(json.dumps({"personas": {"default": persona}}))
    await operator.see("save").click()
    await expect(operator.see("title")).to_have_text("hooli")
    assert (await operator.call("GET", "/tenants/hooli"))["source"] == "store"

    await operator.see("editor").fill(json.dumps({"personas": {"default": persona}, "origins": ["https://a.example"]}))
    await operator.see("save").click()
    await expect(operator.see("tenant-facts")).to_contain_text("https://a.example")
    assert (await operator.call("GET", "/tenants/hooli"))["origins"] == ["https://a.example"]

    for act, state in (("revoke", "revoked"), ("restore", "active")):
        await operator.see(act).click()
        await operator.see("do").click()
        await expect(operator.see("tenant-facts").locator(".badge")).to_have_text(state)
        assert (await operator.call("GET", "/tenants/hooli"))["state"] == state

    await operator.see("delete").click()
    await operator.see("typed").fill("hool")
    await expect(operator.see("do")).to_be_disabled()
    await operator.see("typed").fill("hooli")
    await operator.see("do").click()
    await expect(operator.see("title")).to_have_text("Tenants")
    await expect(operator.page.locator("tbody")).not_to_contain_text("hooli")
    assert "hooli" not in [one["tenant"] for one in (await operator.call("GET", "/tenants"))["data"]]


async def test_fixed_tenant_can_be_looked_at_only(operator: Operator) -> None:
    """What is written in the settings is shown, and where to change it; there is nothing to save or to delete."""
    await operator.go("#/tenants/default", "default")
    await expect(operator.see("tenant-settings")).to_contain_text("written in the settings: change it there")
    assert await operator.see("editor").count() == await operator.see("delete").count() == 0


async def test_key_is_shown_once_copied_rotated_and_revoked(operator: Operator) -> None:
    """A new key opens a session; closed, its dialog leaves it nowhere; the old one ends by rotation or revocation."""
    await operator.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await operator.go(f"#/tenants/{GLOBEX}", GLOBEX)
    await operator.see("new-key").click()
    await operator.see("key-label").fill("console")
    await operator.see("key-kind").select_option("secret")
    await operator.see("key-life").select_option("2592000")
    await operator.see("do").click()
    secret = await operator.see("secret").inner_text()
    assert secret.startswith(f"hgs_{GLOBEX}.")
    await operator.see("copy-key").click()
    await expect(operator.see("copy-key")).to_have_text("Copied")
    assert await operator.page.evaluate("navigator.clipboard.readText()") == secret
    await operator.see("close").click()
    await expect(operator.see("secret")).to_have_count(0)
    assert secret not in await operator.page.content()
    opened = await operator.page.request.post(
        f"{operator.demo.url}/v1/sessions", data={"user_id": "u"}, headers={"Authorization": f"Bearer {secret}"}
    )
    assert opened.status == 201
    keys = operator.see("tenant-keys").locator("tbody tr", has_text="console")
    await keys.get_by_test_id("rotate-key").click()
    await operator.see("overlap").select_option("0")
    await operator.see("do").click()
    await expect(operator.see("secret")).not_to_have_text(secret)
    await operator.see("close").click()
    await expect(keys.filter(has_text="expired")).to_have_count(1)
    await keys.filter(has_text="active").get_by_test_id("revoke-key").click()
    await operator.see("do").click()
    await expect(keys.filter(has_text="revoked")).to_have_count(1)
    states = [key["state"] for key in await _keys(operator, GLOBEX) if key["label"] == "console"]
    assert sorted(states) == ["expired", "revoked"]


async def _keys(operator: Operator, tenant: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await operator.call("GET", f"/tenants/{tenant}/keys"))["data"]
    return found


async def test_hostile_names_stay_text(operator: Operator) -> None:
    """A key's label that is markup, and a tenant in the address that is, are shown as they are and do nothing."""
    await operator.go(f"#/tenants/{ACME}", ACME)
    await expect(operator.see("keys").locator("tbody th").first).to_have_text(HOSTILE)
    operator.expects_failures = True
    await operator.page.evaluate("name => { location.hash = '#/tenants/' + encodeURIComponent(name) }", HOSTILE)
    await expect(operator.see("title")).to_have_text(HOSTILE)
    await expect(operator.see("problem")).to_be_visible()
    await operator.page.evaluate("name => { location.hash = '#/usage?tenant=' + encodeURIComponent(name) }", HOSTILE)
    await expect(operator.see("problem")).to_be_visible()
    assert await operator.page.locator("img[onerror]").count() == 0
    assert await operator.page.evaluate("window.harm") is None
