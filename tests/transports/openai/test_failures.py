"""What goes wrong, as OpenAI's own client tells it: by status and code, before an answer or in the middle of one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest
from openai import APIError, APIStatusError, AsyncOpenAI, BadRequestError, InternalServerError, RateLimitError

from gateway.core.identity import TenantId
from gateway.core.revocation import Revoked
from tests.conftest import PERSONA_ID, TENANT_TOML, Running, StartGateway
from tests.transports.client import Client, eventually, metric
from tests.transports.openai.conftest import Hire
from tests.transports.openai.loop import heard, reply
from tests.transports.test_bad_input import bad_credentials

HI: list[dict[str, Any]] = [{"role": "user", "content": "Hi #tokens=3"}]
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}

UNSUPPORTED: list[tuple[dict[str, Any], str]] = [
    ({"tools": [TOOL]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"functions": [{"name": "f", "parameters": {}}]}, "functions"),
    ({"function_call": {"name": "f"}}, "function_call"),
    ({"n": 2}, "n"),
    ({"logprobs": True}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logit_bias": {"50256": -100}}, "logit_bias"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}}, "response_format"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"stop": ["\n"]}, "stop"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"audio": {"format": "wav", "voice": "ash"}}, "audio"),
    ({"web_search_options": {}}, "web_search_options"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "?"}, IMAGE]}]},
        "messages[0].content[1].type",
    ),
    ({"messages": [*HI, {"role": "tool", "tool_call_id": "c", "content": "3"}]}, "messages[1].role"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"id": "c"}]}, *HI]}, "messages[0].tool_calls"),
    ({"messages": [*HI, {"role": "assistant", "content": "Half an"}]}, "messages[1].role"),
]
UNSUPPORTED_IN_RESPONSES: list[tuple[dict[str, Any], str]] = [
    ({"tools": [{"type": "web_search"}]}, "tools"),
    ({"text": {"format": {"type": "json_object"}}}, "text"),
    ({"include": ["message.output_text.logprobs"]}, "include"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ({"top_logprobs": 1}, "top_logprobs"),
    ({"input": [{"type": "function_call_output", "call_id": "c", "output": "3"}]}, "input[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0].type"),
]
INVALID: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": []}, "missing_required_parameter", "messages"),
    ({"messages": [{"role": "user", "content": "  "}]}, "message_empty", "messages"),
    ({"messages": [{"role": "wizard", "content": "?"}]}, "invalid_value", "messages[0].role"),
    ({"messages": [{"content": "?"}]}, "missing_required_parameter", "messages[0].role"),
    ({"messages": [{"role": "user", "content": 7}]}, "invalid_type", "messages[0].content"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "missing_required_parameter",
        "messages[0].content[0].text",
    ),
    ({"messages": "Hi"}, "invalid_type", "messages"),
    ({"messages": [{"role": "user", "content": "?"}] * 2049}, "context_length_exceeded", "messages"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "?"}] * 2049}]},
        "invalid_value",
        "messages[0].content",
    ),
    ({"extra_body": {"enchant": True}}, "unknown_parameter", "enchant"),
    ({"extra_body": {"replacements": {"secret": "x"}}}, "replacement_not_allowed", "replacements.secret"),
    ({"metadata": {str(number): "x" for number in range(40)}}, "invalid_value", "metadata"),
    ({"max_tokens": 0}, "invalid_value", "max_tokens"),
    ({"max_completion_tokens": -1}, "invalid_value", "max_completion_tokens"),
    ({"max_tokens": "many"}, "invalid_type", "max_tokens"),
    ({"messages": [{"role": "user", "content": "x" * 32_001}]}, "context_length_exceeded", "messages"),
    ({"messages": [*HI, {"role": "assistant", "content": "x" * 40_000}, *HI]}, "context_length_exceeded", "messages"),
]
IGNORED: dict[str, Any] = {
    "temperature": 0.2,
    "top_p": 0.9,
    "presence_penalty": 1,
    "frequency_penalty": 1,
    "seed": 7,
    "store": True,
    "service_tier": "auto",
    "parallel_tool_calls": True,
    "reasoning_effort": "low",
    "verbosity": "low",
    "prompt_cache_key": "k",
    "n": 1,
    "stop": None,
    "tools": [],
    "tool_choice": "auto",
    "response_format": {"type": "text"},
    "logprobs": False,
    "modalities": ["text"],
}


@pytest.mark.parametrize("stream", [True, False])
async def test_what_hyperleap_cannot_do_is_refused_by_name(running: Running, client: AsyncOpenAI, stream: bool) -> None:
    """A parameter that would change the answer is never passed over; nothing is spent on it."""
    for asked, param in UNSUPPORTED:
        with pytest.raises(BadRequestError) as refused:
            await reply(client, **{"messages": HI, **asked}, stream=stream)
        assert (refused.value.code, refused.value.param) == ("unsupported_parameter", param)
        assert refused.value.type == "invalid_request_error"
    assert not len(running.simulator.conversations)


async def test_what_hyperleap_cannot_do_is_refused_in_responses(running: Running, client: AsyncOpenAI) -> None:
    """The same for the other interface and its names."""
    for asked, param in UNSUPPORTED_IN_RESPONSES:
        with pytest.raises(BadRequestError) as refused:
            await client.responses.create(**{"model": "default", "input": "Hi", **asked})
        assert (refused.value.code, refused.value.param) == ("unsupported_parameter", param)
    assert not len(running.simulator.conversations)


async def test_what_cannot_be_understood_is_refused_with_code_and_parameter(
    running: Running, client: AsyncOpenAI
) -> None:
    """In OpenAI's own words where it has them; a list that is too long opens no conversation first."""
    for asked, code, param in INVALID:
        with pytest.raises(BadRequestError) as refused:
            await reply(client, **{"messages": HI, **asked})
        assert (refused.value.code, refused.value.param) == (code, param)
    assert not len(running.simulator.conversations)


