"""Lists of messages: a client's loop stays in one conversation, and no list ever gets into another's."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from openai import APIStatusError, AsyncOpenAI, RateLimitError

from tests.conftest import PERSONA_ID, TENANT_TOML, Running, StartGateway
from tests.transports.client import Client, eventually
from tests.transports.openai.conftest import Hire
from tests.transports.openai.loop import Messages, heard, reply, say

FIRST, SECOND, THIRD = "One? #tokens=6", "Two? #tokens=7", "Three? #tokens=8"


@pytest.mark.parametrize("stream", [True, False])
async def test_loop_of_a_client_stays_in_one_conversation(client: AsyncOpenAI, running: Running, stream: bool) -> None:
    """Hyperleap hears each of the user's messages once, in one conversation, and nothing that it knows already."""
    messages: Messages = []
    for words in (FIRST, SECOND, THIRD):
        await say(client, messages, words, stream=stream)
    assert heard(running) == [[FIRST, SECOND, THIRD]]


async def test_loop_goes_on_however_its_client_writes_the_same(client: AsyncOpenAI, running: Running) -> None:
    """Parts for text, ``developer`` for ``system``, trimmed answers, and what comes with an answer change nothing."""
    messages: Messages = [{"role": "system", "content": "Be brief."}]
    await say(client, messages, FIRST)
    messages[0] = {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]}
    messages[1]["content"] = [{"type": "text", "text": FIRST}]
    messages[2] |= {"content": f"\n{messages[2]['content']} ", "refusal": None, "annotations": [], "tool_calls": None}
    await say(client, messages, SECOND)
    assert heard(running) == [[f"Instructions:\nBe brief.\n\nMessage:\n{FIRST}", SECOND]]


async def test_readmes_loop_stays_in_one_conversation(running: Running, hire: Hire) -> None:
    """The client's own object for an answer may be sent back as it is."""
    backend = hire(running, running.secret_key)
    messages: list[Any] = [{"role": "user", "content": FIRST}]
    asked: Any = {"model": "default", "messages": messages, "user": "ada"}
    messages.append((await backend.chat.completions.create(**asked)).choices[0].message)
    messages.append({"role": "user", "content": SECOND})
    await backend.chat.completions.create(**asked)
    assert heard(running) == [[FIRST, SECOND]]


async def test_loop_goes_on_at_another_worker(start_gateway: StartGateway, running: Running, hire: Hire) -> None:
    """What was said is known to every worker on the same store."""
    other = await start_gateway(simulator=running.simulator, tenant=running.tenant)
    token = await running.token()
    messages: Messages = []
    await say(hire(running, token), messages, FIRST)
    await say(hire(other, token), messages, SECOND)
    await say(hire(running, token), messages, THIRD, stream=True)
    assert heard(running) == [[FIRST, SECOND, THIRD]]


@pytest.mark.parametrize("fault", ["429:1", "500", "refuse", "empty-body-error:503"])
@pytest.mark.parametrize("stream", [True, False])
async def test_loop_goes_on_where_hyperleap_did_not_take_a_message(
    client: AsyncOpenAI, running: Running, fault: str, stream: bool
) -> None:
    """A refusal uses up nothing: not the conversation of a list, nor the one that was opened for a first message."""
    messages: Messages = [{"role": "system", "content": "Be brief."}]
    failing = f"Never heard #fault={fault}"
    for words in (FIRST, SECOND):
        for _ in range(2):
            with pytest.raises(APIStatusError):
                await reply(client, [*messages, {"role": "user", "content": failing}], stream=stream)
        await say(client, messages, words, stream=stream)
    assert len(running.simulator.conversations) == 1
    taken = [message for message in next(iter(heard(running))) if "Never heard" not in message]
    assert taken == [f"Instructions:\nBe brief.\n\nMessage:\n{FIRST}", SECOND]


async def test_responses_go_on_where_hyperleap_did_not_take_a_message(client: AsyncOpenAI, running: Running) -> None:
    """The response before can be gone on from after a refusal, in its conversation."""
    first = await client.responses.create(model="default", input=FIRST)
    for _ in range(2):
        with pytest.raises(RateLimitError):
            await client.responses.create(
                model="default", input="Never heard #fault=429:1", previous_response_id=first.id
            )
    await client.responses.create(model="default", input=SECOND, previous_response_id=first.id)
    assert len(running.simulator.conversations) == 1
    assert [words for words in heard(running)[0] if "Never" not in words] == [FIRST, SECOND]


