"""``useChat`` of ``@ai-sdk/react`` in a real browser, in an app of another origin whose page is loaded again."""

from __future__ import annotations

import json
import subprocess
import urllib.parse
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import Browser, Page, expect

from gateway.simulator.answers import answer as said
from tests.page.demo import Demo, running_demo
from tests.transports.npm import FOLDER, needs

pytestmark = [
    *needs("esbuild", "@ai-sdk/react", "react-dom"),
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.asyncio(loop_scope="session"),
]

LONG = "How do I reset my password? #tokens=200 #rate=40"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The app's script, made as apps' scripts are made."""
    made = tmp_path_factory.mktemp("app") / "app.js"
    command = [str(FOLDER / "node_modules/.bin/esbuild"), "chat_page.mjs", "--bundle", "--format=esm", "--minify"]
    subprocess.run([*command, f"--outfile={made}"], cwd=FOLDER, check=True, capture_output=True)
    return made


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def app_url(bundle: Path) -> AsyncIterator[str]:
    """An app's origin, which serves its page and nothing else."""

    async def page(_: web.Request) -> web.Response:
        text = "<!doctype html><title>An app</title><link rel=icon href=data:,><script type=module src=app.js></script>"
        return web.Response(text=text, content_type="text/html")

    async def script(_: web.Request) -> web.FileResponse:
        return web.FileResponse(bundle, headers={"Content-Type": "text/javascript"})

    app = web.Application()
    app.router.add_get("/", page)
    app.router.add_get("/app.js", script)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://localhost:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture(scope="module")
def gateway(app_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with running_demo(tmp_path_factory.mktemp("gateway"), GATEWAY_ORIGINS=app_url) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="session")
async def page(browser: Browser, app_url: str, gateway: Demo) -> AsyncIterator[Page]:
    """The app, opened by a user whose token the app's backend has fetched."""
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {gateway.secret_key}"}) as http,
        http.post(f"{gateway.url}/v1/sessions", json={"user_id": uuid.uuid4().hex}) as response,
    ):
        token = (await response.json())["token"]
    options = json.dumps({"url": gateway.url, "token": token, "id": uuid.uuid4().hex})
    context = await browser.new_context()
    opened = await context.new_page()
    await opened.goto(f"{app_url}/#{urllib.parse.quote(options)}")
    yield opened
    await context.close()


async def ask(page: Page, words: str) -> None:
    await page.get_by_label("Message").fill(words)
    await page.get_by_label("Message").press("Enter")


async def test_page_loaded_again_in_mid_answer_has_all_of_it(page: Page) -> None:
    """What was written before the page went, what is written while it loads, and the rest, once each."""
    await ask(page, LONG)
    answers = page.locator("[data-role=assistant]")
    await expect(answers).to_contain_text("password")
    await page.reload()
    await expect(page.locator("main")).to_have_attribute("data-status", "streaming")
    await expect(page.locator("main")).to_have_attribute("data-status", "ready", timeout=20_000)
    assert await answers.all_text_contents() == [said(LONG).text]
    assert await page.locator("[data-role=user]").all_text_contents() == [LONG]
    await ask(page, "And now? #tokens=8")
    await expect(answers).to_have_text([said(LONG).text, said("And now? #tokens=8").text], timeout=20_000)
    await expect(page.get_by_role("alert")).to_have_count(0)


async def test_stop_ends_the_answer_and_not_only_the_connection(page: Page) -> None:
    """The line of the documentation does: the page is told the end, and loaded again it finds nothing running."""
    await ask(page, "Hi #tokens=4000 #rate=40")
    answer = page.locator("[data-role=assistant]")
    await expect(answer).not_to_be_empty()
    await page.get_by_role("button", name="Stop").click()
    await expect(page.locator("main")).to_have_attribute("data-status", "ready", timeout=20_000)
    text = await answer.text_content()
    await page.reload()
    await expect(answer).to_have_text(text or "")
    await expect(page.locator("main")).to_have_attribute("data-status", "ready")
