"""How the page reads: markdown that cannot hurt, a keyboard, a screen reader, a small screen."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from tests.page.conftest import Arrive
from tests.page.demo import Demo
from tests.page.visitor import Visitor

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

HOSTILE = """<img src=x onerror="window.harm=1"> <script>window.harm=1</script>

[click](javascript:window.harm=1) [data](data:text/html,<script>window.harm=1</script>) ![pixel](https://example.com/p.png)

<a href="javascript:window.harm=1">raw</a> <svg onload="window.harm=1"><style>*{display:none}</style></svg>

<p style="position:fixed">styled</p> <form action="https://example.com"><button>send</button></form>

[good](https://example.com/page)"""

MARKDOWN = """## Heading

1. one
2. **two**

| a | b |
| --- | ---: |
| 1 | 2 |

```python
print("hi")
```

- [x] done"""


async def test_hostile_markdown_does_nothing(arrive: Arrive, transport: str) -> None:
    """What a model writes can neither run, nor call another host, nor change the page."""
    visitor = await arrive(transport)
    await visitor.ask(f"{HOSTILE}\n#echo #rate=0")
    answer = visitor.see("answer-text").last
    assert await answer.locator("img, script, svg, style, form, [style], [onerror], [onload]").count() == 0
    assert await answer.locator("a[href^='javascript'], a[href^='data']").count() == 0
    for link in await answer.locator("a").all():
        assert await link.get_attribute("target") == "_blank"
        assert "noopener" in (await link.get_attribute("rel") or "")
    await expect(answer.get_by_role("link", name="good")).to_have_attribute("href", "https://example.com/page")
    await expect(answer).to_contain_text("<img src=x onerror=")
    await answer.get_by_text("click").click()
    assert await visitor.page.evaluate("window.harm") is None
    assert not any("example.com" in url for url in visitor.requests)


async def test_markdown_is_drawn(arrive: Arrive) -> None:
    """Headings, lists, tables and code look like what they are; code can be copied."""
    visitor = await arrive()
    await visitor.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await visitor.ask(f"{MARKDOWN}\n\n#echo #rate=60")
    answer = visitor.see("answer-text").last
    await expect(answer.get_by_role("heading", name="Heading")).to_be_visible()
    await expect(answer.locator("ol > li")).to_have_text(["one", "two"])
    await expect(answer.locator("td[align=right]")).to_have_text("2")
    await expect(answer.locator("ul > li")).to_contain_text("☑ done")
    await answer.get_by_role("button", name="Copy this python code").click()
    await expect(answer.get_by_role("button", name="Copy this python code")).to_have_text("Copied")
    assert await visitor.page.evaluate("navigator.clipboard.readText()") == 'print("hi")'


async def test_enter_sends_and_shift_enter_makes_a_line(arrive: Arrive) -> None:
    """The keyboard alone is enough to write, send and go on writing."""
    visitor = await arrive()
    await expect(visitor.see("message")).to_be_focused()
    await visitor.page.keyboard.type("one")
    await visitor.page.keyboard.press("Shift+Enter")
    await visitor.page.keyboard.type("two #echo #rate=0")
    await visitor.page.keyboard.press("Enter")
    await visitor.wait_for_end()
    assert await visitor.see("question").inner_text() == "one\ntwo #echo #rate=0"
    await expect(visitor.see("message")).to_be_focused()
    await expect(visitor.see("message")).to_have_value("")


async def test_draft_survives_a_reload(arrive: Arrive) -> None:
    """What is written and not sent is still there after a reload."""
    visitor = await arrive()
    await visitor.see("message").fill("half a thought")
    await visitor.page.reload()
    await expect(visitor.see("message")).to_have_value("half a thought")


async def test_reader_who_scrolled_up_is_left_alone(arrive: Arrive) -> None:
    """The page follows the answer until its reader scrolls up, and again once they ask for it."""
    visitor = await arrive()
    await visitor.page.set_viewport_size({"width": 700, "height": 420})
    await visitor.say("Tell me a lot #tokens=3000 #rate=60")
    at_end = """() => {
      const s = document.querySelector('#scroller');
      return s.scrollHeight - s.scrollTop - s.clientHeight < 40 && s.scrollTop > 300;
    }"""
    await visitor.page.wait_for_function(at_end)
    await visitor.page.mouse.move(350, 200)
    await visitor.page.mouse.wheel(0, -300)
    await expect(visitor.see("jump")).to_be_visible()
    before = await visitor.page.evaluate("document.querySelector('#scroller').scrollTop")
    length = len(await visitor.answer())
    await visitor.wait_for_text(length + 60)
    assert await visitor.page.evaluate("document.querySelector('#scroller').scrollTop") == before
    await visitor.see("jump").click()
    await visitor.page.wait_for_function(at_end)
    await expect(visitor.see("jump")).to_be_hidden()
    await visitor.see("stop").click()
    await visitor.wait_for_end("stopped")


async def test_screen_reader_hears_each_paragraph_once(arrive: Arrive) -> None:
    """The growing text is no live region; finished paragraphs are read out once, and so is the end."""
    visitor = await arrive()
    await visitor.ask("First paragraph.\n\nSecond paragraph.\n\nThird one.\n#echo #rate=30")
    spoken = visitor.page.locator("#spoken-log > p")
    await expect(spoken).to_have_text(["First paragraph.", "Second paragraph.", "Third one."])
    await expect(visitor.page.locator("#status-line")).to_have_text("Answer complete.")
    assert await visitor.page.locator("#thread[aria-live], #thread [aria-live]").count() == 0
    await visitor.page.reload()
    await expect(visitor.see("answer")).to_have_count(1)
    await expect(spoken).to_have_count(0)


async def test_everything_to_press_has_a_name(arrive: Arrive) -> None:
    """No button, link or field is without an accessible name, and ids are unique."""
    visitor = await arrive()
    await visitor.ask("Hello #tokens=10 #rate=0 #citations")
    await visitor.see("thumb-up").click()
    nameless = await visitor.page.evaluate("""() => {
      const named = (e) => e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length;
      const all = [...document.querySelectorAll('button, a, input, textarea, [role=region]')];
      return all.filter((e) => !named(e)).map((e) => e.outerHTML);
    }""")
    assert nameless == []
    ids: list[str] = await visitor.page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))


