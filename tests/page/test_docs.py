"""The reference pages in a browser: on a phone, in the dark, and under their own policy."""

from __future__ import annotations

import pytest
from playwright.async_api import Browser, ConsoleMessage, ViewportSize

from tests.page.demo import Demo

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

PAGES = ("/docs", "/docs/http", "/docs/websocket", "/docs/settings", "/docs/errors", "/docs/limits")
PHONE: ViewportSize = {"width": 360, "height": 740}


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_reference_pages_fit_a_phone_and_both_schemes(scheme: str, demo: Demo, browser: Browser) -> None:
    """No page scrolls sideways on a phone, text stands out from its ground, and the browser complains of nothing."""
    complaints: list[str] = []

    def hear(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            complaints.append(message.text)

    context = await browser.new_context(viewport=PHONE, color_scheme="dark" if scheme == "dark" else "light")
    page = await context.new_page()
    page.on("console", hear)
    page.on("requestfailed", lambda request: complaints.append(request.url))
    for path in PAGES:
        await page.goto(demo.url + path)
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        contrast = await page.evaluate(CONTRAST)
        assert contrast >= 4.5, (path, contrast)
        ground = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(21, 23, 24)" if scheme == "dark" else "rgb(251, 251, 249)")
    await context.close()
    assert complaints == []


async def test_link_of_a_problem_leads_to_its_row(demo: Demo, browser: Browser) -> None:
    """The ``type`` of an error, followed in a browser, shows the row of its code."""
    context = await browser.new_context(viewport=PHONE)
    page = await context.new_page()
    refused = await page.request.get(f"{demo.url}/v1/conversations")
    await page.goto(demo.url + (await refused.json())["type"])
    row = page.locator("tr", has=page.locator("#credential_missing"))
    assert "401" in await row.inner_text()
    assert await row.evaluate(
        "row => { const box = row.getBoundingClientRect(); return box.top >= 0 && box.top < innerHeight }"
    )
    await context.close()


# The smallest contrast of a text on the page to the ground that it lies on (WCAG 2.2, relative luminance).
CONTRAST = """() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const linear = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = rgb => [0.2126, 0.7152, 0.0722].reduce((sum, share, i) => sum + share * linear(rgb[i] / 255), 0);
  const ground = node => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  let least = 21;
  for (const node of document.querySelectorAll("main :is(p, li, td, th, code, a, h1, h2, h3), nav a, header a")) {
    const [a, b] = [light(parse(getComputedStyle(node).color)), light(ground(node))];
    least = Math.min(least, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  }
  return least;
}"""
