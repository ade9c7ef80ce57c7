"""The widget on somebody else's site, whose policy allows the gateway's scripts and nothing inline."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import Browser, BrowserContext, Page, Request, Route, expect

from gateway.simulator.answers import answer as said
from tests.page.demo import Demo, running_demo
from tests.page.visitor import WATCH_POLICY

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

SITE = """<!doctype html><html lang="en"><head><title>A shop</title><meta name="viewport" content="width=device-width">
<script src="{url}/widget.js" data-key="{key}" data-persona="default" data-title="Ask us"
        data-greeting="Hello! How can we help?" {more} async></script></head>
<body><h1>A shop</h1><p><a href="#first">First</a> <button id="own">Buy</button></p></body></html>"""
HOSTILE = (
    "<img src=x onerror=alert(1)> <script>window.hit = 1</script> [x](javascript:alert(1)) **bold** `<b>code</b>` "
    "https://example.com/a?b=1&c=2. #echo #rate=0"
)
Visit = Callable[..., Awaitable[Page]]


class Site:
    """A site of another origin than the gateway's."""

    def __init__(self) -> None:
        self.url = ""
        self.gateway = ""
        self.html = ""
        self.sockets = True

    async def serve(self, _: web.Request) -> web.Response:
        connect = f"{self.gateway} {self.gateway.replace('http', 'ws', 1)}" if self.sockets else self.gateway
        policy = (
            f"default-src 'none'; script-src {self.gateway}; connect-src {connect}; style-src 'none'; base-uri 'none'"
        )
        return web.Response(text=self.html, content_type="text/html", headers={"Content-Security-Policy": policy})


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def site() -> AsyncIterator[Site]:
    served = Site()
    app = web.Application()
    app.router.add_get("/", served.serve)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    served.url = f"http://localhost:{runner.addresses[0][1]}"
    yield served
    await runner.cleanup()


@pytest.fixture(scope="module")
def shop_demo(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A gateway that lists the site's origin."""
    folder = tmp_path_factory.mktemp("shop")
    with running_demo(folder, GATEWAY_ORIGINS=site.url, GATEWAY_ANONYMOUS="true") as started:
        yield started


@pytest_asyncio.fixture(loop_scope="session")
async def visit(browser: Browser, site: Site, shop_demo: Demo) -> AsyncIterator[Visit]:
    """Open the site in a browser profile of its own; at the end, nothing may have been complained of."""
    contexts: list[BrowserContext] = []
    pages: list[tuple[Page, list[str], bool]] = []

    async def open_page(*, more: str = "", sockets: bool = True, refusals: bool = False, **context: Any) -> Page:
        site.gateway, site.sockets = shop_demo.url, sockets
        site.html = SITE.format(url=shop_demo.url, key=shop_demo.publishable_key, more=more)
        contexts.append(await browser.new_context(**{"viewport": {"width": 1100, "height": 800}, **context}))
        page = await contexts[-1].new_page()
        complaints: list[str] = []
        page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(f"uncaught: {error}"))
        await page.add_init_script(WATCH_POLICY)
        await page.goto(site.url)
        pages.append((page, complaints, refusals))
        return page

    yield open_page
    for page, complaints, refusals in pages:
        if not refusals:
            assert await page.evaluate("window.violations") == []
            assert complaints == []
    for opened in contexts:
        await opened.close()


async def ask(page: Page, text: str, *, state: str = "completed") -> None:
    await send(page, text)
    await expect(page.get_by_test_id("answer").last).to_have_attribute("data-state", state, timeout=20_000)


async def send(page: Page, text: str) -> None:
    await page.get_by_test_id("message").fill(text)
    await page.get_by_test_id("message").press("Enter")


@asynccontextmanager
async def held(page: Page, address: str) -> AsyncIterator[asyncio.Event]:
    """Hold the next call of an address, and say when it was made; at the end it goes on, and its answer has come."""
    made, let_go = asyncio.Event(), asyncio.Event()

    async def hold(route: Route) -> None:
        made.set()
        await let_go.wait()
        await route.continue_()

    await page.route(address, hold, times=1)
    async with page.expect_response(address):
        try:
            yield made
        finally:
            let_go.set()


async def remembered(page: Page) -> tuple[str, Any]:
    """Return where the widget keeps the visitor's conversation, and what it keeps."""
    place = await page.evaluate("Object.keys(localStorage).find(name => name.startsWith('hyperleap.chat.'))")
    return place, json.loads(await page.evaluate("place => localStorage.getItem(place)", place))


