"""Hyperleap's API: create, chat, read, score. Chats talk to the pool directly; the cold calls go through httpx.

Every failure becomes a GatewayError with an ``upstream_*`` code. A chat runs under four clocks (connect or
queue, first token, between tokens, whole turn) and its error says which one fired.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from gateway.core.conversation import ConversationId, Feedback, VendorConversation
from gateway.core.errors import Code, GatewayError
from gateway.core.identity import Model
from gateway.core.turn import ChatReceiver
from gateway.core.vendor_keys import KeyLabel
from gateway.protocol.hyperleap import (
    decode_entry,
    encode_create,
    encode_message,
    encode_score,
    read_entry,
    refusal,
)
from gateway.protocol.hyperleap_requests import create_with_model
from gateway.telemetry.spans import CURRENT, Lines
from gateway.upstream.chat import HyperleapChat
from gateway.upstream.clocks import Clocks
from gateway.upstream.codes import told
from gateway.upstream.dial import ProbeFacts
from gateway.upstream.errors import UpstreamError
from gateway.upstream.greeting import Greeting, greeting_of
from gateway.upstream.keyring import Credential, KeyRing
from gateway.upstream.observer import UpstreamObserver
from gateway.upstream.origin import tls_context
from gateway.upstream.pool import Headers, Pool, PoolFacts, PoolSettings
from gateway.upstream.rules import StreamForm, UpstreamRules
from gateway.upstream.transport import Http2Transport

_IDS: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)
ANSWER_MAX_BYTES: Final = 32 * 1024 * 1024  # a conversation with its messages, or a blob of them


class HyperleapClient:
    """The Upstream port over one pool of HTTP/2 connections, which all keys share."""

    def __init__(
        self,
        rules: UpstreamRules,
        keys: KeyRing,
        pool_settings: PoolSettings,
        *,
        observer: UpstreamObserver | None = None,
    ) -> None:
        """Raises ValueError for a base URL that cannot be used, OSError for a CA file that cannot be read."""
        self._rules = rules
        self._keys = keys
        self._pool = Pool(rules.base_url, settings=pool_settings, ca_file=rules.ca_file, observer=observer)
        parts = urlsplit(rules.base_url)
        self._prefix = parts.path.rstrip("/")
        self._server = parts.hostname or ""
        self._port = parts.port or (80 if parts.scheme == "h2c" else 443)
        self._clocks = Clocks(rules)
        self._chat_headers: dict[KeyLabel, tuple[Credential, Headers]] = {}
        scheme = "https" if parts.scheme == "https" else "http"
        self._http = httpx.AsyncClient(
            transport=Http2Transport(self._pool, owns_pool=True),
            base_url=f"{scheme}://{parts.netloc}{self._prefix}",
            headers={"accept": "application/json", "accept-encoding": "identity"},
            timeout=httpx.Timeout(rules.call_timeout_s, pool=rules.queue_timeout_s),
        )

    @property
    def facts(self) -> PoolFacts:
        return self._pool.facts

    @property
    def stream(self) -> StreamForm:
        """The form in which answers are asked for."""
        return self._rules.stream

    async def probe(self) -> ProbeFacts:
        """Try TCP, TLS, ALPN and SETTINGS without spending a call; raises ConnectFailed."""
        return await self._pool.probe()

    async def greet(self) -> Greeting:
        """Ask for nothing, without a key, which spends no call; raises GatewayError."""
        asked_s = time.time()
        try:
            async with asyncio.timeout(self._rules.call_timeout_s), self._http.stream("GET", "/") as response:
                return greeting_of(response.headers, asked_s=asked_s)
        except (TimeoutError, httpx.HTTPError) as error:
            raise GatewayError(Code.UPSTREAM_UNAVAILABLE) from error

    async def aclose(self) -> None:
        await self._http.aclose()

    def open_chat(
        self, conversation_id: ConversationId, message: str, receiver: ChatReceiver, *, key: KeyLabel
    ) -> Coroutine[Any, Any, HyperleapChat]:
        path = "chat-http2" if self.stream == "array" else "chat-sse"
        return self.open_answer(
            "PATCH", f"/conversations/{conversation_id}/{path}", encode_message(message), receiver, key
        )

    async def open_answer(
        self, method: str, path: str, body: bytes, receiver: ChatReceiver, key: KeyLabel
    ) -> HyperleapChat:
        """Send a request that is answered in the form ``stream``, a path below the base URL; see ``open_chat``."""
        credential = self._keys.take(key)
        headers, span = self._headers(credential), CURRENT.get()
        if traced := span.outgoing:
            span.tell(server=self._server, port=self._port)
            headers = headers.plus(self._pool.headers([(name.encode(), value.encode()) for name, value in traced]))
        chat = HyperleapChat(receiver, self._clocks, partial(self._keys.answered, credential))
        try:
            stream = await self._pool.open_stream(
                method,
                self._prefix + path,
                headers,
                body,
                chat,
                deadline_s=self._rules.queue_timeout_s,
                keeps_nothing=True,
            )
        except BaseException as error:
            chat.cancel()
            if isinstance(error, UpstreamError):
                raise told(error) from error
            raise
        chat.bind(stream)
        return chat

    async def create_conversation(
        self,
        *,
        persona_id: str,
        persona_version_id: str | None,
        replacements: Mapping[str, Any],
        metadata: Mapping[str, Any],
        external_user_id: str,
        key: KeyLabel,
    ) -> VendorConversation:
        body = encode_create(
            persona_id=persona_id,
            persona_version_id=persona_version_id,
            replacements=replacements,
            metadata=metadata,
            external_user_id=external_user_id,
        )
        return read_entry(decode_entry(await self.call("POST", "/conversations/persona", body, key)))

    async def create_with_model(
        self,
        *,
        model: Model,
        configuration: Mapping[str, Any] | None,
        dataspaces: Sequence[str],
        replacements: Mapping[str, Any],
        metadata: Mapping[str, Any],
        external_user_id: str,
        key: KeyLabel,
    ) -> VendorConversation:
        path, body = create_with_model(
            model=model,
            configuration=configuration,
            dataspaces=dataspaces,
            replacements=replacements,
            metadata=metadata,
            external_user_id=external_user_id,
        )
        return read_entry(decode_entry(await self.call("POST", path, body, key)))

    async def score_message(
        self, conversation_id: ConversationId, message_id: str, feedback: Feedback, *, key: KeyLabel
    ) -> VendorConversation:
        body = encode_score(message_id, feedback)
        path = f"/conversations/{conversation_id}/set-score/{message_id}"
        return read_entry(decode_entry(await self.call("PATCH", path, body, key)))

    async def read_conversation(self, conversation_id: ConversationId, *, key: KeyLabel) -> VendorConversation | None:
        try:
            entry = decode_entry(await self.call("GET", f"/conversations/{conversation_id}", None, key))
        except GatewayError as error:
            if error.vendor_status == 404:
                return None
            raise
        blob = await self._fetch_blob(entry.blob_uri) if entry.in_blob and entry.blob_uri else None
        return read_entry(entry, blob)

    def _headers(self, credential: Credential) -> Headers:
        """Return the headers of a chat, built once for each state of each key."""
        cached = self._chat_headers.get(credential.label)
        if cached is not None and cached[0] is credential:
            return cached[1]
        name, value = self._rules.header(credential.secret)
        headers = self._pool.headers(
            [
                (name.encode(), value.encode()),
                (b"content-type", b"application/json"),
                (b"accept", b"application/json" if self.stream == "array" else b"text/event-stream"),
                (b"accept-encoding", b"identity"),  # a compressed stream would be buffered on its way
                (b"user-agent", b"hyperleap-gateway"),
            ]
        )
        self._chat_headers[credential.label] = credential, headers
        return headers

    async def call(self, method: str, path: str, body: bytes | None, key: KeyLabel) -> bytes:
        """Make a call that is answered as a whole, of a path below the base URL; raises GatewayError."""
        outer = CURRENT.get()
        if not outer.sampled:
            return await self._call(method, path, body, key, outer.outgoing)
        span = outer.begin(
            "call", method=method, template=_IDS.sub("{id}", path), server=self._server, port=self._port, key=key
        )
        try:
            answer = await self._call(method, path, body, key, span.outgoing)
        except GatewayError as error:
            span.end(error.code, status=error.vendor_status)
            raise
        except BaseException:
            span.end(Code.INTERNAL)
            raise
        span.end()
        return answer

    async def _call(self, method: str, path: str, body: bytes | None, key: KeyLabel, traced: Lines) -> bytes:
        credential = self._keys.take(key)
        headers = dict([self._rules.header(credential.secret), *traced])
        if body is not None:
            headers["content-type"] = "application/json"
        status: int | None = None
        try:
            async with asyncio.timeout(self._rules.call_timeout_s):
                async with self._http.stream(method, path, content=body, headers=headers) as response:
                    status = response.status_code
                    if status != 200 and status != 201:
                        raise refusal(status, response.headers.get("retry-after"))
                    return await _read(response)
        except TimeoutError:
            raise GatewayError(
                Code.UPSTREAM_TIMEOUT, f"Hyperleap did not answer within {self._rules.call_timeout_s:g} s (call)."
            ) from None
        except httpx.TimeoutException as error:
            raise _translate(error, Code.UPSTREAM_TIMEOUT) from error
        except httpx.HTTPError as error:
            raise _translate(error, Code.UPSTREAM_UNAVAILABLE) from error
        finally:
            self._keys.answered(credential, status)

    async def _fetch_blob(self, uri: str) -> bytes | None:
        """Fetch a transcript that is kept apart, without our key and from hosts that a setting allows; else None."""
        try:
            parts = urlsplit(uri)
            allowed = parts.scheme == "https" and parts.hostname in self._rules.blob_hosts and parts.port != 0
        except ValueError:  # brackets without a match, a port that is none
            return None
        if not allowed:
            return None
        tls: ssl.SSLContext = tls_context(self._rules.ca_file)
        try:
            async with (
                asyncio.timeout(self._rules.call_timeout_s),
                httpx.AsyncClient(http2=True, verify=tls, follow_redirects=False, trust_env=False) as http,
                http.stream("GET", uri, headers={"accept-encoding": "identity"}) as response,
            ):
                return await _read(response) if response.status_code == 200 else None
        except (TimeoutError, httpx.HTTPError, httpx.InvalidURL):
            return None


async def _read(response: httpx.Response) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in response.aiter_raw():
        size += len(part)
        if size > ANSWER_MAX_BYTES:
            raise GatewayError(Code.UPSTREAM_MALFORMED, "Hyperleap's answer is too large.")
        parts.append(part)
    return b"".join(parts)


def _translate(error: httpx.HTTPError, fallback: Code) -> GatewayError:
    cause = error.__cause__
    return told(cause) if isinstance(cause, UpstreamError) else GatewayError(fallback)