async def test_answer_that_was_cut_off_is_not_gone_on_from(client: AsyncOpenAI, running: Running) -> None:
    """Where Hyperleap may have the message, its conversation has another end than the client's list."""
    messages: Messages = []
    await say(client, messages, FIRST)
    with pytest.raises(APIStatusError):
        await reply(client, [*messages, {"role": "user", "content": "Cut #fault=cut:0"}])
    await say(client, messages, SECOND)
    assert len(running.simulator.conversations) == 2


async def test_two_users_of_the_same_words_never_share(running: Running, hire: Hire) -> None:
    """Lists that are equal to the letter are answered in a conversation of each user's own."""
    ada, bob = [hire(running, await running.token(user)) for user in ("ada", "bob")]
    hers: Messages = []
    await say(ada, hers, FIRST)
    his = list(hers)
    await say(bob, his, SECOND)  # he has her list, and goes nowhere with it
    await say(ada, hers, SECOND)
    stated = f"Conversation so far:\nUser: {FIRST}\n\nAssistant: {hers[1]['content']}\n\nMessage:\n{SECOND}"
    assert heard(running) == [[FIRST, SECOND], [stated]]


async def test_answer_asked_for_again_opens_a_conversation_that_states_the_list(
    client: AsyncOpenAI, running: Running
) -> None:
    """A regenerate is answered as if the first answer had never been, and each list goes on in its own conversation."""
    messages: Messages = []
    await say(client, messages, FIRST)
    first = [*messages, {"role": "user", "content": SECOND}]
    answers = [await reply(client, first) for _ in range(3)]
    stated = f"Conversation so far:\nUser: {FIRST}\n\nAssistant: {messages[1]['content']}\n\nMessage:\n{SECOND}"
    assert heard(running) == [[FIRST, SECOND], [stated], [stated]]
    for answer in answers:  # the second and the third are equal, and either is as good
        await say(client, [*first, {"role": "assistant", "content": answer}], THIRD)
    assert heard(running) == [[FIRST, SECOND, THIRD], [stated, THIRD], [stated, THIRD]]


async def test_list_that_nobody_knows_is_stated_whole(client: AsyncOpenAI, running: Running) -> None:
    """Instructions, what was said before and the last message reach Hyperleap as one message, in that order."""
    messages: Messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "A"},
        {"role": "assistant", "content": "B"},
        {"role": "system", "content": "Now at length."},
        {"role": "user", "content": SECOND},
    ]
    await reply(client, messages)
    assert heard(running) == [
        [
            "Instructions:\nBe brief.\n\nConversation so far:\nUser: A\n\nAssistant: B\n\nInstructions: Now at length."
            f"\n\nMessage:\n{SECOND}"
        ]
    ]


async def test_list_of_another_model_is_not_gone_on_with(client: AsyncOpenAI, running: Running) -> None:
    """A conversation keeps its persona: the other one gets the list stated."""
    messages: Messages = []
    await say(client, messages, FIRST)
    await say(client, messages, SECOND, model="other")
    assert [len(told) for told in heard(running)] == [1, 1]


async def test_equal_lists_of_one_user_each_go_on(client: AsyncOpenAI, running: Running) -> None:
    """Two chats that begin with the same words, as greetings do, are gone on with one conversation each."""
    chats: list[Messages] = [[], []]
    for messages in chats:
        await say(client, messages, FIRST)
    for messages in chats:
        await say(client, messages, SECOND)
    assert heard(running) == [[FIRST, SECOND], [FIRST, SECOND]]


async def test_list_sent_often_at_once_goes_on_once(client: AsyncOpenAI, running: Running) -> None:
    """Of simultaneous requests one has the conversation; the others open their own and state the list."""
    messages: Messages = []
    await say(client, messages, FIRST)
    asked = [*messages, {"role": "user", "content": SECOND}]
    await asyncio.gather(*(reply(client, asked) for _ in range(8)))
    told = heard(running)
    assert told[0] == [FIRST, SECOND]
    assert [len(one) for one in told[1:]] == [1] * 7


async def test_secret_key_without_a_user_opens_a_conversation_each_time(running: Running, hire: Hire) -> None:
    """Nobody knows whose list it is, so it is never matched; with a user it is."""
    backend = hire(running, running.secret_key)
    messages: Messages = []
    for words in (FIRST, SECOND):
        await say(backend, messages, words)
    assert [len(told) for told in heard(running)] == [1, 1]
    messages = []
    for words in (FIRST, SECOND):
        await say(backend, messages, words, user="ada")
    assert heard(running)[2:] == [[FIRST, SECOND]]


async def test_conversation_that_went_on_elsewhere_is_not_gone_on_with(client: AsyncOpenAI, running: Running) -> None:
    """What was said in it by another door would be in the answer's mind, and is not in the list."""
    messages: Messages = []
    await say(client, messages, FIRST)
    (run,) = running.simulator.bill
    native = Client(running, await running.user())
    await native.complete(run.conversation_id, "Something else #tokens=2")
    await say(client, messages, SECOND)
    assert [len(told) for told in heard(running)] == [2, 1]