async def show(page: Page, name: str) -> None:
    """Save a picture of the page where ``PAGE_SCREENSHOTS`` asks for them."""
    if os.environ.get("PAGE_SCREENSHOTS"):
        folder = Path(__file__).parent / "screenshots"
        folder.mkdir(exist_ok=True)
        await page.screenshot(path=folder / f"{name}.png")


async def test_chat_works_under_a_strict_policy(visit: Visit) -> None:
    """One script tag on a site of another origin, without inline styles or scripts: a conversation, by WebSocket."""
    page = await visit()
    async with page.expect_websocket():
        await page.get_by_test_id("bubble").click()
        await expect(page.get_by_test_id("thread")).to_contain_text("Hello! How can we help?")
        await ask(page, "Hello #tokens=60 #rate=0")
    await show(page, "widget-light")
    box = await page.get_by_test_id("bubble").bounding_box()
    assert box is not None
    assert (box["x"] + box["width"], box["y"] + box["height"]) == (1080, 780)  # the sheet was applied


async def test_policy_without_sockets_falls_back(visit: Visit) -> None:
    """A site that allows only the gateway's HTTP gets its answers by server-sent events."""
    page = await visit(sockets=False, refusals=True)
    await page.get_by_test_id("bubble").click()
    await ask(page, "Hello #tokens=20 #rate=0")


async def test_answers_are_text(visit: Visit) -> None:
    """Whatever a model writes becomes text and a few harmless elements; its addresses are web addresses only."""
    page = await visit()
    await page.get_by_test_id("bubble").click()
    await ask(page, HOSTILE)
    answer = page.get_by_test_id("answer").last
    await expect(answer).to_contain_text("<img src=x onerror=alert(1)> <script>window.hit = 1</script>")
    await expect(answer.locator("img, script, b")).to_have_count(0)
    await expect(answer.locator("strong")).to_have_text("bold")
    await expect(answer.locator("code")).to_have_text("<b>code</b>")
    links = await answer.locator("a").evaluate_all("links => links.map(a => [a.href, a.rel, a.target])")
    assert links == [["https://example.com/a?b=1&c=2", "noopener noreferrer nofollow", "_blank"]]
    assert await page.evaluate("window.hit") is None


async def test_keyboard_is_enough(visit: Visit) -> None:
    """Tab to the bubble, open, write, stop, close with Esc: focus is always where it is expected."""
    page = await visit()
    await expect(page.get_by_test_id("bubble")).to_be_visible()
    await page.locator("#own").focus()
    await page.keyboard.press("Tab")
    await expect(page.get_by_test_id("bubble")).to_be_focused()
    await expect(page.get_by_role("button", name="Open Ask us")).to_have_attribute("aria-expanded", "false")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("dialog", name="Ask us")).to_be_visible()
    await expect(page.get_by_role("textbox", name="Message")).to_be_focused()
    await page.keyboard.type("Hello #tokens=300 #rate=20")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("button", name="Stop the answer")).to_be_visible()
    await expect(page.get_by_test_id("answer").last).not_to_be_empty()
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("button", name="Stop the answer")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.get_by_test_id("answer").last).to_have_attribute("data-state", "stopped")
    await expect(page.get_by_test_id("answer").last).to_contain_text("You stopped this answer.")
    await expect(page.get_by_role("button", name="Send")).to_be_focused()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_have_count(0)
    await expect(page.get_by_test_id("bubble")).to_be_focused()


async def test_screen_reader_hears_each_paragraph_once(visit: Visit) -> None:
    """Finished paragraphs are added once to a polite log; the growing text itself is no live region."""
    page = await visit()
    await page.get_by_test_id("bubble").click()
    await ask(page, "Hello #tokens=200 #rate=0")
    spoken = page.get_by_test_id("spoken")
    await expect(spoken).to_have_attribute("aria-live", "polite")
    heard = "\n\n".join(await spoken.locator("p").all_text_contents())
    assert heard.split() == said("Hello #tokens=200 #rate=0").text.split()
    assert await page.locator("hyperleap-chat [aria-live]").count() == 1
    await expect(page.get_by_role("status")).to_have_text("Answer complete.")


async def test_conversation_is_kept_over_reloads(visit: Visit) -> None:
    """After a reload the visitor's conversation is there, and an answer in progress goes on to its whole length."""
    page = await visit()
    await page.get_by_test_id("bubble").click()
    await ask(page, "First question #echo #rate=0")
    words = " ".join(f"w{i:03}" for i in range(80))
    await send(page, f"{words} #echo #rate=40")
    await expect(page.get_by_test_id("answer").last).to_contain_text("w010")
    await page.reload()
    await page.get_by_test_id("bubble").click()
    await expect(page.get_by_test_id("question")).to_have_text(
        ["You: First question #echo #rate=0", f"You: {words} #echo #rate=40"]
    )
    await expect(page.get_by_test_id("answer").last).to_have_text(words, timeout=20_000)
    await expect(page.get_by_test_id("answer").first).to_have_text("First question")
    await page.get_by_test_id("retry").click()
    await expect(page.get_by_test_id("question")).to_have_count(0)
    await page.reload()
    await page.get_by_test_id("bubble").click()
    await expect(page.get_by_test_id("thread")).to_contain_text("How can we help?")


