"""The streamed answer frame by frame, and each fault that strikes it."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from typing import Any

import pytest

from gateway.simulator.answers import answer
from gateway.simulator.server import Simulator
from tests.simulator.conftest import Start
from tests.simulator.frame_client import FrameClient, Received, connect

MESSAGE = "Tell me about the café 🎉 #tokens=40"
NO_ERROR, INTERNAL_ERROR, REFUSED_STREAM = 0, 2, 7


def text_of(items: list[dict[str, Any]]) -> str:
    """Joins the assistant's deltas."""
    choices = [item["choice"] for item in items]
    return "".join(
        choice["message"]["content"] or ""
        for choice in choices
        if choice["index"] == 0 and choice["message"]["role"] == "assistant"
    )


async def ask(simulator: Simulator, message: str, form: str = "chat-http2") -> Received:
    """Sends one chat on a connection of its own and returns all that came."""
    async with connect(simulator) as client:
        return await client.answer(client.chat(await client.create(), message, form))


@pytest.mark.parametrize("form", ["chat-http2", "continue"])
async def test_array_form_one_frame_an_item(simulator: Simulator, form: str) -> None:
    """The first frame is `[{…`, each further one `,{…`, the last ends in `]` and carries usage and citations."""
    said = answer("What is the refund policy?")
    received = await ask(simulator, "What is the refund policy?", form)
    frames = received.frames
    assert received.headers["content-type"].startswith("application/json")
    assert len(frames) == len(said.deltas) + 1
    assert frames[0].startswith(b"[{")
    assert all(frame.startswith(b",{") for frame in frames[1:])
    assert all(frame.endswith(b"}") for frame in frames[:-1])
    assert frames[-1].endswith(b"}]")
    items = received.json()
    assert [item["choice"]["message"]["content"] for item in items[:-1]] == list(said.deltas)
    assert all(item["usage"] is None and item["choice"]["finish_reason"] is None for item in items[:-1])
    last = items[-1]
    assert (last["choice"]["finish_reason"], last["citations"]) == ("stop", list(said.citations))
    assert last["usage"]["completion_tokens"] == said.completion_tokens
    assert len({(item["messageId"], item["runId"]) for item in items}) == 1


@pytest.mark.parametrize("form", ["chat-sse", "continue-sse"])
@pytest.mark.parametrize("done", [False, True])
async def test_sse_form_one_event_an_item(start: Start, form: str, done: bool) -> None:
    """Each event's data is the same item; the end is the end of the body, or [DONE] where that is set."""
    received = await ask(await start(sse_done=done), MESSAGE, form)
    assert received.headers["content-type"] == "text/event-stream"
    events = received.body.decode().removesuffix("\n\n").split("\n\n")
    assert all(event.startswith("data: ") for event in events)
    data = [event.removeprefix("data: ") for event in events]
    assert (data[-1] == "[DONE]") is done
    items = [json.loads(one) for one in data[: -1 if done else None]]
    assert text_of(items) == answer(MESSAGE).text
    assert items[-1]["usage"]["total_tokens"] == answer(MESSAGE).total_tokens


@pytest.mark.parametrize("form", ["chat", "continue-sync"])
async def test_sync_form_whole_answer(simulator: Simulator, form: str) -> None:
    """The whole answer comes at once."""
    whole = (await ask(simulator, MESSAGE, form)).json()
    assert whole["choices"][0]["message"]["content"] == answer(MESSAGE).text
    assert whole["choices"][0]["finish_reason"] == "stop"


async def test_encoding_escapes_unless_raw(simulator: Simulator, start: Start) -> None:
    """Non-ASCII is escaped by default and plain UTF-8 with the setting or the directive; the text is the same."""
    message = "Zoë 🎉 <b> #echo"
    escaped = await ask(simulator, message)
    assert escaped.body.isascii()
    assert rb"\uD83C\uDF89" in escaped.body
    for received in (await ask(simulator, message + " #raw"), await ask(await start(raw_utf8=True), message)):
        assert "🎉".encode() in received.body
        assert text_of(received.json()) == text_of(escaped.json()) == "Zoë 🎉 <b>"