async def test_conversation_gone_at_hyperleap_is_opened_anew(
    client: AsyncOpenAI, running: Running, start_gateway: StartGateway, hire: Hire
) -> None:
    """A list whose conversation nobody has any more is stated in a new one."""
    messages: Messages = []
    await say(client, messages, FIRST)
    (run,) = running.simulator.bill
    await running.gateway.redis.call("DEL", f"hg:{{{running.tenant}}}:conv:{run.conversation_id}")
    running.simulator.conversations._by_id.pop(run.conversation_id)
    await say(client, messages, SECOND)
    assert [len(told) for told in heard(running)] == [1, 1]


async def test_refused_list_goes_on_where_it_was_once_it_is_taken(start_gateway: StartGateway, hire: Hire) -> None:
    """A limit that refuses a turn uses up nothing: neither the list's place nor a conversation opened for it."""
    toml = TENANT_TOML.format(tenant="threads-limit", persona=PERSONA_ID)
    running = await start_gateway(toml=toml.replace("concurrent_turns = 0", "concurrent_turns = 1", 1))
    client = hire(running, await running.token())
    messages: Messages = []
    await say(client, messages, FIRST)
    busy = await client.chat.completions.create(
        model="default", messages=[{"role": "user", "content": "Hi #tokens=3000 #rate=20"}], stream=True
    )
    for _ in range(3):
        with pytest.raises(RateLimitError) as refused:
            await reply(client, [*messages, {"role": "user", "content": SECOND}])
        assert (refused.value.code, refused.value.type) == ("rate_limit_exceeded", "requests")
        assert "user_concurrent_turns" in refused.value.response.headers["RateLimit"]
        with pytest.raises(RateLimitError):
            await reply(client, [{"role": "user", "content": "Afresh #tokens=2"}])
    await busy.close()
    await eventually(lambda: not running.gateway.turns.running, "the turn of a client that left to end")
    await say(client, messages, SECOND)
    await reply(client, [{"role": "user", "content": "Afresh #tokens=2"}])
    told = heard(running)
    assert told[0] == [FIRST, SECOND]
    assert len(running.simulator.conversations) == len(told) == 3


async def test_list_repeated_by_its_idempotency_key_reaches_hyperleap_once(
    client: AsyncOpenAI, running: Running
) -> None:
    """A repeat gets the first one's answer, be it of a new list or of one that goes on; another body is refused."""
    messages: Messages = []
    for words, key in ((FIRST, "k1"), (SECOND, "k2")):
        headers = {"Idempotency-Key": key}
        asked = [*messages, {"role": "user", "content": words}]
        answers = await asyncio.gather(*(reply(client, asked, extra_headers=headers) for _ in range(3)))
        assert answers == [await reply(client, asked, extra_headers=headers, stream=True)] * 3
        messages = [*asked, {"role": "assistant", "content": answers[0]}]
    await say(client, messages, THIRD)
    assert heard(running) == [[FIRST, SECOND, THIRD]]
    for known, key in (([], "k1"), (messages[:2], "k2")):
        headers = {"Idempotency-Key": key}
        with pytest.raises(APIStatusError) as refused:
            await reply(client, [*known, {"role": "user", "content": "Other words"}], extra_headers=headers)
        assert (refused.value.status_code, refused.value.code) == (400, "idempotency_mismatch")
        repeat = messages[: len(known) + 1]
        assert await reply(client, repeat, extra_headers=headers) == messages[len(known) + 1]["content"]
    assert heard(running) == [[FIRST, SECOND, THIRD]]


async def test_nothing_that_was_said_is_in_the_store_under_a_thread(client: AsyncOpenAI, running: Running) -> None:
    """Keys and values of lists are digests and ids, and every one has an end."""
    messages: Messages = [{"role": "system", "content": "canary-of-the-system"}]
    await say(client, messages, "canary-of-the-prompt #echo")
    await say(client, messages, "canary-of-the-prompt again #echo")
    redis, found = running.gateway.redis, 0
    for key in await redis.call("KEYS", f"hg:{{{running.tenant}}}:thread:*"):
        kind = await redis.call("TYPE", key)
        value: Any = await (redis.call("GET", key) if kind == b"string" else redis.call("LRANGE", key, 0, -1))
        assert b"canary" not in key
        assert b"canary" not in b"".join(value if isinstance(value, list) else [value])
        assert await redis.call("TTL", key) > 0
        found += 1
    assert found
