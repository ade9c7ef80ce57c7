"""A real gateway, a real Chromium, and visitors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, async_playwright, expect

from tests.page.chromium import find_chromium, launch
from tests.page.customers import ACME, GLOBEX, Customers
from tests.page.demo import Demo, running_demo
from tests.page.operator import TOKEN, Operator
from tests.page.visitor import Visitor

Arrive = Callable[..., Awaitable[Visitor]]


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """The gateway with its stand-in Hyperleap, one for the session."""
    with running_demo(tmp_path_factory.mktemp("demo")) as started:
        yield started


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """One Chromium for the session."""
    expect.set_options(timeout=10_000)
    async with async_playwright() as playwright:
        path = find_chromium(playwright)
        if path is None:
            pytest.skip("no Chromium: set CHROMIUM_PATH, install chromium, or run `playwright install chromium`")
        started = await launch(playwright, path)
        yield started
        await started.close()


@pytest_asyncio.fixture(loop_scope="session")
async def context(browser: Browser) -> AsyncIterator[BrowserContext]:
    """A browser profile of its own, whose tabs share storage as a person's tabs do."""
    opened = await browser.new_context(viewport={"width": 1280, "height": 860})
    yield opened
    await opened.close()


@pytest.fixture(params=["ws", "sse"])
def transport(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest_asyncio.fixture(loop_scope="session")
async def arrive(demo: Demo, context: BrowserContext) -> AsyncIterator[Arrive]:
    """Make visitors; at the end no tab may have complained."""
    visitors: list[Visitor] = []

    async def make(transport: str = "ws", *, enter: bool = True) -> Visitor:
        visitor = await Visitor.arrive(demo, context, transport)
        visitors.append(visitor)
        if enter:
            await visitor.enter()
        return visitor

    yield make
    for visitor in visitors:
        await visitor.check_calm()


@pytest.fixture(scope="session")
def page_folder() -> Path:
    import gateway

    return Path(gateway.__file__).parent / "page"


@pytest.fixture(scope="session")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A gateway of two workers with an admin token, one for the session."""
    folder = tmp_path_factory.mktemp("console")
    token = folder / "admin-token"
    token.write_text(TOKEN, "utf-8")
    token.chmod(0o600)
    settings = {"GATEWAY_ADMIN_TOKEN_FILE": str(token), "GATEWAY_WORKERS": "2", "GATEWAY_LEDGER_LOOK_UP_S": "0.2,0.5"}
    with running_demo(folder, **settings) as started:
        yield started


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def customers(two_workers: Demo, browser: Browser) -> AsyncIterator[Customers]:
    """Two tenants of that gateway, of which some turns have been made: completed, failed, stopped and judged ones."""
    async with async_playwright() as playwright:
        http = await playwright.request.new_context()
        made = await Customers.move_in(two_workers, http)
        await made.ask(ACME, "support", "One #tokens=20 #rate=0", score=8)
        await made.ask(ACME, "support", "Two #tokens=30 #rate=0", score=-4)
        await made.ask(ACME, "sales", "Three #tokens=40 #rate=0")
        await made.ask(GLOBEX, "default", "Four #tokens=50 #rate=0", score=10)
        await made.ask(GLOBEX, "default", "Five #tokens=60 #rate=200 #fault=cut")
        stopped = await made.begin(ACME, "sales")
        assert (await made.post(ACME, f"/v1/turns/{stopped}/stop", {})).ok
        await made.ending(ACME, stopped)
        await made.settled(6)
        yield made
        await http.dispose()


@pytest_asyncio.fixture(loop_scope="session")
async def desk(browser: Browser) -> AsyncIterator[BrowserContext]:
    """A browser profile of its own, of a language and a zone that tests can read."""
    opened = await browser.new_context(viewport={"width": 1280, "height": 860}, locale="en-GB", timezone_id="UTC")
    yield opened
    await opened.close()


@pytest_asyncio.fixture(loop_scope="session")
async def operator(customers: Customers, desk: BrowserContext) -> AsyncIterator[Operator]:
    """Somebody who is signed in; at the end their tab may not have complained."""
    someone = await Operator.arrive(customers.demo, desk)
    await someone.sign_in()
    await expect(someone.see("title")).to_be_visible()
    yield someone
    await someone.check_calm()