async def test_rate_spaces_the_items_and_first_token_waits(start: Start) -> None:
    """At 200 items a second 40 items take about a fifth of a second, after the delay of the first."""
    simulator = await start(rate_per_s=200.0, first_token_s=0.1)
    await ask(simulator, "hello #tokens=40")
    (run,) = simulator.bill
    assert run.ended_at_s is not None
    assert 0.28 <= run.ended_at_s - run.started_at_s < 2.0


async def test_many_streams_share_a_connection(simulator: Simulator) -> None:
    """A hundred answers at once on one connection arrive whole and unmixed."""
    async with connect(simulator, window=1 << 20) as client:
        conversation_id = await client.create()
        asked = {client.chat(conversation_id, f"question {n} #rate=500 #tokens=20"): n for n in range(100)}
        for stream_id, number in asked.items():
            received = await client.answer(stream_id)
            assert text_of(received.json()) == answer(f"question {number} #rate=500 #tokens=20").text
    assert simulator.state.most_open_streams == 100


# ── faults ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def outcome(simulator: Simulator) -> str:
    """The bill's word on the last run."""
    return simulator.bill.runs[-1].outcome


async def test_stall_stops_and_keeps_the_stream_open(simulator: Simulator) -> None:
    """After N items nothing more comes, though the connection still answers PING."""
    async with connect(simulator) as client:
        stream_id = client.chat(await client.create(), f"{MESSAGE} #fault=stall:5")
        received = client.streams[stream_id]
        await client.until(lambda: len(received.frames) == 5)
        await client.ping()
        await client.ping()
        assert (len(received.frames), received.over) == (5, False)
        assert outcome(simulator) == "running"


@pytest.mark.parametrize("sent", [0, 1, 7, 9999])
async def test_cut_ends_without_the_bracket(simulator: Simulator, sent: int) -> None:
    """END_STREAM comes after N items, before the finish reason."""
    received = await ask(simulator, f"{MESSAGE} #fault=cut:{sent}")
    items = min(sent, len(answer(MESSAGE).deltas))
    assert (received.ended, len(received.frames)) == (True, items)
    assert not received.body.endswith(b"]")
    assert b'"finish_reason":"stop"' not in received.body
    run = simulator.bill.runs[-1]
    assert (run.outcome, run.items_sent, run.stored) == ("failed", items, False)


async def test_cut_after_finish_lacks_only_the_bracket(simulator: Simulator) -> None:
    """All items come, the finish reason too, and then END_STREAM without `]`."""
    received = await ask(simulator, f"{MESSAGE} #fault=cut-after-finish")
    assert received.ended
    assert text_of(json.loads(received.body + b"]")) == answer(MESSAGE).text
    assert outcome(simulator) == "finished"


async def test_reset_breaks_in_mid_answer(simulator: Simulator) -> None:
    """RST_STREAM(INTERNAL_ERROR) comes after half of the items, on this stream only."""
    async with connect(simulator) as client:
        conversation_id = await client.create()
        broken = await client.answer(client.chat(conversation_id, f"{MESSAGE} #fault=reset"))
        assert broken.reset_code == INTERNAL_ERROR
        assert 10 < len(broken.frames) < 30
        assert (await client.answer(client.chat(conversation_id, MESSAGE))).ended
    assert simulator.state.resets_sent == 1


async def test_refuse_resets_before_anything(simulator: Simulator) -> None:
    """RST_STREAM(REFUSED_STREAM) comes without headers, and nothing is stored or billed."""
    received = await ask(simulator, f"{MESSAGE} #fault=refuse")
    assert (received.reset_code, received.status, received.frames) == (REFUSED_STREAM, 0, [])
    run = simulator.bill.runs[-1]
    assert (run.outcome, run.prompt_tokens) == ("refused", 0)
    conversation = simulator.conversations.get(run.conversation_id)
    assert conversation is not None
    assert conversation.messages == []


