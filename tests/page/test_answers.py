"""Answers on the page: streamed, stopped, resumed, shared, and honest about what went wrong."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from tests.page.conftest import Arrive

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

WORDS = " ".join(f"w{i:03}" for i in range(120))


async def test_answer_while_streaming_grows_word_by_word(arrive: Arrive, transport: str) -> None:
    """An answer is shown while it is written, each sight of it continuing the last, and ends as the gateway has it."""
    visitor = await arrive(transport)
    await visitor.say(f"{WORDS} #echo #rate=40")
    seen: list[str] = []
    while await visitor.see("stop").is_visible() or not seen:
        text = await visitor.answer() if await visitor.see("answer").count() else ""
        if text and (not seen or text != seen[-1]):
            seen.append(text)
        await visitor.page.wait_for_timeout(50)
    assert len(seen) > 5
    assert all(WORDS.startswith(text) for text in seen)
    assert await visitor.wait_for_end() == WORDS
    assert await visitor.is_intact()
    assert (await visitor.record())["messages"][-1]["content"] == WORDS
    await expect(visitor.see("status")).to_have_attribute("data-transport", transport)


async def test_answer_ended_shows_tokens_and_time_to_first_words(arrive: Arrive) -> None:
    """Below an answer stand its tokens, in and out, and how long its first words took."""
    visitor = await arrive()
    await visitor.ask("Hello #tokens=12 #rate=0")
    usage = (await visitor.record())["messages"][-1]["usage"]
    meta = await visitor.see("meta").last.inner_text()
    assert f"{usage['prompt_tokens']} tokens in" in meta
    assert f"{usage['completion_tokens']} out" in meta
    assert "first words after" in meta


async def test_stop_while_streaming_ends_the_answer_and_says_so(arrive: Arrive, transport: str) -> None:
    """The stop button ends the answer at the gateway too, keeps what arrived, and gives the composer back."""
    visitor = await arrive(transport)
    await visitor.say("Tell me a lot #tokens=2000 #rate=20")
    await visitor.wait_for_text(20)
    await visitor.see("stop").click()
    text = await visitor.wait_for_end("stopped")
    await expect(visitor.see("stopped")).to_have_text("You stopped this answer.")
    await expect(visitor.see("send")).to_be_visible()
    assert text
    assert await visitor.is_intact()
    last = (await visitor.record())["messages"][-1]
    assert last["state"] == "stopped"


async def test_escape_while_streaming_stops_the_answer(arrive: Arrive) -> None:
    """Esc does what the stop button does."""
    visitor = await arrive()
    await visitor.say("Tell me a lot #tokens=2000 #rate=20")
    await visitor.wait_for_text(5)
    await visitor.page.keyboard.press("Escape")
    await visitor.wait_for_end("stopped")


async def test_reload_in_mid_answer_resumes_it_without_loss_or_repetition(arrive: Arrive, transport: str) -> None:
    """A reload in the middle of an answer shows what there was, goes on live, and ends with exactly the whole text."""
    visitor = await arrive(transport)
    question = f"{WORDS} #echo #rate=30"
    await visitor.say(question)
    await visitor.wait_for_text(60)
    await visitor.page.reload()
    await visitor.wait_for_text(60)
    asked = await visitor.see("question").all_inner_texts()
    await expect(visitor.see("answer").last).to_have_attribute("data-state", "streaming")
    assert asked == [question]  # already while the answer is written
    assert await visitor.wait_for_end() == WORDS
    assert await visitor.is_intact()
    messages = (await visitor.record())["messages"]
    assert [message["content"] for message in messages] == [question, WORDS]
    await expect(visitor.see("question")).to_have_count(1)
    await expect(visitor.see("answer")).to_have_count(1)


async def test_reload_after_the_end_shows_the_conversation_as_it_was(arrive: Arrive, transport: str) -> None:
    """Questions and answers of the past come back in order."""
    visitor = await arrive(transport)
    await visitor.ask("alpha beta #echo #rate=0")
    await visitor.ask("gamma delta #echo #rate=0")
    await visitor.page.reload()
    await expect(visitor.see("answer-text")).to_have_text(["alpha beta", "gamma delta"])
    await expect(visitor.see("question")).to_have_count(2)


async def test_two_tabs_read_the_same_turn(arrive: Arrive, transport: str) -> None:
    """A second tab on the same conversation shows a turn that the first one starts, question and all, as it happens."""
    first = await arrive(transport)
    await first.ask("before #echo #rate=0")
    second = await arrive(transport, enter=False)
    await second.enter(f"c={await first.conversation()}")
    await expect(second.see("answer")).to_have_count(1)
    await first.say(f"{WORDS} #echo #rate=40")
    await first.wait_for_text(20)
    await second.page.bring_to_front()
    await second.wait_for_text(20)
    asked = await second.see("question").count()
    await expect(second.see("answer").last).to_have_attribute("data-state", "streaming")
    assert asked == 2  # already while the answer is written
    assert await first.wait_for_end() == WORDS
    assert await second.wait_for_end() == WORDS
    assert await first.is_intact()
    assert await second.is_intact()


async def test_stop_in_another_tab_ends_the_answer_in_both(arrive: Arrive, transport: str) -> None:
    """A turn belongs to the conversation, not to the tab that started it."""
    first = await arrive(transport)
    await first.say("Tell me a lot #tokens=2000 #rate=20")
    await first.wait_for_text(20)
    second = await arrive(transport, enter=False)
    await second.enter(f"c={await first.conversation()}")
    await second.wait_for_text(20)
    await second.see("stop").click()
    await second.wait_for_end("stopped")
    await first.wait_for_end("stopped")


async def test_upstream_cut_is_said_in_words_and_keeps_what_arrived(arrive: Arrive, transport: str) -> None:
    """An answer that the vendor cuts off is never passed off as whole, live or after a reload."""
    visitor = await arrive(transport)
    await visitor.ask("Tell me something #tokens=60 #rate=0 #fault=cut", ends="failed")
    await expect(visitor.see("problem")).to_contain_text("broke off")
    assert len(await visitor.answer()) > 20
    await visitor.page.reload()
    await expect(visitor.see("answer").last).to_have_attribute("data-state", "failed")
    await expect(visitor.see("problem")).to_be_visible()


async def test_upstream_error_is_said_in_words_and_can_be_asked_again(arrive: Arrive, transport: str) -> None:
    """When the vendor answers with an error the page says so in plain words and offers to ask again."""
    visitor = await arrive(transport)
    await visitor.ask("Hello #fault=500", ends="failed")
    await expect(visitor.see("problem")).to_contain_text("The assistant had an error.")
    await visitor.see("ask-again").click()
    await expect(visitor.see("answer")).to_have_count(2)
    await visitor.wait_for_end("failed")


async def test_moderated_answer_says_that_something_was_withheld(arrive: Arrive) -> None:
    """A filtered answer names the category instead of showing nothing."""
    visitor = await arrive()
    await visitor.ask("Hello #fault=moderated")
    await expect(visitor.see("moderated")).to_contain_text("withheld")


async def test_citations_are_listed_below_the_answer(arrive: Arrive, transport: str) -> None:
    """Sources are shown with their names, live and after a reload."""
    visitor = await arrive(transport)
    await visitor.ask("Where is that written? #tokens=20 #rate=0 #citations=3")
    citations = (await visitor.record())["messages"][-1]["citations"]
    assert len(citations) == 3
    for _ in range(2):
        await expect(visitor.see("citation")).to_have_count(3)
        for i, citation in enumerate(citations):
            if citation.get("sourceName"):
                await expect(visitor.see("citation").nth(i)).to_contain_text(citation["sourceName"])
        await visitor.page.reload()