async def test_what_does_not_matter_is_taken_and_ignored(running: Running, client: AsyncOpenAI) -> None:
    """What clients send by habit stands in nobody's way, and changes nothing."""
    assert await reply(client, HI, **IGNORED) == await reply(client, HI)
    assert await reply(client, [{**one, "name": "ada"} for one in HI]) == await reply(client, HI)
    assert {words for told in heard(running) for words in told} == {one["content"] for one in HI}
    ignored = {"temperature": 1, "truncation": "auto", "reasoning": {"effort": "low"}}
    asked: Any = {"model": "default", "input": "Hi #tokens=3", **ignored, "include": ["reasoning.encrypted_content"]}
    assert (await client.responses.create(**asked)).output_text


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("fault", "status", "code", "again"),
    [
        ("429:1", 429, "upstream_rate_limited", True),
        ("500", 502, "upstream_error", True),
        ("empty-body-error:504", 504, "upstream_timeout", True),
        ("empty-body-error:404", 502, "upstream_rejected", False),
        ("cut:0", 502, "upstream_truncated", True),
    ],
)
async def test_failure_before_the_first_item_is_a_status(
    running: Running, hire: Hire, fault: str, status: int, code: str, again: bool, stream: bool
) -> None:
    """No stream begins that could only end in an error; clients are told whether to try again, and do."""
    client = hire(running, await running.token(), max_retries=1)
    with pytest.raises(RateLimitError if status == 429 else InternalServerError) as failed:
        await reply(client, [{"role": "user", "content": f"Hi #fault={fault}"}], stream=stream)
    kind = "requests" if status == 429 else "server_error"
    assert (failed.value.status_code, failed.value.code, failed.value.type) == (status, code, kind)
    headers = failed.value.response.headers
    assert headers["x-should-retry"] == ("true" if again else "false")
    assert headers["content-type"] == "application/json"
    assert (headers.get("retry-after") == "1") is (fault == "429:1")
    assert headers["x-request-id"] == msgspec.json.decode(failed.value.response.content)["error"]["request_id"]
    assert len(running.simulator.bill) == (2 if again else 1)


@pytest.mark.parametrize("fault", ["cut:6", "reset:6", "garbage:6"])
async def test_failure_in_mid_answer_ends_the_chunks_with_an_error(
    running: Running, client: AsyncOpenAI, fault: str
) -> None:
    """What was said is delivered, no chunk says that it is whole, and the client raises what was wrong."""
    asked: Any = {"model": "default", "messages": [{"role": "user", "content": f"Hi #tokens=20 #fault={fault}"}]}
    chunks: list[Any] = []
    with pytest.raises(APIError) as failed:
        await _read(client.chat.completions.create(**asked, stream=True), chunks)
    assert failed.value.code in ("upstream_truncated", "upstream_reset", "upstream_malformed")
    assert any(chunk.choices[0].delta.content for chunk in chunks)
    assert {chunk.choices[0].finish_reason for chunk in chunks} == {None}
    with pytest.raises(APIStatusError) as whole:
        await client.chat.completions.create(**asked)
    assert (whole.value.status_code, whole.value.code) == (502, failed.value.code)
    assert await metric(running, "gateway_errors_total", code=str(failed.value.code)) == 2


