"""A chat widget as deployed ones are written, in a real Chromium, with nothing changed but its base URL and its key."""

from __future__ import annotations

import pytest
from aiohttp import web
from playwright.async_api import async_playwright

from gateway.simulator.answers import answer as said
from tests.conftest import PERSONA_ID, StartGateway
from tests.page.chromium import find_chromium, launch
from tests.transports.dropin import ORIGIN, toml

WIDGET = """<!doctype html><meta charset="utf-8"><title>Widget</title><pre id="answer"></pre><script>
const config = { baseUrl: "%s", privateKey: "%s", personaId: "%s" };
const headers = { "Content-Type": "application/json", "x-hl-api-key": config.privateKey };
async function chat(message) {
  const created = await fetch(config.baseUrl + "/conversations/persona", {
    method: "POST", headers, body: JSON.stringify({ personaId: config.personaId, stream: true }),
  });
  const { conversationId } = await created.json();
  const response = await fetch(`${config.baseUrl}/conversations/${conversationId}/continue`, {
    method: "PATCH", headers, body: JSON.stringify({ message }),
  });
  if (!response.ok) return { status: response.status, error: await response.json() };
  const reader = response.body.getReader(), decoder = new TextDecoder();
  let text = "", reads = 0, finish = null;
  while (true) {
    const { done, value } = await reader.read();
    if (done) break;
    let chunk = decoder.decode(value, { stream: true });
    if (chunk.startsWith("[") || chunk.startsWith(",")) chunk = chunk.slice(1);
    if (chunk.endsWith("]")) chunk = chunk.slice(0, -1);
    if (!chunk) continue;
    const item = JSON.parse(chunk);
    text += item.choice.message.content ?? "";
    finish = item.choice.finish_reason ?? finish;
    document.getElementById("answer").textContent = text;
    reads += 1;
  }
  return { status: response.status, text, reads, finish, turn: response.headers.get("x-turn-id") };
}
</script>"""


@pytest.mark.browser
async def test_deployed_widget_streams_through_the_gateway(start_gateway: StartGateway) -> None:
    """It parses each read by itself, as it always did; errors of the vendor reach it with their status."""
    site = web.Application()
    runner = web.AppRunner(site)
    page_of: dict[str, str] = {}

    async def serve(_: web.Request) -> web.Response:
        return web.Response(text=page_of["html"], content_type="text/html")

    site.router.add_get("/", serve)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    origin = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        running = await start_gateway(toml=toml().replace(ORIGIN, origin), simulator={"rate_per_s": 10.0})
        page_of["html"] = WIDGET % (running.url + "/hyperleap", running.publishable_key, PERSONA_ID)
        async with async_playwright() as playwright:
            path = find_chromium(playwright)
            if path is None:
                pytest.skip("no Chromium: set CHROMIUM_PATH, install chromium, or run `playwright install chromium`")
            browser = await launch(playwright, path)
            page = await browser.new_page()
            await page.goto(origin + "/")
            answered = await page.evaluate("chat('How are you? é #tokens=12 #citations=1')")
            refused = await page.evaluate("chat('Hi #fault=429:7')")
            shown = await page.text_content("#answer")
            await browser.close()
    finally:
        await runner.cleanup()
    assert (answered["status"], answered["finish"]) == (200, "stop")
    assert answered["text"] == shown == said("How are you? é #tokens=12 #citations=1").text
    assert answered["reads"] > 8
    assert len(answered["turn"]) == 36
    assert (refused["status"], refused["error"]["error"]["code"]) == (429, "too_many_requests")
