"""A real gateway, a real Chromium, and visitors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, async_playwright, expect

from tests.page.chromium import find_chromium, launch
from tests.page.demo import Demo, running_demo
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