async def test_dark_and_phone(visit: Visit) -> None:
    """It follows the reader's colours or the site's wish, and on a phone the panel is the whole, modal, screen."""
    page = await visit(color_scheme="dark", viewport={"width": 390, "height": 760}, device_scale_factor=2)
    await page.get_by_test_id("bubble").click()
    await ask(page, "Hello #tokens=80 #rate=0")
    await show(page, "widget-dark-phone")
    panel = page.get_by_test_id("panel")
    assert await panel.bounding_box() == {"x": 0, "y": 0, "width": 390, "height": 760}
    assert await panel.evaluate("panel => panel.matches(':modal')")
    assert await panel.evaluate("panel => getComputedStyle(panel).backgroundColor") == "rgb(21, 23, 24)"
    await page.keyboard.press("Escape")
    await expect(page.get_by_test_id("bubble")).to_be_focused()
    light = await visit(color_scheme="dark", more='data-theme="light"')
    await light.get_by_test_id("bubble").click()
    background = "panel => getComputedStyle(panel).backgroundColor"
    assert await light.get_by_test_id("panel").evaluate(background) == "rgb(251, 251, 249)"


async def test_refusal_is_told_and_can_be_tried_again(visit: Visit) -> None:
    """What goes wrong is told in words where the answer would be, and a click sends the same message again."""
    page = await visit(refusals=True)
    await page.get_by_test_id("bubble").click()
    await expect(page.get_by_test_id("thread")).to_contain_text("How can we help?")
    await page.route("**/v1/sessions", lambda route: route.abort())
    await send(page, "Hello again #echo #rate=0")
    await expect(page.get_by_test_id("problem")).to_contain_text("The gateway cannot be reached", timeout=20_000)
    await page.unroute("**/v1/sessions")
    await page.get_by_test_id("again").click()
    await expect(page.get_by_test_id("answer").last).to_have_text("Hello again")
    await expect(page.get_by_test_id("question")).to_have_count(1)


