"""Responses by OpenAI's own client: asked for, streamed, gone on from, read back, cancelled and deleted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from openai import APIStatusError, AsyncOpenAI, BadRequestError, NotFoundError

from gateway.simulator.answers import answer as said
from tests.conftest import Running, StartGateway
from tests.transports.client import Client, eventually
from tests.transports.openai.conftest import Hire
from tests.transports.openai.loop import heard

FIRST, SECOND, THIRD = "One? #tokens=6", "Two? #tokens=7", "Three? #tokens=8"
LONG = "Hi #tokens=4000 #rate=40"


async def ask(client: AsyncOpenAI, words: Any, **options: Any) -> Any:
    return await client.responses.create(model="default", input=words, **options)


def text_of(events: list[Any]) -> str:
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


async def events_of(stream: Any) -> list[Any]:
    return [event async for event in stream]


async def test_response_is_what_hyperleap_said(client: AsyncOpenAI, running: Running) -> None:
    """Text, tokens and citations are Hyperleap's; the conversation is named, for any door."""
    response, truth = await ask(client, "Hi #tokens=9 #citations=1"), said("Hi #tokens=9 #citations=1")
    assert (response.object, response.status, response.model) == ("response", "completed", "default")
    assert response.output_text == truth.text
    assert (response.usage.input_tokens, response.usage.output_tokens) == (truth.prompt_tokens, truth.completion_tokens)
    (annotation,) = response.output[0].content[0].annotations
    assert (annotation.type, annotation.url) == ("url_citation", truth.citations[0]["sourceUrl"])
    native = Client(running, await running.user())
    kept = (await native.call("GET", f"/v1/conversations/{response.conversation.id}")).body
    assert [message["content"] for message in kept["messages"]] == ["Hi #tokens=9 #citations=1", truth.text]


async def test_streamed_response_has_its_typed_events_in_order(client: AsyncOpenAI) -> None:
    """What is opened is closed, numbers grow, deltas are the text, and the last event has the whole response."""
    events = await events_of(await ask(client, "Hi #tokens=9 #citations=2", stream=True))
    truth = said("Hi #tokens=9 #citations=2")
    names = [event.type for event in events]
    deltas = names.count("response.output_text.delta")
    assert names == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * deltas,
        *["response.output_text.annotation.added"] * 2,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    numbers = [event.sequence_number for event in events]
    assert numbers == sorted(set(numbers))
    assert text_of(events) == truth.text
    last = events[-1].response
    assert (last.output_text, last.status, last.usage.total_tokens) == (truth.text, "completed", truth.total_tokens)
    assert {event.response.id for event in events if hasattr(event, "response")} == {last.id}


async def test_clients_own_stream_helper_reads_it(client: AsyncOpenAI) -> None:
    """What the client puts together from the events is the response."""
    async with client.responses.stream(model="default", input="Hi #tokens=9") as stream:
        async for _ in stream:
            pass
        final = await stream.get_final_response()
    assert final.output_text == said("Hi #tokens=9").text


@pytest.mark.parametrize("stream", [True, False])
async def test_previous_response_is_gone_on_from_in_its_conversation(
    client: AsyncOpenAI, running: Running, stream: bool
) -> None:
    """A chain of responses is one conversation at Hyperleap, which hears each message once."""
    before = None
    for words in (FIRST, SECOND, THIRD):
        if stream:
            response = (await events_of(await ask(client, words, previous_response_id=before, stream=True)))[
                -1
            ].response
        else:
            response = await ask(client, words, previous_response_id=before)
        assert response.previous_response_id == before
        before = response.id
    assert heard(running) == [[FIRST, SECOND, THIRD]]


async def test_earlier_response_is_gone_on_from_in_a_conversation_that_states_it(
    client: AsyncOpenAI, running: Running
) -> None:
    """A branch knows what was said up to where it leaves, and nothing of what was said after."""
    first = await ask(client, FIRST)
    await ask(client, SECOND, previous_response_id=first.id)
    branch = await ask(client, THIRD, previous_response_id=first.id)
    stated = f"Conversation so far:\nUser: {FIRST}\n\nAssistant: {first.output_text}\n\nMessage:\n{THIRD}"
    assert heard(running) == [[FIRST, SECOND], [stated]]
    await ask(client, SECOND, previous_response_id=branch.id)
    assert heard(running)[1] == [stated, SECOND]