async def test_narrow_page_keeps_its_list_in_a_drawer(browser: Browser, demo: Demo) -> None:
    """On a phone nothing overflows sideways, and the conversations slide in when asked for."""
    context = await browser.new_context(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    visitor = await Visitor.arrive(demo, context)
    await visitor.enter()
    await visitor.ask(f"{'long' * 60} {MARKDOWN}\n#echo #rate=0")
    assert await visitor.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert await visitor.page.evaluate("document.querySelector('#scroller').scrollWidth <= innerWidth")
    await expect(visitor.see("sidebar")).not_to_be_visible()
    await visitor.see("menu").click()
    await expect(visitor.see("conversation")).to_be_visible()
    await visitor.page.keyboard.press("Escape")
    await expect(visitor.see("sidebar")).not_to_be_visible()
    await visitor.check_calm()
    await context.close()


@pytest.mark.parametrize(
    ("form", "width", "height", "scheme"),
    [
        ("desk", 1280, 860, "light"),
        pytest.param("desk", 1280, 860, "dark", marks=pytest.mark.slow),
        pytest.param("phone", 390, 844, "light", marks=pytest.mark.slow),
        pytest.param("phone", 390, 844, "dark", marks=pytest.mark.slow),
    ],
)
async def test_page_is_photographed(
    browser: Browser, demo: Demo, tmp_path: Path, scheme: str, form: str, width: int, height: int
) -> None:
    """Pictures of the page in both schemes and widths are left in ``PAGE_SCREENSHOTS``, or the test's own folder."""
    folder = Path(os.environ.get("PAGE_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    context = await browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if scheme == "dark" else "light",
        device_scale_factor=2,
    )
    visitor = await Visitor.arrive(demo, context)
    await visitor.enter()
    shots = [await visitor.page.screenshot(path=folder / f"{scheme}-{form}-greeting.png")]
    await visitor.ask("How does an answer survive a lost connection? #tokens=160 #rate=0 #citations=3")
    await visitor.see("thumb-up").click()
    shots.append(await visitor.page.screenshot(path=folder / f"{scheme}-{form}-feedback.png"))
    await visitor.page.get_by_role("button", name="Not now").click()
    await visitor.ask("And when the assistant fails? #tokens=60 #rate=0 #fault=cut", ends="failed")
    await visitor.say("And while it is being written? #tokens=400 #rate=25")
    await visitor.wait_for_text(200)
    shots.append(await visitor.page.screenshot(path=folder / f"{scheme}-{form}-streaming.png"))
    await visitor.see("stop").click()
    await visitor.wait_for_end("stopped")
    assert all(len(shot) > 10_000 for shot in shots)
    await visitor.check_calm()
    await context.close()
