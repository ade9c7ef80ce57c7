"""A person at the console: what they do, and what they see; and what the admin API says of the same."""

from __future__ import annotations

from typing import Any

from playwright.async_api import BrowserContext, Locator, Page, expect

from tests.page.demo import Demo
from tests.page.visitor import WATCH_POLICY

GO = """view => new Promise((shown) => {
  if (location.hash === view) return shown();
  addEventListener("hashchange", shown, {once: true});
  location.hash = view;
})"""
TOKEN = "0123456789abcdef0123456789abcdef-of-an-operator"


class Operator:
    """One tab. It remembers everything that the browser complains of."""

    def __init__(self, demo: Demo, page: Page) -> None:
        self.demo = demo
        self.page = page
        self.complaints: list[str] = []
        self.expects_failures = False  # requests that fail on purpose are complained of by the browser itself
        page.on(
            "console", lambda told: self.complaints.append(told.text) if told.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))

    @classmethod
    async def arrive(cls, demo: Demo, context: BrowserContext, view: str = "") -> Operator:
        """Open the console in a tab, not yet signed in."""
        page = await context.new_page()
        await page.add_init_script(WATCH_POLICY)
        operator = cls(demo, page)
        await page.goto(f"{demo.internal_url}/admin{view}")
        return operator

    async def sign_in(self, token: str = TOKEN) -> None:
        await self.see("token").fill(token)
        await self.see("enter").click()

    async def go(self, view: str, title: str) -> None:
        """Go to a view and wait until it stands there."""
        await self.page.evaluate(GO, view)
        await expect(self.see("title")).to_have_text(title)
        await self.wait()

    async def choose(self, name: str) -> None:
        """Press one of a few buttons beside each other, and wait until what it says is shown."""
        await self.see(name).click()
        await expect(self.see(name)).to_have_attribute("aria-pressed", "true")
        await self.wait()

    async def wait(self) -> None:
        """Wait until nothing is asked for any more."""
        await expect(self.page.locator("[aria-busy]")).to_have_count(0)

    async def check_calm(self) -> None:
        """Fail when the page threw, broke its content security policy, or made the browser complain."""
        assert await self.page.evaluate("window.violations") == []
        told = [text for text in self.complaints if not (self.expects_failures and "Failed to load resource" in text)]
        assert told == []

    # --- seeing --------------------------------------------------------------------------------------------------

    def see(self, name: str) -> Locator:
        return self.page.get_by_test_id(name)

    async def rows(self, name: str) -> list[list[str]]:
        """Return the cells of the table in a panel, as they are read."""
        found: list[list[str]] = (
            await self.see(name)
            .locator("tbody tr")
            .evaluate_all("rows => rows.map(row => [...row.cells].map(cell => cell.innerText.trim()))")
        )
        return found

    # --- the API beside the page -----------------------------------------------------------------------------------

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """Ask the admin API itself; the answer is a good one."""
        response = await self.page.request.fetch(
            f"{self.demo.internal_url}/admin/v1{path}",
            method=method,
            data=body,
            headers={"Authorization": f"Bearer {TOKEN}"},
        )
        assert response.ok, await response.text()
        return await response.json() if response.status != 204 else None