async def test_response_of_another_model_is_stated_to_the_new_one(client: AsyncOpenAI, running: Running) -> None:
    """A conversation keeps its persona, so a chain that changes the model goes on in a new one."""
    first = await ask(client, FIRST)
    second = await client.responses.create(model="other", input=SECOND, previous_response_id=first.id)
    stated = f"Conversation so far:\nUser: {FIRST}\n\nAssistant: {first.output_text}\n\nMessage:\n{SECOND}"
    assert heard(running) == [[FIRST], [stated]]
    assert second.model == "other"


async def test_response_repeated_by_its_idempotency_key_reaches_hyperleap_once(
    client: AsyncOpenAI, running: Running
) -> None:
    """A repeat gets the first one's answer, whatever it goes on from and whether or not that is still the last."""
    first = await ask(client, FIRST)
    branch: Any = {"previous_response_id": first.id, "instructions": "Be brief."}
    inside: Any = {"conversation": first.conversation.id, "instructions": "Be brief."}
    for key, options in (("k1", branch), ("k2", branch), ("k3", inside)):
        options = {**options, "extra_headers": {"Idempotency-Key": key}}
        answers = [await ask(client, SECOND, **options) for _ in range(3)]
        assert len({answer.id for answer in answers}) == 1
    assert [len(told) for told in heard(running)] == [3, 1]


async def test_response_gone_on_from_often_at_once_goes_on_once(client: AsyncOpenAI, running: Running) -> None:
    """Of simultaneous requests one has the conversation; the others branch."""
    first = await ask(client, FIRST)
    await asyncio.gather(*(ask(client, SECOND, previous_response_id=first.id) for _ in range(6)))
    told = heard(running)
    assert told[0] == [FIRST, SECOND]
    assert [len(one) for one in told[1:]] == [1] * 5


async def test_list_of_items_goes_on_as_a_list_of_messages_does(client: AsyncOpenAI, running: Running) -> None:
    """Clients that keep the items themselves, ``input += response.output``, stay in one conversation too."""
    items: list[Any] = []
    for words in (FIRST, SECOND, THIRD):
        items.append({"role": "user", "content": [{"type": "input_text", "text": words}]})
        response = await ask(client, items, store=False)
        items += [item.model_dump() for item in response.output]
    assert heard(running) == [[FIRST, SECOND, THIRD]]


async def test_answers_that_are_referred_to_by_their_ids_are_known(
    client: AsyncOpenAI, running: Running, hire: Hire
) -> None:
    """Some clients keep ids in the place of answers; another's id is not found, nor is one of nothing."""
    items: list[Any] = []
    for words in (FIRST, SECOND, THIRD):
        items.append({"role": "user", "content": words})
        response = await ask(client, items)
        items.append({"type": "item_reference", "id": response.output[0].id})
    assert heard(running) == [[FIRST, SECOND, THIRD]]
    other = hire(running, await running.token("u2"))
    for id_ in (items[1]["id"], "msg_6f1c8f0e-4f3e-4a9e-9d2c-0d4b1f0a2b3c", "rs_nothing"):
        with pytest.raises(NotFoundError) as refused:
            await ask(other, [items[0], {"type": "item_reference", "id": id_}, items[2]])
        assert refused.value.param == "input[1].id"
    with pytest.raises(BadRequestError) as unread:
        await ask(client, [items[0], *[items[1]] * 300, items[2]])
    assert unread.value.param == "input"


async def test_conversation_is_gone_on_in(client: AsyncOpenAI, running: Running) -> None:
    """A conversation of any door, by its id or an object with it, and never one that has another persona."""
    native = Client(running, await running.user())
    conversation = await native.conversation()
    await native.complete(conversation, FIRST)
    for named in (conversation, {"id": f"conv_{conversation}"}):
        response = await ask(client, SECOND, conversation=named)
        assert response.conversation.id == conversation
    assert heard(running) == [[FIRST, SECOND, SECOND]]
    with pytest.raises(BadRequestError) as refused:
        await client.responses.create(model="other", input=SECOND, conversation=conversation)
    assert refused.value.param == "model"
    with pytest.raises(BadRequestError) as refused:
        await ask(client, SECOND, conversation=conversation, previous_response_id=response.id)
    assert refused.value.param == "previous_response_id"