async def test_failure_in_mid_answer_fails_the_response(client: AsyncOpenAI) -> None:
    """The last event says so, and so does the response when it is read back."""
    stream = await client.responses.create(model="default", input="Hi #tokens=20 #fault=cut:6", stream=True)
    events: list[Any] = [event async for event in stream]
    last = events[-1]
    assert (last.type, last.response.status) == ("response.failed", "failed")
    assert (last.response.error.code, last.response.error.type) == ("server_error", "upstream_truncated")
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    kept = await client.responses.retrieve(last.response.id)
    assert (kept.status, kept.output_text) == ("failed", text)
    assert kept.error is not None
    again: list[Any] = [event async for event in await client.responses.retrieve(last.response.id, stream=True)]
    assert [event.type for event in again if "delta" not in event.type] == [
        event.type for event in events if "delta" not in event.type
    ]


async def test_headers_wait_for_the_first_item(running: Running, client: AsyncOpenAI) -> None:
    """While Hyperleap is silent nothing is sent, so that whatever it says first decides the status."""
    asked: Any = {"model": "default", "messages": [{"role": "user", "content": "Hi #tokens=3 #delay=0.6"}]}
    opening = asyncio.create_task(client.chat.completions.create(**asked, stream=True))
    await eventually(lambda: len(running.simulator.bill), "Hyperleap to hear the message")
    (run,) = running.simulator.bill
    while not run.items_sent:
        assert not opening.done()
        await asyncio.sleep(0.01)
    assert [chunk async for chunk in await opening]


@pytest.mark.parametrize("words", ["Hi #rate=40 #tokens=400", "Hi #delay=30"])
@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_stops_the_turn(running: Running, hire: Hire, words: str, stream: bool) -> None:
    """A client of this door does not come back, so its answer ends with it, before the first item too."""
    client = hire(running, await running.token())
    asked: Any = {"model": "default", "messages": [{"role": "user", "content": words}]}
    task = asyncio.create_task(_read(client.chat.completions.create(**asked, stream=stream), []))
    await eventually(lambda: len(running.simulator.bill), "Hyperleap to hear the message")
    (run,) = running.simulator.bill
    task.cancel()
    await asyncio.wait([task])
    await eventually(lambda: run.saw_cancel, "Hyperleap to see the reset", within_s=1.0)
    await eventually(lambda: not running.gateway.turns.running, "the turn to end")
    assert await metric(running, "gateway_turns_total", reason="disconnect") == 1


@pytest.mark.parametrize(("rule", "ends"), [("detach", "cancelled"), ("drain", "finished")])
async def test_leaving_goes_by_the_tenants_rule_where_it_has_one(
    start_gateway: StartGateway, hire: Hire, rule: str, ends: str
) -> None:
    """A tenant may let answers go on that nobody reads, here too: for the grace, or to their end."""
    toml = TENANT_TOML.format(tenant=f"leave-{rule}", persona=PERSONA_ID)
    rules = f'anonymous = true\ndisconnect = {{ openai = "{rule}", grace_s = 0.4 }}'
    running = await start_gateway(toml=toml.replace("anonymous = true", rules))
    client = hire(running, await running.token())
    asked: Any = {"model": "default", "messages": [{"role": "user", "content": "Hi #rate=100 #tokens=90"}]}
    stream = await client.chat.completions.create(**asked, stream=True)
    await anext(stream)
    await stream.close()
    (run,) = running.simulator.bill
    before = run.items_sent
    await eventually(lambda: run.outcome == ends, f"the answer to be {ends}")
    assert run.items_sent > before + 10


async def test_answer_read_by_another_tab_goes_on_when_its_client_leaves(running: Running, client: AsyncOpenAI) -> None:
    """Only what nobody reads is stopped: the native door may follow the same turn."""
    asked: Any = {"model": "default", "messages": [{"role": "user", "content": "Hi #rate=100 #tokens=60"}]}
    raw = await client.chat.completions.with_raw_response.create(**asked, stream=True)
    native = Client(running, await running.user())
    async with native.follow(raw.headers["x-turn-id"]) as reader:
        await reader.until("message.delta")
        await raw.http_response.aclose()
        assert (await reader.rest())[-1].name == "turn.completed"


