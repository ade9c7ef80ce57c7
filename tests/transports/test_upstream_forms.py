"""The vendor's streaming forms: a gateway that asks for events does to its users what one that asks for arrays does."""

from __future__ import annotations

import pytest

from gateway.simulator.answers import answer as said
from tests.conftest import PERSONA_ID, TENANT_TOML, StartGateway
from tests.transports.client import check_log, eventually, metric
from tests.transports.conftest import SignIn

FORMS = pytest.mark.parametrize(
    ("form", "done"), [("array", False), ("sse", False), ("sse", True)], ids=["array", "sse", "sse-done"]
)
PROMPT_ID = "7c0d7c8e-1111-4d53-9a52-0d1d6a7f0001"


@FORMS
async def test_form_is_asked_for_and_the_answer_is_the_same(
    form: str, done: bool, start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """Text, citations and reported usage arrive whole in each form, and the vendor is asked in the one that is set."""
    running = await start_gateway(simulator={"sse_done": done}, environ={"HYPERLEAP_STREAM": form})
    client = await sign_in(running)
    conversation = await client.conversation()
    message = "Zoë 你好 #tokens=20 #citations"
    events = await client.complete(conversation, message)
    ending = check_log(events)
    assert (ending.name, ending.data["finish_reason"]) == ("turn.completed", "stop")
    assert ending.data["text"] == said(message).text
    assert ending.data["usage"]["source"] == "reported"
    assert any(event.name == "message.citations" for event in events)
    assert [run.form for run in running.simulator.bill.of(conversation)] == [form]
    assert await metric(running, "gateway_upstream_oddities_total") == 0


@FORMS
async def test_stop_reaches_the_vendor_in_each_form(
    form: str, done: bool, start_gateway: StartGateway, sign_in: SignIn
) -> None:
    """A stop in mid-answer resets the upstream stream and settles what was said."""
    running = await start_gateway(simulator={"sse_done": done}, environ={"HYPERLEAP_STREAM": form})
    client = await sign_in(running)
    conversation = await client.conversation()
    async with client.ask(conversation, "Hi #rate=40") as reader:
        await reader.until("message.delta", 5)
        await client.stop(reader.turn_id)
        ending = check_log(await reader.rest())
    assert (ending.name, ending.data["reason"]) == ("turn.stopped", "user")
    (run,) = running.simulator.bill.of(conversation)
    await eventually(lambda: run.saw_cancel, "the vendor to see the reset")
    assert said("Hi").text.startswith(ending.data["text"]) != (ending.data["text"] == "")


@FORMS
async def test_prompt_is_run_in_each_form(form: str, done: bool, start_gateway: StartGateway, sign_in: SignIn) -> None:
    """What the vendor does beside chats is asked for in the form that is set, too."""
    toml = TENANT_TOML.format(tenant="t-forms", persona=PERSONA_ID) + (
        f'[tenants.t-forms.prompts.summary]\nprompt_id = "{PROMPT_ID}"\nreplacements = ["topic"]\n'
    )
    running = await start_gateway(toml=toml, simulator={"sse_done": done}, environ={"HYPERLEAP_STREAM": form})
    client = await sign_in(running)
    body = {"promptId": PROMPT_ID, "replacements": {"topic": "refunds #tokens=5"}}
    answer = await client.call("POST", "/hyperleap/prompt-runs/run-sync", body)
    assert answer.status == 200
    assert answer.body["choices"][0]["message"]["content"] == said("refunds #tokens=5").text
    assert [run.form for run in running.simulator.bill.runs] == [form]