@pytest.mark.parametrize("address", ["**/v1/conversations", "**/v1/conversations/*/turns"])
async def test_new_conversation_while_a_message_is_sent(visit: Visit, address: str) -> None:
    """The message stays with the conversation that is left: nothing of it is shown or kept; the next opens another."""
    page = await visit(sockets=False, refusals=True)
    opened: list[str] = []
    sent: list[str] = []  # the conversation of each message

    def note(request: Request) -> None:
        *_, before, last = request.url.split("/")
        if request.method == "POST" and last == "conversations":
            opened.append(request.url)
        elif request.method == "POST" and last == "turns":
            sent.append(before)

    page.on("request", note)
    await page.get_by_test_id("bubble").click()
    async with held(page, address) as made:
        await send(page, "Left behind #tokens=200 #rate=20")
        await asyncio.wait_for(made.wait(), 20)
        await page.get_by_test_id("retry").click()
        await expect(page.get_by_role("button", name="Send")).to_be_visible()
    await page.evaluate("new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
    await expect(page.get_by_test_id("question")).to_have_count(0)
    await expect(page.get_by_test_id("answer")).to_have_count(0)
    await expect(page.get_by_role("button", name="Send")).to_be_visible()
    assert await page.evaluate("Object.keys(localStorage).filter(name => name.startsWith('hyperleap.chat.'))") == []
    await ask(page, "Begun anew #echo #rate=0")
    await expect(page.get_by_test_id("question")).to_have_text(["You: Begun anew #echo #rate=0"])
    await expect(page.get_by_test_id("answer")).to_have_text(["Begun anew"])
    assert len(opened) == 2
    assert len(sent) == (1 if address.endswith("conversations") else 2)  # one not yet on its way is not sent
    assert len(set(sent)) == len(sent)
    assert (await remembered(page))[1]["id"] == sent[-1]


async def test_new_conversation_while_the_last_is_read(visit: Visit) -> None:
    """A transcript that comes late is not put into the conversation that was begun meanwhile."""
    page = await visit()
    await page.get_by_test_id("bubble").click()
    await ask(page, "Of the last visit #echo #rate=0")
    await page.reload()
    async with held(page, "**/v1/conversations/*") as made:
        await page.get_by_test_id("bubble").click()
        await asyncio.wait_for(made.wait(), 20)
        await page.get_by_test_id("retry").click()
    await ask(page, "Begun anew #echo #rate=0")
    await expect(page.get_by_test_id("question")).to_have_text(["You: Begun anew #echo #rate=0"])
    await expect(page.get_by_test_id("thread")).to_contain_text("How can we help?")


async def test_message_written_while_the_last_is_read(visit: Visit) -> None:
    """It comes after the transcript, in the same conversation; where that is gone, it opens another and stays."""
    page = await visit(refusals=True)
    await page.get_by_test_id("bubble").click()
    await ask(page, "First #echo #rate=0")
    place, kept = await remembered(page)
    await page.reload()
    async with held(page, "**/v1/conversations/*") as made:
        await page.get_by_test_id("bubble").click()
        await asyncio.wait_for(made.wait(), 20)
        await send(page, "Second #echo #rate=0")
    await expect(page.get_by_test_id("answer")).to_have_text(["First", "Second"], timeout=20_000)
    await expect(page.get_by_test_id("question")).to_have_text(
        ["You: First #echo #rate=0", "You: Second #echo #rate=0"]
    )
    await expect(page.get_by_test_id("answer").last).to_have_attribute("data-state", "completed")
    assert (await remembered(page))[1]["id"] == kept["id"]

    gone = json.dumps({**kept, "id": kept["id"][:-4] + "0000"})
    await page.evaluate("([place, gone]) => localStorage.setItem(place, gone)", [place, gone])
    await page.reload()
    async with held(page, "**/v1/conversations/*") as made:
        await page.get_by_test_id("bubble").click()
        await asyncio.wait_for(made.wait(), 20)
        await send(page, "Third #echo #rate=0")
    await expect(page.get_by_test_id("answer")).to_have_text(["Third"], timeout=20_000)
    await expect(page.get_by_test_id("question")).to_have_text(["You: Third #echo #rate=0"])
    await expect(page.get_by_test_id("thread")).to_contain_text("How can we help?")


@pytest.mark.parametrize("left", ["{", "null", '{"id": 7}'])
async def test_corrupt_memory_opens_cleanly(visit: Visit, left: str) -> None:
    """What is kept under the widget's name and is no conversation counts as none."""
    page = await visit()
    await page.get_by_test_id("bubble").click()
    await ask(page, "Hello #echo #rate=0")
    place, _ = await remembered(page)
    await page.evaluate("([place, left]) => localStorage.setItem(place, left)", [place, left])
    await page.reload()
    await page.get_by_test_id("bubble").click()
    await expect(page.get_by_test_id("thread")).to_have_text("Hello! How can we help?")
    await ask(page, "Hello again #echo #rate=0")


async def test_last_visit_that_could_not_be_read_comes_once_it_can(visit: Visit) -> None:
    """A message that was sent meanwhile stays where it is, and is not shown a second time."""
    page = await visit(refusals=True)
    await page.get_by_test_id("bubble").click()
    await ask(page, "First #echo #rate=0")
    await page.reload()
    await page.route("**/v1/conversations/*", lambda route: route.abort())
    await page.get_by_test_id("bubble").click()
    await expect(page.get_by_test_id("problem")).to_be_visible(timeout=20_000)
    await ask(page, "Second #echo #rate=0")
    await page.unroute("**/v1/conversations/*")
    await page.get_by_test_id("bubble").click()
    await page.get_by_test_id("bubble").click()
    await expect(page.get_by_test_id("answer")).to_have_text(["First", "Second"], timeout=20_000)
    await expect(page.get_by_test_id("question")).to_have_text(
        ["You: First #echo #rate=0", "You: Second #echo #rate=0"]
    )
    await expect(page.get_by_test_id("problem")).to_have_count(0)


async def test_storage_without_room_stands_in_nobodys_way(visit: Visit) -> None:
    """A site that has filled its storage still chats; the conversation is known until the page is left."""
    page = await visit()
    full = """() => {
      let room = 5 * 1024 * 1024;
      for (let at = 0; room; ) try { localStorage.setItem(`full${at}`, "x".repeat(room)); at++; } catch { room >>= 1; }
    }"""
    await page.evaluate(full)
    await page.get_by_test_id("bubble").click()
    await ask(page, "Hello #echo #rate=0")
    await ask(page, "Again #echo #rate=0")
    await expect(page.get_by_test_id("answer")).to_have_text(["Hello", "Again"])
    await expect(page.get_by_test_id("problem")).to_have_count(0)
    assert await page.evaluate("Object.keys(localStorage).filter(name => name.startsWith('hyperleap'))") == []
