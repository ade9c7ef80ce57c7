"""A vendor that answers by itself, in many ways, and writes down what it bills."""

from __future__ import annotations

import asyncio
import uuid
from random import Random

from gateway.core.conversation import ConversationId, Message
from gateway.core.errors import Code, GatewayError
from gateway.core.turn import AnswerItem, ChatReceiver
from gateway.core.vendor_keys import KeyLabel
from tests.services.stage import PlayedChat, PlayedVendor


class BillingVendor(PlayedVendor):
    """Each chat goes one of several ways: whole, without figures, cut off, broken, refused, or on until cancelled.

    ``bill`` is what each answer cost, by its message id and by the question. Of some answers that were not told whole
    a copy is kept, with its figures, to be read back.
    """

    def __init__(self, random: Random) -> None:
        super().__init__()
        self.bill: dict[str, int] = {}
        self._random = random
        self._plays: set[asyncio.Task[None]] = set()

    async def open_chat(
        self, conversation_id: ConversationId, message: str, receiver: ChatReceiver, *, key: KeyLabel
    ) -> PlayedChat:
        if self._random.random() < 0.1:
            raise GatewayError(Code.UPSTREAM_REJECTED, vendor_status=409)
        chat = await super().open_chat(conversation_id, message, receiver, key=key)
        play = asyncio.get_running_loop().create_task(self._play(chat))
        self._plays.add(play)
        play.add_done_callback(self._plays.discard)
        return chat

    async def _play(self, chat: PlayedChat) -> None:
        random = self._random
        way = random.choice(["whole", "whole", "untold", "cut", "broken", "endless"])
        message_id = uuid.uuid4().hex
        texts = ["word " * random.randrange(1, 9) for _ in range(random.randrange(0 if way == "cut" else 1, 6))]
        prompt, completion = random.randrange(1, 200), random.randrange(0, 300)
        self.bill[message_id] = self.bill[chat.message] = prompt + completion
        if way != "whole" and random.random() < 0.5:
            copy = [
                Message("user", chat.message),
                Message(
                    "assistant",
                    "".join(texts),
                    message_id=message_id,
                    prompt_tokens=prompt,
                    completion_tokens=completion,
                    total_tokens=prompt + completion,
                ),
            ]
            self.conversations[chat.conversation_id].messages.extend(copy)
        for text in texts:
            await asyncio.sleep(random.random() * 0.004)
            chat.say(AnswerItem(text, message_id, "r", role="assistant"))
        usage = (prompt, completion, prompt + completion)
        match way:
            case "whole":
                chat.say(AnswerItem(finish_reason="stop", usage=usage, message_id=message_id))
                chat.end()
            case "untold":
                chat.say(AnswerItem(finish_reason="stop", message_id=message_id))
                chat.end()
            case "cut":
                chat.end()
            case "broken":
                chat.end(GatewayError(Code.UPSTREAM_RESET))
            case "endless":
                while not chat.cancelled:
                    await asyncio.sleep(0.005)