async def test_goaway_lets_streams_in_flight_finish(simulator: Simulator) -> None:
    """After GOAWAY both answers in flight end whole, a new stream is refused, and then the connection closes."""
    async with connect(simulator) as client:
        conversation_id = await client.create()
        slow = client.chat(conversation_id, "slow #rate=50 #tokens=20")
        struck = client.chat(conversation_id, f"{MESSAGE} #rate=100 #fault=goaway:3")
        await client.until(lambda: client.goaway_last_id is not None)
        assert client.goaway_last_id == struck
        late = client.chat(conversation_id, MESSAGE)
        assert (await client.answer(late)).reset_code == REFUSED_STREAM
        for stream_id in (slow, struck):
            received = await client.answer(stream_id)
            assert received.body.endswith(b"]")
        await client.until(lambda: client.closed)
    assert simulator.state.goaways_sent == 1
    assert [run.outcome for run in simulator.bill] == ["finished", "finished"]


async def test_goaway_unseen_names_a_lower_stream(simulator: Simulator) -> None:
    """The GOAWAY says that this chat was not seen; the earlier one in flight still finishes."""
    async with connect(simulator) as client:
        conversation_id = await client.create()
        earlier = client.chat(conversation_id, "earlier #rate=100 #tokens=20")
        unseen = client.chat(conversation_id, f"{MESSAGE} #fault=goaway-unseen")
        assert (await client.answer(earlier)).body.endswith(b"]")
        await client.until(lambda: client.closed)
        assert client.goaway_last_id == earlier
        assert client.streams[unseen].status == 0
    assert sorted(run.outcome for run in simulator.bill) == ["finished", "refused"]


async def test_drop_aborts_the_connection(simulator: Simulator) -> None:
    """The socket is cut in mid-answer without a word of HTTP/2."""
    async with connect(simulator) as client:
        stream_id = client.chat(await client.create(), f"{MESSAGE} #fault=drop:4")
        received = await client.answer(stream_id)
        assert client.closed
        assert (received.over, client.goaway_last_id) == (False, None)
        assert len(received.frames) == 4


async def test_deaf_connection_answers_nothing_more(simulator: Simulator) -> None:
    """After the fault not even PING is answered, while another connection works."""
    async with connect(simulator) as client:
        stream_id = client.chat(await client.create(), f"{MESSAGE} #fault=deaf:2")
        await client.until(lambda: len(client.streams[stream_id].frames) == 2)
        with pytest.raises(TimeoutError):
            await _short(client)
        assert (await ask(simulator, MESSAGE)).ended


async def _short(client: FrameClient) -> None:
    async with asyncio.timeout(0.2):
        await client.ping()


@pytest.mark.parametrize("form", ["chat-http2", "chat-sse", "chat"])
async def test_429_says_when_to_come_back(simulator: Simulator, form: str) -> None:
    """429 carries Retry-After and X-RateLimit-* in the error shape."""
    received = await ask(simulator, f"{MESSAGE} #fault=429:7", form)
    assert (received.status, received.headers["retry-after"]) == (429, "7")
    assert received.headers["x-ratelimit-remaining"] == "0"
    assert received.json()["error"]["code"] == "too_many_requests"


async def test_500_has_the_error_shape(simulator: Simulator) -> None:
    """500 comes as the documented error."""
    received = await ask(simulator, f"{MESSAGE} #fault=500")
    assert (received.status, received.json()["error"]["code"]) == (500, "internal_server_error")


async def test_empty_body_error_has_no_body(simulator: Simulator) -> None:
    """The status asked for comes without a body."""
    received = await ask(simulator, f"{MESSAGE} #fault=empty-body-error:503")
    assert (received.status, received.body, received.ended) == (503, b"", True)


async def test_slow_headers_come_late(simulator: Simulator) -> None:
    """Nothing at all comes before the delay; then the answer is whole."""
    async with connect(simulator) as client:
        stream_id = client.chat(await client.create(), f"{MESSAGE} #fault=slow-headers:0.2")
        await client.ping()
        assert client.streams[stream_id].status == 0
        received = await client.answer(stream_id)
    run = simulator.bill.runs[-1]
    assert run.ended_at_s is not None
    assert run.ended_at_s - run.started_at_s >= 0.19
    assert text_of(received.json()) == answer(MESSAGE).text


