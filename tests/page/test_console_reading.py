"""How the console reads: on a phone, in the dark, by keyboard and with a screen reader."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from tests.page.customers import ACME, GLOBEX, Customers
from tests.page.operator import Operator

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

VIEWS = {
    "#/usage?range=24h": "Usage",
    "#/latency": "Latency",
    "#/outcomes": "Outcomes",
    "#/live": "Live turns",
    "#/tenants": "Tenants",
    f"#/tenants/{ACME}": ACME,
    "#/tenants/+new": "New tenant",
}
SIZES = {"desk": (1280, 860), "phone": (360, 740)}

# The smallest contrast of a text or of a drawn figure to the ground that it lies on (WCAG 2.2, relative luminance).
CONTRAST = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const light = (rgb) => [0.2126, 0.7152, 0.0722].reduce((sum, share, i) => sum + share * linear(rgb[i] / 255), 0);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const ratio = (a, b) => {
    const [x, y] = [light(a), light(b)];
    return (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05);
  };
  const found = [];
  const shown = (node) => node.checkVisibility() && !node.closest("[disabled]");
  const own = (node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
  for (const node of document.querySelectorAll("body *")) {
    if (!shown(node)) continue;
    const svg = node instanceof SVGElement;
    if (own(node) || node.matches("input, select, textarea")) {
      const style = getComputedStyle(node);
      const colour = parse(svg ? style.fill : style.color);
      found.push([ratio(colour, ground(svg ? node.closest("figure") : node)) / 4.5, node.textContent.slice(0, 40)]);
    } else if (node.matches("figure :is(rect, circle)")) {
      const fill = parse(getComputedStyle(node).fill);
      found.push([ratio(fill, ground(node.closest("figure"))) / 3, node.getAttribute("class")]);
    }
  }
  return found.filter(([share]) => share < 1);
}"""
NAMELESS = """() => {
  const named = (e) => e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length;
  const kinds = 'button, a, input, select, textarea, [role=region], [role=img], [role=group]';
  const all = [...document.querySelectorAll(kinds)];
  return all.filter((e) => !named(e)).map((e) => e.outerHTML);
}"""


@pytest.mark.parametrize(
    ("form", "scheme"),
    [
        ("desk", "light"),
        pytest.param("desk", "dark", marks=pytest.mark.slow),
        pytest.param("phone", "light", marks=pytest.mark.slow),
        ("phone", "dark"),
    ],
)
async def test_every_view_fits_and_stands_out(customers: Customers, browser: Browser, form: str, scheme: str) -> None:
    """No view scrolls sideways, a text has 4.5 to 1 and a bar 3 to 1 to its ground, everything to press has a name.

    Pictures are left in ``PAGE_SCREENSHOTS``, where that is set.
    """
    width, height = SIZES[form]
    context = await browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if scheme == "dark" else "light",
        is_mobile=form == "phone",
        has_touch=form == "phone",
        device_scale_factor=2,
        locale="en-GB",
        timezone_id="Europe/Berlin",
    )
    live = await customers.begin(GLOBEX, "default")
    operator = await Operator.arrive(customers.demo, context)
    await _check(operator, "door", form, scheme)
    await operator.sign_in()
    for view, title in VIEWS.items():
        await operator.go(view, title)
        await expect(operator.page.locator(".panel, .table-box").first).to_be_visible()
        await _check(operator, title.split()[0].lower(), form, scheme)
    await operator.go(f"#/tenants/{ACME}", ACME)
    await operator.see("new-key").click()
    await _check(operator, "dialog", form, scheme)
    await operator.check_calm()
    await customers.admin("POST", f"/tenants/{GLOBEX}/turns/{live}/stop")
    await context.close()


async def _check(operator: Operator, name: str, form: str, scheme: str) -> None:
    page = operator.page
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
    assert await page.evaluate(CONTRAST) == [], name
    assert await page.evaluate(NAMELESS) == [], name
    ids: list[str] = await page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids)), name
    if folder := os.environ.get("PAGE_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        await page.screenshot(path=Path(folder) / f"console-{name}-{form}-{scheme}.png", full_page=True)


async def test_views_are_reached_by_keyboard_and_said(operator: Operator) -> None:
    """Tab leads past a link to the content to the views; Enter shows one, and the focus is at its title then."""
    await operator.page.reload()
    await expect(operator.see("title")).to_be_visible()
    await operator.page.keyboard.press("Tab")
    await expect(operator.page.locator(".skip")).to_be_focused()
    await operator.page.keyboard.press("Tab")
    await operator.page.keyboard.press("Tab")
    await expect(operator.page.locator("[data-room=latency]")).to_be_focused()
    await operator.page.keyboard.press("Enter")
    await expect(operator.see("title")).to_have_text("Latency")
    await expect(operator.see("title")).to_be_focused()
    await expect(operator.page.locator("[data-room=latency]")).to_have_attribute("aria-current", "page")
    await expect(operator.page).to_have_title("Latency · Gateway console")


async def test_dialog_keeps_the_focus_and_gives_it_back(operator: Operator) -> None:
    """A question holds the keyboard, Escape says no, and one stands where one was; Enter alone destroys nothing."""
    await operator.go(f"#/tenants/{GLOBEX}", GLOBEX)
    await operator.see("revoke").focus()
    await operator.page.keyboard.press("Enter")
    await expect(operator.page.locator("#dialog-title")).to_be_focused()
    await operator.page.keyboard.press("Enter")
    await expect(operator.see("dialog")).to_be_visible()
    await operator.page.keyboard.press("Escape")
    await expect(operator.see("dialog")).to_be_hidden()
    await expect(operator.see("revoke")).to_be_focused()
    assert (await operator.call("GET", f"/tenants/{GLOBEX}"))["state"] == "active"


async def test_table_keeps_its_roles_where_rows_are_cards(customers: Customers, browser: Browser) -> None:
    """A screen reader finds the same table on a phone: rows with headers, and every figure with its column's name."""
    context = await browser.new_context(viewport={"width": 360, "height": 740}, is_mobile=True, locale="en-GB")
    operator = await Operator.arrive(customers.demo, context)
    await operator.sign_in()
    await operator.go("#/tenants", "Tenants")
    table = operator.page.get_by_role("table", name="Tenants")
    await expect(table.get_by_role("row", name=ACME)).to_be_visible()
    await expect(table.get_by_role("rowheader", name=ACME)).to_be_visible()
    assert await table.get_by_role("columnheader").all_inner_texts() == [
        *("Tenant", "State", "Written in", "Plan", "Personas", "Origins", "Actions")
    ]
    await context.close()
