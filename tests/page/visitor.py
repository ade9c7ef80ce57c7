"""A person at the chat page: what they do, and what they see."""

from __future__ import annotations

from typing import Any

from playwright.async_api import BrowserContext, ConsoleMessage, Error, Locator, Page, expect

from tests.page.demo import Demo

CONVERSATION = "() => new URLSearchParams(location.hash.slice(1)).get('c')"
RECORD = """async () => {
  const id = new URLSearchParams(location.hash.slice(1)).get('c');
  const {token} = JSON.parse(sessionStorage.getItem('hyperleap.token'));
  const response = await fetch(`/v1/conversations/${id}`, {headers: {authorization: `Bearer ${token}`}});
  return response.json();
}"""
WATCH_POLICY = """
  window.violations = [];
  document.addEventListener('securitypolicyviolation',
    (e) => window.violations.push(`${e.violatedDirective} ${e.blockedURI}`));
"""


class Visitor:
    """One tab. It remembers everything that the browser complains of."""

    def __init__(self, demo: Demo, page: Page, transport: str) -> None:
        self.demo = demo
        self.page = page
        self.transport = transport
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.expects_failures = False  # requests that fail on purpose are complained of by the browser itself
        page.on("console", self._heard)
        page.on("pageerror", self._crashed)
        page.on("request", lambda request: self.requests.append(request.url))

    @classmethod
    async def arrive(cls, demo: Demo, context: BrowserContext, transport: str = "ws") -> Visitor:
        """Open a tab, not yet on the page."""
        page = await context.new_page()
        await page.add_init_script(WATCH_POLICY)
        return cls(demo, page, transport)

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _crashed(self, error: Error) -> None:
        self.complaints.append(f"uncaught: {error}")

    async def check_calm(self) -> None:
        """Fail when the page threw, broke its content security policy, or made the browser complain."""
        assert await self.page.evaluate("window.violations") == []
        told = [text for text in self.complaints if not (self.expects_failures and "Failed to load resource" in text)]
        assert told == []

    # --- doing ---------------------------------------------------------------------------------------------------

    async def enter(self, fragment: str | None = None) -> None:
        """Open the link that the demo prints, and wait until the chat is ready."""
        await self.go(fragment if fragment is not None else f"key={self.demo.publishable_key}")
        await expect(self.see("status")).to_have_attribute("data-state", "live")

    async def go(self, fragment: str = "") -> None:
        query = "?transport=sse" if self.transport == "sse" else ""
        await self.page.goto(f"{self.demo.url}/{query}{'#' if fragment else ''}{fragment}")

    async def say(self, text: str) -> None:
        await self.see("message").fill(text)
        await self.see("message").press("Enter")

    async def ask(self, text: str, ends: str = "completed") -> str:
        """Send a message and wait for the answer's end; returns the answer as it is read."""
        before = await self.see("answer").count()
        await self.say(text)
        await expect(self.see("answer")).to_have_count(before + 1)
        return await self.wait_for_end(ends)

    async def wait_for_end(self, ends: str = "completed") -> str:
        await expect(self.see("answer").last).to_have_attribute("data-state", ends, timeout=20_000)
        return await self.answer()

    async def wait_for_text(self, least: int = 1) -> None:
        """Wait until the last answer shows at least this many characters."""
        await self.page.wait_for_function(
            "n => [...document.querySelectorAll('[data-testid=answer-text]')].at(-1)?.innerText.length >= n", arg=least
        )

    # --- seeing --------------------------------------------------------------------------------------------------

    def see(self, name: str) -> Locator:
        return self.page.get_by_test_id(name)

    async def answer(self) -> str:
        return (await self.see("answer-text").last.inner_text()).strip()

    async def is_intact(self) -> bool:
        """Whether what was streamed, event by event, is exactly what the turn's ending says."""
        return await self.see("answer").last.get_attribute("data-intact") == "true"

    async def conversation(self) -> str:
        found: str = await self.page.evaluate(CONVERSATION)
        return found

    async def record(self) -> dict[str, Any]:
        """The conversation as the gateway has it."""
        found: dict[str, Any] = await self.page.evaluate(RECORD)
        return found