async def test_budget_that_ends_in_mid_answer_is_told_as_length(start_gateway: StartGateway, hire: Hire) -> None:
    """An answer that was cut short on purpose says so; the next one is refused as OpenAI refuses an empty account."""
    toml = TENANT_TOML.format(tenant="openai-budget", persona=PERSONA_ID)
    running = await start_gateway(toml=toml.replace("requests_per_min = 0 }", "tokens_per_day = 3000 }", 1))
    client = hire(running, await running.token())
    asked: Any = {"model": "default", "messages": [{"role": "user", "content": "Hi #tokens=60000 #rate=0"}]}
    completion = await client.chat.completions.create(**asked)
    assert completion.choices[0].finish_reason == "length"
    with pytest.raises(RateLimitError) as refused:
        await client.chat.completions.create(**asked)
    assert (refused.value.code, refused.value.type) == ("insufficient_quota", "insufficient_quota")


@pytest.mark.parametrize("what", [Revoked.USER, Revoked.KEY])
async def test_revocation_ends_a_stream_with_its_reason(running: Running, hire: Hire, what: Revoked) -> None:
    """Whose user or key is taken back in mid-answer is told so, and the turn stops; a key is refused from then on."""
    client = hire(running, running.secret_key, default_headers={"x-user-id": "u1"})
    asked: Any = {"model": "default", "messages": [{"role": "user", "content": "Hi #rate=40 #tokens=4000"}]}
    stream = await client.chat.completions.create(**asked, stream=True)
    await anext(stream)
    tenant = TenantId(running.tenant)
    key_id = running.secret_key.split(".")[1]
    id_ = key_id if what is Revoked.KEY else str(running.gateway.auth.user_hash(tenant, "u1"))
    if what is Revoked.KEY:
        await running.gateway.auth.keys.revoke(tenant, key_id)
    await running.gateway.revocations.revoke(what, tenant, id_)
    with pytest.raises(APIError) as ended:
        await _read(_ready(stream), [])
    assert ended.value.code == "revoked"
    (run,) = running.simulator.bill
    await eventually(lambda: run.saw_cancel, "Hyperleap to see the reset")
    if what is Revoked.USER:  # what is issued afterwards is good, and such a key issues it with every request
        assert await reply(client, HI)
        return
    with pytest.raises(APIStatusError) as refused:
        await reply(client, HI)
    assert (refused.value.status_code, refused.value.code) == (401, "revoked")


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
async def test_no_bad_token_opens_the_door(running: Running) -> None:
    """Every token that the native doors refuse is refused here, with the same status and nothing of it repeated."""
    keys = ("secret key", "publishable key")
    refused = bad_credentials(running, await running.token())
    bad = {name: row for name, row in refused.items() if name not in keys}
    for name, (header, status, _) in bad.items():
        anyone = Client(running, {"Authorization": header} if header is not None else {})
        for method, path in (("POST", "/v1/chat/completions"), ("POST", "/v1/responses"), ("GET", "/v1/models")):
            answer = await anyone.call(method, path, {"model": "default"} if method == "POST" else None)
            assert (name, path, answer.status) == (name, path, status)
            assert answer.body["error"]["type"] == "invalid_request_error"
            assert "Bearer" in answer.headers["WWW-Authenticate"]
            shown = (header or "").removeprefix("Bearer ")
            assert len(shown) < 9 or shown.encode() not in answer.raw
    assert not running.simulator.state.requests


@pytest.mark.parametrize(
    ("send", "status", "code"),
    [
        (
            lambda http, url: http.post(url, content=b"{", headers={"content-type": "application/json"}),
            400,
            "invalid_json",
        ),
        (
            lambda http, url: http.post(url, content=b"a=b", headers={"content-type": "text/plain"}),
            415,
            "unsupported_media_type",
        ),
        (lambda http, url: http.post(url, json={"messages": ["x" * 1_100_000]}), 413, "body_too_large"),
        (lambda http, url: http.get(url), 405, "method_not_allowed"),
        (lambda http, url: http.post(f"{url}/nowhere", json={}), 404, "not_found"),
    ],
    ids=["json", "type", "size", "method", "path"],
)
async def test_every_refusal_at_the_doors_paths_has_its_shape(
    running: Running, send: Callable[[httpx.AsyncClient, str], Any], status: int, code: str
) -> None:
    """What aiohttp or the gateway refuses before the door looks at it is told in the same shape."""
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {await running.token()}"}) as http:
        answer = await send(http, f"{running.url}/v1/chat/completions")
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["code"] == code
    assert set(error) == {"message", "type", "param", "code", "request_id"}


async def _ready(stream: Any) -> Any:
    return stream


async def _read(asked: Any, chunks: list[Any]) -> None:
    """Read an answer for as long as it comes."""
    answer = await asked
    if hasattr(answer, "__aiter__"):
        async for chunk in answer:
            chunks.append(chunk)  # noqa: PERF401 - what came before an error counts