async def test_instructions_are_stated_when_they_are_new(client: AsyncOpenAI, running: Running) -> None:
    """Clients send them with every response; Hyperleap is told when there are others than the conversation has had."""
    before, brief, long = None, "Be brief.", "Be\n\nlong."
    for words, given in ((FIRST, brief), (SECOND, brief), (THIRD, long), (FIRST, long), (SECOND, brief), (THIRD, None)):
        before = (await ask(client, words, instructions=given, previous_response_id=before)).id
    assert heard(running) == [
        [
            f"Instructions:\nBe brief.\n\nMessage:\n{FIRST}",
            SECOND,
            f"Instructions:\nBe\n\nlong.\n\nMessage:\n{THIRD}",
            FIRST,
            f"Instructions:\nBe brief.\n\nMessage:\n{SECOND}",
            THIRD,
        ]
    ]


async def test_response_is_read_back(client: AsyncOpenAI, running: Running, hire: Hire) -> None:
    """From its log, and when that is gone from the conversation: the same text, tokens and end."""
    asked = await ask(client, "Hi #tokens=9 #citations=1")
    kept = await client.responses.retrieve(asked.id)
    await running.gateway.redis.call("DEL", f"hg:{{{running.tenant}}}:log:{asked.id.removeprefix('resp_')}")
    old = await client.responses.retrieve(asked.id)
    for found in (kept, old):
        assert found.output_text == asked.output_text
        assert (found.status, found.model, found.conversation) == ("completed", "default", asked.conversation)
        assert found.usage is not None
        assert found.usage.total_tokens == asked.usage.total_tokens
        assert found.output[0].to_dict() == asked.output[0].to_dict()
        assert abs(found.created_at - asked.created_at) < 5


async def test_stream_is_gone_on_with_after_any_event(client: AsyncOpenAI) -> None:
    """By the number of the last event seen the rest comes: the same events, and of a delta what is missing of it."""
    live = await events_of(await ask(client, "Hi #tokens=9 #citations=1", stream=True))
    text = live[-1].response.output_text
    seen = ""
    for number, event in enumerate(live):
        seen += text_of([event])
        options: Any = {"starting_after": event.sequence_number, "stream": True}
        rest = await events_of(await client.responses.retrieve(live[-1].response.id, **options))
        assert seen + text_of(rest) == text
        others = [(one.type, one.sequence_number) for one in rest if one.type != "response.output_text.delta"]
        assert others == [
            (one.type, one.sequence_number) for one in live[number + 1 :] if one.type != "response.output_text.delta"
        ]


async def test_background_response_runs_without_a_reader_until_it_is_cancelled(
    client: AsyncOpenAI, running: Running
) -> None:
    """It is told at once, under way when it is looked at, and once cancelled it is so for good, with what it had."""
    begun = await ask(client, LONG, background=True)
    assert (begun.status, begun.background, begun.output) == ("in_progress", True, [])
    await eventually(lambda: [run for run in running.simulator.bill if run.items_sent > 3], "an answer under way")
    assert (await client.responses.retrieve(begun.id)).status == "in_progress"
    cancelled = await client.responses.cancel(begun.id)
    assert cancelled.status == "cancelled"
    assert cancelled.output_text
    (run,) = running.simulator.bill
    await eventually(lambda: run.saw_cancel, "the vendor to see the reset")
    for again in (await client.responses.cancel(begun.id), await client.responses.retrieve(begun.id)):
        assert (again.status, again.output_text) == ("cancelled", cancelled.output_text)


