"""The OpenAI door answers as ``/openapi.json`` says."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.protocol.sse import SseDecoder
from tests.conftest import Running
from tests.transports.conftest import SignIn
from tests.transports.test_openapi import Described

Json = dict[str, Any]


async def test_answers_have_the_members_that_are_described_and_no_other(running: Running, sign_in: SignIn) -> None:
    """Whole answers, chunks, events, models and errors are as their types tell, to the last member."""
    async with running.http.get(f"{running.url}/openapi.json") as response:
        description: Json = msgspec.json.decode(await response.read())
    described, client = Described(description), await sign_in(running)

    async def check(method: str, path: str, body: Any = None, *, of: str | None = None) -> Any:
        answer = await client.call(method, path, body)
        described.check(method, of or path, answer)
        return answer

    ask = {"model": "default", "messages": [{"role": "user", "content": "hi #citations"}]}
    assert (await check("POST", "/v1/chat/completions", ask)).status == 200
    assert (await check("POST", "/v1/chat/completions", {**ask, "n": 2})).status == 400
    assert (await check("POST", "/v1/chat/completions", {**ask, "model": "none"})).status == 404
    streamed = await check(
        "POST", "/v1/chat/completions", {**ask, "stream": True, "stream_options": {"include_usage": True}}
    )
    chunks = [event.data for event in SseDecoder().feed(streamed.raw)]
    assert chunks.pop() == "[DONE]"
    for chunk in chunks:
        described.hold(msgspec.json.decode(chunk), {"$ref": "#/components/schemas/ChatCompletionChunk"})
    asked = {"model": "default", "input": "hi #citations"}
    made = (await check("POST", "/v1/responses", asked)).body
    events = (await check("POST", "/v1/responses", {**asked, "stream": True})).raw
    media = description["paths"]["/v1/responses"]["post"]["responses"]["200"]["content"]["text/event-stream"]
    told = [one["properties"] for one in media["schema"]["oneOf"]]
    kinds = {one["event"]["const"]: one["data"]["contentSchema"] for one in told}
    seen = SseDecoder().feed(events)
    for event in seen:
        described.hold(msgspec.json.decode(event.data), kinds[event.event])
    assert {event.event for event in seen} == set(kinds) - {"error", "response.failed", "response.incomplete"}
    one = f"/v1/responses/{made['id']}"
    await check("GET", one, of="/v1/responses/{response_id}")
    await check("POST", f"{one}/cancel", of="/v1/responses/{response_id}/cancel")
    await check("DELETE", one, of="/v1/responses/{response_id}")
    assert (await check("GET", one, of="/v1/responses/{response_id}")).status == 404
    await check("GET", "/v1/models")
    await check("GET", "/v1/models/default", of="/v1/models/{model}")
    await check("GET", "/v1/models/none", of="/v1/models/{model}")
