"""Chat completions by OpenAI's own client: answers whole and streamed, tokens, citations, and who may ask."""

from __future__ import annotations

from typing import Any

import pytest
from openai import APIStatusError, AsyncOpenAI, AuthenticationError, PermissionDeniedError

from gateway.core.identity import TenantId
from gateway.core.keys import KeyKind
from gateway.simulator.answers import answer as said
from tests.conftest import TENANT_TOML, Running, StartGateway
from tests.transports.client import eventually
from tests.transports.openai.conftest import Hire
from tests.transports.openai.loop import heard, reply

HI: list[dict[str, Any]] = [{"role": "user", "content": "Hi #tokens=12"}]
LONG = "Hi #tokens=4000 #rate=200"
ORIGIN = "https://app.example"


async def test_whole_answer_is_what_hyperleap_said(client: AsyncOpenAI, running: Running) -> None:
    """Text, tokens and the reason of the end are Hyperleap's; the turn and its conversation are named in headers."""
    asked: Any = {"model": "default", "messages": HI}
    raw = await client.chat.completions.with_raw_response.create(**asked)
    completion = raw.parse()
    (choice,), truth = completion.choices, said("Hi #tokens=12")
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", truth.text, "stop")
    assert completion.usage is not None
    usage = completion.usage.prompt_tokens, completion.usage.completion_tokens, completion.usage.total_tokens
    assert usage == (truth.prompt_tokens, truth.completion_tokens, truth.total_tokens)
    assert (completion.model, completion.object) == ("default", "chat.completion")
    assert completion.id == f"chatcmpl-{raw.headers['x-turn-id']}"
    (run,) = running.simulator.bill
    assert (run.conversation_id, run.message) == (raw.headers["x-conversation-id"], "Hi #tokens=12")