async def test_slow_first_token_comes_after_the_headers(simulator: Simulator) -> None:
    """Headers come at once and the first item only after the delay."""
    async with connect(simulator) as client:
        stream_id = client.chat(await client.create(), f"{MESSAGE} #fault=slow-first-token:0.2")
        received = client.streams[stream_id]
        await client.until(lambda: received.status == 200)
        await client.ping()
        assert received.frames == []
        assert text_of((await client.answer(stream_id)).json()) == answer(MESSAGE).text


@pytest.mark.parametrize("sent", [0, 6])
async def test_moderated_withholds_the_answer(simulator: Simulator, sent: int) -> None:
    """The last item says what was filtered, and no content comes beyond what was sent before."""
    items = (await ask(simulator, f"{MESSAGE} #fault=moderated:{sent}")).json()
    last = items[-1]["choice"]
    assert last["finish_reason"] == "content_filter"
    assert any(result["filtered"] for result in last["moderation_results"]["categoryResults"])
    assert len(items) == max(1, sent) + 1
    assert items[-1]["usage"]["completion_tokens"] == sum(1 for item in items if item["choice"]["message"]["content"])


@pytest.mark.parametrize("count", [2, 5, 1000])
async def test_batch_puts_items_into_one_frame(simulator: Simulator, count: int) -> None:
    """A frame holds N items, and the array is the same."""
    received = await ask(simulator, f"{MESSAGE} #fault=batch:{count}")
    assert text_of(received.json()) == answer(MESSAGE).text
    assert len(received.frames) == -(-(len(answer(MESSAGE).deltas) + 1) // count)


@pytest.mark.parametrize("form", ["chat-http2", "chat-sse"])
@pytest.mark.parametrize("most", [1, 3, 50, 900])
async def test_split_cuts_anywhere_and_loses_nothing(simulator: Simulator, form: str, most: int) -> None:
    """Frames of up to N bytes join to the very answer that an unbroken stream gives."""
    message = "Zoë 👩‍👩‍👧‍👦 你好 #tokens=30"
    received = await ask(simulator, f"{message} #fault=split:{most} #seed=3", form)
    assert all(len(frame) <= most for frame in received.frames)
    whole = await ask(simulator, f"{message} #seed=3", form)
    assert _without_ids(received.body) == _without_ids(whole.body)


def _without_ids(body: bytes) -> bytes:
    return re.sub(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", b"ID", re.sub(rb'"prompt_tokens":.*?}', b"", body))


async def test_split_cuts_inside_utf8_and_escapes(simulator: Simulator) -> None:
    """Over one long answer some frames end in the middle of a character, and others in the middle of an escape."""
    raw = await ask(simulator, "你好你好 🎉🎉 " * 30 + "#echo #raw #fault=split:40")
    assert any(0x80 <= frame[0] < 0xC0 for frame in raw.frames)
    escaped = await ask(simulator, "你好你好 🎉🎉 " * 30 + "#echo #fault=split:40")
    assert any(re.search(rb"\\(u[0-9A-F]{0,3})?$", frame) for frame in escaped.frames)
    assert any(b'},{"choice' in frame for frame in escaped.frames)  # and some hold an end and a start


async def test_no_usage_leaves_it_out(simulator: Simulator) -> None:
    """The last item has no usage, though the bill has."""
    items = (await ask(simulator, f"{MESSAGE} #fault=no-usage")).json()
    assert [item["usage"] for item in items] == [None] * len(items)
    assert simulator.bill.runs[-1].completion_tokens == 40


async def test_zero_usage_reports_zeros(simulator: Simulator) -> None:
    """The last item reports a usage of zero."""
    items = (await ask(simulator, f"{MESSAGE} #fault=zero-usage")).json()
    assert items[-1]["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


@pytest.mark.parametrize("form", ["chat-http2", "chat-sse", "chat"])
async def test_garbage_is_no_json(simulator: Simulator, form: str) -> None:
    """The array breaks into something that no JSON reader accepts."""
    received = await ask(simulator, f"{MESSAGE} #fault=garbage:3", form)
    assert b"<html>" in received.body
    assert received.ended
    with pytest.raises(ValueError):
        json.loads(received.body)


async def test_huge_item_is_one_item(simulator: Simulator) -> None:
    """One content has as many bytes as asked for, over many frames, and belongs to the stored answer."""
    items = (await ask(simulator, f"{MESSAGE} #fault=huge-item:300000")).json()
    assert max(len(item["choice"]["message"]["content"] or "") for item in items) == 300_000
    stored = simulator.conversations.get(simulator.bill.runs[-1].conversation_id)
    assert stored is not None
    assert stored.messages[-1].content == text_of(items)


async def test_extra_role_adds_items_that_are_not_the_answer(simulator: Simulator) -> None:
    """An item of the tool role and one of index 1 come in between; the answer without them is unchanged."""
    items = (await ask(simulator, f"{MESSAGE} #fault=extra-role")).json()
    others = [(one["choice"]["index"], one["choice"]["message"]["role"]) for one in items]
    assert (0, "tool") in others
    assert (1, "assistant") in others
    assert text_of(items) == answer(MESSAGE).text


@pytest.mark.parametrize("fault", ["stall", "cut", "reset", "drop", "goaway", "cut-after-finish"])
async def test_sync_form_is_struck_too(simulator: Simulator, fault: str) -> None:
    """The whole-answer form breaks off in its body."""
    async with connect(simulator) as client:
        stream_id = client.chat(await client.create(), f"{MESSAGE} #fault={fault}", "chat")
        received = client.streams[stream_id]
        await client.until(lambda: received.over or (fault == "stall" and bool(received.frames)))
        if fault == "goaway":
            assert client.goaway_last_id == stream_id
            assert received.json()["usage"]["completion_tokens"] == 40
        else:
            with pytest.raises(ValueError):
                received.json()


async def test_low_streams_limits_and_refuses(start: Start) -> None:
    """SETTINGS names the low limit, and a stream too many is refused without ending the connection."""
    simulator = await start(faults=("low-streams:2",))
    async with connect(simulator) as client:
        conversation_id = await client.create()
        assert client.settings[3] == 2
        first, second = (client.chat(conversation_id, "hello #fault=stall:1") for _ in range(2))
        third = await client.answer(client.chat(conversation_id, MESSAGE))
        assert third.reset_code == REFUSED_STREAM
        await client.until(lambda: bool(client.streams[first].frames and client.streams[second].frames))


async def test_set_max_streams_lowers_the_limit_of_open_connections(simulator: Simulator) -> None:
    """A limit lowered in flight reaches the client, and streams that are open go on."""
    async with connect(simulator) as client:
        stream_id = client.chat(await client.create(), f"{MESSAGE} #rate=100")
        simulator.set_max_streams(1)
        assert (await client.answer(stream_id)).body.endswith(b"]")
        assert client.settings[3] == 1


async def test_no_alpn_is_no_http2(start: Start) -> None:
    """TLS succeeds without h2, and the server says so in HTTP/1.1."""
    simulator = await start(faults=("no-alpn",))
    context = ssl.create_default_context(cafile=str(simulator.ca_file))
    context.set_alpn_protocols(["h2"])
    port = int(simulator.url.rsplit(":", 1)[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    assert writer.get_extra_info("ssl_object").selected_alpn_protocol() is None
    assert (await reader.read()).startswith(b"HTTP/1.1 505 ")
    writer.close()
    await writer.wait_closed()


async def test_settings_fault_strikes_every_nth_chat(start: Start) -> None:
    """@2 of the settings strikes the second and the fourth chat; set_faults replaces it at once."""
    simulator = await start(faults=("500@2",))
    statuses = [(await ask(simulator, MESSAGE)).status for _ in range(4)]
    simulator.set_faults("429")
    assert [*statuses, (await ask(simulator, MESSAGE)).status] == [200, 500, 200, 500, 429]


async def test_faults_combine(simulator: Simulator) -> None:
    """Several faults of one message strike together: split frames, a tool item, and a cut."""
    received = await ask(simulator, f"{MESSAGE} #fault=split:9 #fault=extra-role #fault=cut:12")
    assert received.ended
    assert not received.body.endswith(b"]")
    assert all(len(frame) <= 9 for frame in received.frames)
