"""What clients see of a gateway that was told to end: refusals that say so, readers that are served or sent on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from pathlib import Path
from typing import Any

from aiohttp import ClientSession
from openai import AsyncOpenAI

from gateway.protocol.sse import SseDecoder
from tests.test_commands import STEP_S, chat, ports, run
from tests.test_supervisor import fresh


async def test_notice_refuses_turns_and_still_serves_readers(tmp_path: Path) -> None:
    """While proxies take notice, ``/readyz`` says no, new turns get 503 with Retry-After, new readers are served."""
    async with run(
        tmp_path, "demo", *ports(tmp_path), "--rate", "20", GATEWAY_DRAIN_NOTICE_S="2", GATEWAY_DRAIN_S="10"
    ) as command:
        facts = await command.facts()
        first = await chat(facts, "Hello #rate=0")
        other = await chat(facts, "Hello #rate=0")
        url, headers = facts["GATEWAY_URL"], {"Authorization": f"Bearer {first['token']}"}
        async with fresh() as http, ClientSession() as kept:
            async with kept.post(
                f"{url}/v1/conversations/{first['conversation']}/turns",
                json={"message": "Tell me #tokens=60"},
                headers=headers | {"Prefer": "respond-async"},
            ) as response:
                turn_id = (await response.json())["turn_id"]
            command.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(STEP_S):
                while True:
                    async with http.get(f"{facts['GATEWAY_INTERNAL_URL']}/readyz") as response:
                        if response.status == 503:
                            assert (await response.json())["checks"]["worker"] == "draining"
                            break
            async with kept.post(
                f"{url}/v1/conversations/{other['conversation']}/turns",
                json={"message": "Hello"},
                headers={"Authorization": f"Bearer {other['token']}"},
            ) as response:
                assert response.status == 503
                assert (await response.json())["code"] == "draining"
                assert int(response.headers["Retry-After"]) >= 1
                assert response.headers["Connection"] == "close"
            async with http.get(f"{url}/v1/turns/{turn_id}/events", headers=headers) as response:
                assert response.status == 200
                events = SseDecoder().feed(await response.read())
        assert events[-1].event == "turn.completed"  # nobody else could serve its reader, so it was not sent away
        text = "".join(json.loads(event.data)["text"] for event in events if event.event == "message.delta")
        assert text == json.loads(events[-1].data)["text"]
        await command.finish()
        assert command.process.returncode == 0


async def test_openai_client_is_served_to_the_end_of_its_answer(tmp_path: Path) -> None:
    """It could not come back for the rest, so it is never sent away."""
    async with run(tmp_path, "demo", *ports(tmp_path), "--rate", "20", GATEWAY_DRAIN_S="10") as command:
        facts = await command.facts()
        asked: Any = {"model": "default", "messages": [{"role": "user", "content": "Tell me #tokens=60"}]}
        url, key = f"{facts['GATEWAY_URL']}/v1", facts["GATEWAY_SECRET_KEY"]
        async with AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as client:
            stream = await client.chat.completions.create(**asked, stream=True)
            await anext(stream)
            command.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(STEP_S):
                chunks: list[Any] = [chunk async for chunk in stream]
        assert chunks[-1].choices[0].finish_reason == "stop"
        await command.finish()
        assert command.process.returncode == 0


async def test_reader_that_another_gateway_can_serve_is_sent_there(tmp_path: Path, store_url: str) -> None:
    """With a Redis of one's own a draining gateway ends streams with ``retry:`` between events; another one goes on."""
    (tmp_path / "b").mkdir()
    environ = {
        "GATEWAY_REDIS_URL": store_url,
        "GATEWAY_DRAIN_SPREAD_S": "0.2",
        "GATEWAY_STREAMS_RETRY_MS": "400",
        "GATEWAY_DATA_DIR": str(tmp_path / "data"),  # the secrets that both need
    }
    async with contextlib.AsyncExitStack() as stack:
        leaving = await stack.enter_async_context(run(tmp_path, "demo", *ports(tmp_path), "--rate", "20", **environ))
        facts = await leaving.facts()
        staying = await stack.enter_async_context(run(tmp_path / "b", "demo", *ports(tmp_path / "b"), **environ))
        other = await staying.facts()  # its keys replaced the first one's
        ending = await chat(other | {"GATEWAY_URL": facts["GATEWAY_URL"]}, "Hello #rate=0")
        headers = {"Authorization": f"Bearer {ending['token']}", "Accept": "text/event-stream"}
        decoder = SseDecoder()
        async with fresh() as http:
            async with http.post(
                f"{facts['GATEWAY_URL']}/v1/conversations/{ending['conversation']}/turns",
                json={"message": "Long #tokens=60"},
                headers=headers,
            ) as response:
                turn_id = response.headers["x-turn-id"]
                events = decoder.feed(await response.content.readuntil(b"event: message.delta"))
                leaving.process.send_signal(signal.SIGTERM)
                async with asyncio.timeout(STEP_S):
                    events += decoder.feed(await response.content.read())
            assert events[-1].event == "message.delta"
            assert decoder.retry_ms is not None
            assert 100 <= decoder.retry_ms <= 400
            async with http.get(
                f"{other['GATEWAY_URL']}/v1/turns/{turn_id}/events",
                headers=headers | {"Last-Event-ID": decoder.last_event_id or ""},
            ) as response:
                assert response.status == 200, await response.text()
                events += SseDecoder().feed(await response.read())
        assert events[-1].event == "turn.completed"
        text = "".join(json.loads(event.data)["text"] for event in events if event.event == "message.delta")
        assert text == json.loads(events[-1].data)["text"]
        await leaving.finish()
        assert leaving.process.returncode == 0
        await staying.end()