@pytest.mark.parametrize("usage", [True, False])
async def test_streamed_answer_joins_to_the_whole_one(client: AsyncOpenAI, usage: bool) -> None:
    """The deltas are the text; one chunk says why it ended, and after it one tells the tokens if it was asked to."""
    asked: Any = {"model": "default", "messages": HI}
    if usage:
        asked["stream_options"] = {"include_usage": True}
    chunks = [chunk async for chunk in await client.chat.completions.create(**asked, stream=True)]
    truth = said("Hi #tokens=12")
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == truth.text
    assert choices[0].delta.role == "assistant"
    assert [choice.finish_reason for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    told = [chunk.usage for chunk in chunks]
    assert told[:-1] == [None] * (len(told) - 1)
    assert (told[-1] is not None) is usage
    if told[-1] is not None:
        assert told[-1].total_tokens == truth.total_tokens
        assert chunks[-1].choices == []


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("bound", ["max_tokens", "max_completion_tokens"])
async def test_answer_ends_where_its_client_lets_it(
    client: AsyncOpenAI, running: Running, bound: str, stream: bool
) -> None:
    """Hyperleap knows no such bound: the gateway cuts by its estimate, says so, and stops Hyperleap's work."""
    asked: Any = {"model": "default", "messages": [{"role": "user", "content": LONG}], bound: 10}
    if stream:
        chunks = [chunk async for chunk in await client.chat.completions.create(**asked, stream=True)]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        finish = chunks[-1].choices[0].finish_reason
    else:
        (choice,) = (await client.chat.completions.create(**asked)).choices
        text, finish = choice.message.content or "", choice.finish_reason
    assert (text, finish) == (said(LONG).text[:40], "length")
    (run,) = running.simulator.bill
    await eventually(lambda: run.saw_cancel, "Hyperleap to see the reset")
    asked |= {"messages": HI, bound: 10_000}
    (choice,) = (await client.chat.completions.create(**asked)).choices
    assert (choice.message.content, choice.finish_reason) == (said("Hi #tokens=12").text, "stop")


async def test_response_ends_where_its_client_lets_it(client: AsyncOpenAI) -> None:
    """It is incomplete, and says for what."""
    response = await client.responses.create(model="default", input=LONG, max_output_tokens=3)
    assert (response.output_text, response.status) == (said(LONG).text[:12], "incomplete")
    assert response.incomplete_details is not None
    assert (response.incomplete_details.reason, response.max_output_tokens) == ("max_output_tokens", 3)


async def test_long_answer_reaches_a_reader_that_cannot_keep_up(client: AsyncOpenAI) -> None:
    """A connection that falls behind is written to at its own pace, and gets all of it."""
    words = "Hi #tokens=6000 #rate=0"
    assert await reply(client, [{"role": "user", "content": words}], stream=True) == said(words).text


@pytest.mark.parametrize("stream", [True, False])
async def test_citations_are_annotations_of_urls(client: AsyncOpenAI, stream: bool) -> None:
    """What an answer cites comes with it, as OpenAI tells what was found on the web."""
    asked: Any = {"model": "default", "messages": [{"role": "user", "content": "Hi #tokens=3 #citations=2"}]}
    if stream:
        chunks = [chunk async for chunk in await client.chat.completions.create(**asked, stream=True)]
        deltas = [chunk.choices[0].delta.model_dump() for chunk in chunks]
        (found,) = [delta["annotations"] for delta in deltas if delta.get("annotations")]
    else:
        message = (await client.chat.completions.create(**asked)).choices[0].message
        found = [annotation.model_dump() for annotation in message.annotations or ()]
    told = [citation["sourceUrl"] for citation in said("Hi #tokens=3 #citations=2").citations]
    assert [one["url_citation"]["url"] for one in found] == told
    assert {one["type"] for one in found} == {"url_citation"}


async def test_models_are_the_personas_that_one_may_ask(running: Running, client: AsyncOpenAI, hire: Hire) -> None:
    """A token that is narrowed to a persona is shown that one, and no other can be asked for."""
    assert [model.id async for model in client.models.list()] == ["default", "other"]
    assert (await client.models.retrieve("other")).owned_by == "hyperleap"
    narrow = hire(running, await running.token("u1", personas=["other"]))
    assert [model.id async for model in narrow.models.list()] == ["other"]
    with pytest.raises(APIStatusError) as refused:
        await narrow.models.retrieve("default")
    assert (refused.value.status_code, refused.value.code, refused.value.param) == (404, "model_not_found", "model")
    with pytest.raises(APIStatusError) as refused:
        await reply(narrow, HI)
    assert (refused.value.status_code, refused.value.code, refused.value.param) == (404, "model_not_found", "model")
    assert not heard(running)


async def test_secret_key_asks_for_the_user_that_it_names(running: Running, hire: Hire) -> None:
    """A backend needs no session: what it asks for a user is that user's, by whatever name the field goes."""
    backend = hire(running, running.secret_key)
    for field in ("user", "safety_identifier"):
        asked: Any = {"model": "default", "messages": HI, field: "ada"}
        raw = await backend.chat.completions.with_raw_response.create(**asked)
        found = hire(running, await running.token("ada"))
        assert (await found.responses.retrieve(f"resp_{raw.headers['x-turn-id']}")).status == "completed"
    assert [model.id async for model in backend.models.list()] == ["default", "other"]


async def test_publishable_key_asks_from_a_listed_origin_alone(running: Running, hire: Hire) -> None:
    """A page may ask with its key and nothing else; the same key is refused from elsewhere, and beside no page."""
    page = hire(running, running.publishable_key, default_headers={"Origin": ORIGIN})
    assert await reply(page, HI) == said("Hi #tokens=12").text
    for elsewhere in ({"Origin": "https://evil.example"}, {}):
        with pytest.raises(PermissionDeniedError) as refused:
            await reply(hire(running, running.publishable_key, default_headers=elsewhere), HI)
        assert refused.value.code == "origin_not_allowed"
    with pytest.raises(APIStatusError) as refused_:
        await reply(page, HI, user="somebody-else")
    assert (refused_.value.status_code, refused_.value.param) == (400, "user")


async def test_app_key_asks_without_an_origin(running: Running, hire: Hire) -> None:
    """A native app has no origin; its key opens the door to a visitor."""
    app = await running.gateway.auth.keys.mint(TenantId(running.tenant), KeyKind.APP, "tests")
    assert await reply(hire(running, app.key), HI) == said("Hi #tokens=12").text


async def test_visitor_with_a_publishable_key_is_the_one_that_his_id_names(running: Running, hire: Hire) -> None:
    """The visitor id of a session, sent as the user, makes the same visitor of every request."""
    page = hire(running, running.publishable_key, default_headers={"Origin": ORIGIN})
    async with running.http.post(
        f"{running.url}/v1/sessions",
        json={},
        headers={"Authorization": f"Bearer {running.publishable_key}", "Origin": ORIGIN},
    ) as response:
        session = await response.json()
    asked: Any = {"model": "default", "input": "Hi #tokens=3"}
    mine = await page.responses.create(**asked, user=session["visitor_id"])
    await page.responses.create(**asked, user=session["visitor_id"], previous_response_id=mine.id)
    assert heard(running) == [["Hi #tokens=3", "Hi #tokens=3"]]
    with pytest.raises(APIStatusError) as refused:
        await page.responses.create(**asked, previous_response_id=mine.id)  # some other visitor
    assert refused.value.status_code == 404


@pytest.mark.parametrize("key", ["hgt_nonsense", "hgs_nobody.abcdefgh.nothing", "sk-proj-of-openais-own"])
async def test_bad_key_is_refused_as_openai_refuses_it(running: Running, hire: Hire, key: str) -> None:
    """Clients that look for ``invalid_api_key`` find it."""
    with pytest.raises(AuthenticationError) as refused:
        await reply(hire(running, key), HI)
    assert (refused.value.code, refused.value.type) == ("invalid_api_key", "invalid_request_error")
    assert key not in str(refused.value)


async def test_closed_door_refuses_streams_and_serves_whole_answers(start_gateway: StartGateway, hire: Hire) -> None:
    """A tenant that lets nobody in by server-sent events is kept to here as well."""
    toml = TENANT_TOML.format(tenant="no-sse", persona="6f1c8f0e-4f3e-4a9e-9d2c-0d4b1f0a2b3c")
    running = await start_gateway(toml=toml.replace("anonymous = true", 'anonymous = true\ndoors = ["websocket"]'))
    client = hire(running, await running.token())
    with pytest.raises(PermissionDeniedError) as refused:
        await reply(client, HI, stream=True)
    assert refused.value.code == "door_closed"
    assert not heard(running)
    assert await reply(client, HI) == said("Hi #tokens=12").text


async def test_page_of_a_listed_origin_may_use_openais_client(running: Running) -> None:
    """The preflight allows every header that the client sends by itself."""
    sent = "authorization,content-type,x-stainless-lang,x-stainless-retry-count,x-stainless-timeout,openai-organization"
    async with running.http.options(
        f"{running.url}/v1/chat/completions",
        headers={
            "Origin": ORIGIN,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": sent,
        },
    ) as response:
        allowed = {name.strip() for name in response.headers["Access-Control-Allow-Headers"].split(",")}
    assert set(sent.split(",")) <= allowed