async def test_background_response_ends_by_itself(client: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asked looks until it is done, as OpenAI's guide has it; that nobody reads it does not end it."""
    monkeypatch.setattr("gateway.services.presence.ARRIVAL_S", 0.02)  # within which any other turn's first reader comes
    begun = await ask(client, "Hi #tokens=20 #rate=100", background=True)

    async def done() -> bool:
        return (await client.responses.retrieve(begun.id)).status == "completed"

    await eventually(done, "the response to be completed")
    assert (await client.responses.retrieve(begun.id)).output_text == said("Hi #tokens=20 #rate=100").text


async def test_response_is_read_and_cancelled_at_another_worker(
    start_gateway: StartGateway, running: Running, client: AsyncOpenAI, hire: Hire
) -> None:
    """Its id is known to every worker on the same store, while it runs and afterwards."""
    worker = await start_gateway(simulator=running.simulator, tenant=running.tenant)
    there = hire(worker, await running.token())
    stream = await ask(client, LONG, stream=True)
    events = [await anext(stream) for _ in range(6)]
    id_ = events[0].response.id
    assert (await there.responses.retrieve(id_)).status == "in_progress"
    cancelled = await there.responses.cancel(id_)
    events += await events_of(stream)
    assert cancelled.status == events[-1].response.status == "cancelled"
    assert cancelled.output_text == events[-1].response.output_text
    resumed = await there.responses.retrieve(id_, stream=True, starting_after=events[5].sequence_number)
    rest = await events_of(resumed)
    assert text_of(events[:6]) + text_of(rest) == text_of(events) == cancelled.output_text


async def test_cancel_from_elsewhere_ends_a_stream_as_incomplete(client: AsyncOpenAI) -> None:
    """A reader of a response that somebody stops gets what it had, and is not told that it is whole."""
    stream = await ask(client, LONG, stream=True)
    events = [await anext(stream) for _ in range(6)]
    await client.responses.cancel(events[0].response.id)
    events += await events_of(stream)
    text = text_of(events)
    assert (events[-1].type, events[-1].response.status) == ("response.incomplete", "cancelled")
    assert events[-1].response.output_text == text


async def test_deleted_response_is_not_found_any_more(client: AsyncOpenAI, running: Running) -> None:
    """Neither read, nor gone on from, nor deleted again; the conversation is still its user's. One under way stays."""
    asked = await ask(client, FIRST)
    await client.responses.delete(asked.id)
    for attempt in (
        client.responses.retrieve(asked.id),
        client.responses.delete(asked.id),
        client.responses.cancel(asked.id),
        ask(client, SECOND, previous_response_id=asked.id),
    ):
        with pytest.raises(NotFoundError):
            await attempt
    await ask(client, SECOND, conversation=asked.conversation.id)
    assert heard(running) == [[FIRST, SECOND]]
    under_way = await ask(client, LONG, background=True)
    with pytest.raises(APIStatusError) as refused:
        await client.responses.delete(under_way.id)
    assert (refused.value.status_code, refused.value.code) == (409, "turn_active")
    assert (await client.responses.cancel(under_way.id)).status == "cancelled"


async def test_responses_of_others_are_not_found(running: Running, client: AsyncOpenAI, hire: Hire) -> None:
    """Another user of the tenant finds nothing under the ids, does nothing by them, and learns nothing from them."""
    asked = await ask(client, FIRST)
    other = hire(running, await running.token("u2"))
    for id_ in (asked.id, "resp_nothing", "resp_6f1c8f0e-4f3e-4a9e-9d2c-0d4b1f0a2b3c"):
        for attempt in (
            other.responses.retrieve(id_),
            other.responses.cancel(id_),
            other.responses.delete(id_),
            ask(other, SECOND, previous_response_id=id_),
        ):
            with pytest.raises(NotFoundError) as refused:
                await attempt
            assert id_ not in str(refused.value)
    with pytest.raises(NotFoundError) as refused:
        await ask(other, SECOND, conversation=asked.conversation.id)
    assert refused.value.param == "conversation"
    assert (await client.responses.retrieve(asked.id)).status == "completed"
    assert heard(running) == [[FIRST]]


async def test_secret_key_without_a_user_goes_on_from_its_own_responses(running: Running, hire: Hire) -> None:
    """What a backend asks for nobody is its tenant's own: found by its ids, with the key alone, and by no user."""
    backend = hire(running, running.secret_key)
    asked = await ask(backend, FIRST)
    await ask(backend, SECOND, previous_response_id=asked.id)
    assert heard(running) == [[FIRST, SECOND]]
    assert (await backend.responses.retrieve(asked.id)).status == "completed"
    for stranger in (
        hire(running, await running.token()),
        hire(running, running.secret_key, default_headers={"x-user-id": "ada"}),
    ):
        with pytest.raises(NotFoundError):
            await stranger.responses.retrieve(asked.id)


async def test_secret_key_reads_back_for_the_user_of_the_header(running: Running, hire: Hire) -> None:
    """Requests without a body name their user by ``x-user-id``."""
    asked = await ask(hire(running, running.secret_key), FIRST, user="ada")
    for_her = hire(running, running.secret_key, default_headers={"x-user-id": "ada"})
    assert (await for_her.responses.retrieve(asked.id)).output_text == asked.output_text
    with pytest.raises(NotFoundError):
        await hire(running, running.secret_key).responses.retrieve(asked.id)
