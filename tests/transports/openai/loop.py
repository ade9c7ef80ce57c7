"""A chat as clients of chat completions keep it: a list that they send whole each time."""

from __future__ import annotations

from typing import Any

from openai import AsyncOpenAI

from tests.conftest import Running

Messages = list[dict[str, Any]]


async def say(client: AsyncOpenAI, messages: Messages, text: str, *, stream: bool = False, **options: Any) -> str:
    """Add the user's words and the answer to them to a list; return the answer."""
    messages.append({"role": "user", "content": text})
    answer = await reply(client, messages, stream=stream, **options)
    messages.append({"role": "assistant", "content": answer})
    return answer


async def reply(client: AsyncOpenAI, messages: Messages, *, stream: bool = False, **options: Any) -> str:
    """Have a list answered."""
    asked: Any = {"model": "default", "messages": messages, **options}
    if not stream:
        whole = await client.chat.completions.create(**asked)
        return whole.choices[0].message.content or ""
    chunks = await client.chat.completions.create(**asked, stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks if chunk.choices])


def heard(running: Running) -> list[list[str]]:
    """Return what Hyperleap was told, by conversation, those told first first."""
    by_conversation: dict[str, list[str]] = {}
    for run in running.simulator.bill:
        by_conversation.setdefault(run.conversation_id, []).append(run.message)
    return list(by_conversation.values())
