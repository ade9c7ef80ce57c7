"""The Operations port: Hyperleap's API beside conversations and chats, by the same client under the same clocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from gateway.core.conversation import ConversationId, Feedback, VendorConversation
from gateway.core.errors import GatewayError
from gateway.core.identity import Prompt
from gateway.core.operations import Change, Report, RunId, RunKind, Verdict
from gateway.core.turn import Chat, ChatReceiver
from gateway.core.vendor_keys import KeyLabel
from gateway.protocol import hyperleap_requests as requests
from gateway.protocol.hyperleap import decode_entry, read_entry
from gateway.upstream.client import HyperleapClient


class HyperleapOperations:
    """The Operations port over a client, which others go on to use beside it and whose owner closes it."""

    def __init__(self, client: HyperleapClient) -> None:
        self._client = client

    async def open_prompt_run(
        self, prompt: Prompt, replacements: Mapping[str, Any], receiver: ChatReceiver, *, key: KeyLabel
    ) -> Chat:
        request = requests.run_prompt(prompt, replacements, sse=self._client.stream == "sse")
        return await self._client.open_answer("POST", *request, receiver, key)

    async def change_conversation(
        self, conversation_id: ConversationId, change: Change, *, key: KeyLabel
    ) -> VendorConversation:
        body = await self._client.call("PATCH", *requests.change_conversation(conversation_id, change), key)
        return read_entry(decode_entry(body))

    async def score_conversation(self, conversation_id: ConversationId, verdict: Verdict, *, key: KeyLabel) -> None:
        await self._client.call("PATCH", *requests.score_conversation(conversation_id, verdict), key)

    async def score_prompt_run(self, run_id: RunId, feedback: Feedback, *, key: KeyLabel) -> None:
        await self._client.call("PATCH", *requests.score_prompt_run(run_id, feedback), key)

    async def moderate(self, text: str | None, *, key: KeyLabel) -> Any:
        return requests.decode_plain(await self._client.call("POST", *requests.moderate(text), key))

    async def report(self, report: Report, asked: Mapping[str, Any], *, key: KeyLabel) -> Any:
        return requests.decode_plain(
            await self._client.call("POST", f"/{report}", msgspec.json.encode(dict(asked)), key)
        )

    async def run_details(self, kind: RunKind, run_id: str, *, key: KeyLabel) -> Any:
        try:
            return requests.decode_plain(await self._client.call("GET", f"/{kind}/{run_id}", None, key))
        except GatewayError as error:
            if error.vendor_status == 404:
                return None
            raise
