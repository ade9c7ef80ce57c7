"""Thumbs and comments."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from tests.page.conftest import Arrive

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]


async def test_thumb_with_comment_reaches_the_gateway_and_survives_a_reload(arrive: Arrive, transport: str) -> None:
    """A thumb and its comment are the gateway's, not the page's: a reload shows them again."""
    visitor = await arrive(transport)
    await visitor.ask("Hello #tokens=10 #rate=0")
    await visitor.see("thumb-down").click()
    await visitor.page.get_by_role("button", name="incomplete").click()
    await visitor.see("feedback-comment").fill("The second half is missing.")
    await visitor.see("feedback-send").click()
    await expect(visitor.see("feedback-given")).to_contain_text("The second half is missing.")
    feedback = (await visitor.record())["messages"][-1]["feedback"]
    told = (feedback["score"], feedback["comments"], feedback["tags"])
    assert told == (-10, "The second half is missing.", ["incomplete"])
    await visitor.page.reload()
    await expect(visitor.see("thumb-down")).to_have_attribute("aria-pressed", "true")
    await expect(visitor.see("thumb-up")).to_have_attribute("aria-pressed", "false")
    await expect(visitor.see("feedback-given")).to_contain_text("The second half is missing.")


async def test_thumb_alone_is_enough(arrive: Arrive) -> None:
    """No comment is asked for before a thumb counts, and a mind may be changed."""
    visitor = await arrive()
    await visitor.ask("Hello #tokens=10 #rate=0")
    await visitor.see("thumb-up").click()
    await expect(visitor.see("thumb-up")).to_have_attribute("aria-pressed", "true")
    await visitor.page.get_by_role("button", name="Not now").click()
    await visitor.see("thumb-down").click()
    await expect(visitor.see("thumb-up")).to_have_attribute("aria-pressed", "false")
    await expect(visitor.page.locator("#status-line")).to_have_text("Marked as a bad answer.")
    assert (await visitor.record())["messages"][-1]["feedback"]["score"] == -10


async def test_feedback_that_cannot_be_sent_is_said_and_taken_back(arrive: Arrive) -> None:
    """A thumb that did not arrive does not stay pressed."""
    visitor = await arrive()
    visitor.expects_failures = True
    await visitor.ask("Hello #tokens=10 #rate=0")
    await visitor.page.route("**/feedback", lambda route: route.abort())
    await visitor.see("thumb-up").click()
    await expect(visitor.page.get_by_text("Not sent.")).to_be_visible()
    await expect(visitor.see("thumb-up")).to_have_attribute("aria-pressed", "false")
