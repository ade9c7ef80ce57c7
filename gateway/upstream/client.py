"""Hyperleap's API: create, chat, read, score. Chats talk to the pool directly; the cold calls go through httpx.

Every failure becomes a GatewayError with an ``upstream_*`` code. A chat runs under four clocks (connect or
queue, first token, between tokens, whole turn) and its error says which one fired.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from gateway.core.conversation import ConversationId, Feedback, VendorConversation
from gateway.core.errors import Code, GatewayError
from gateway.core.turn import ChatReceiver
from gateway.protocol.hyperleap import (
    StreamItem,
    decode_entry,
    encode_create,
    encode_message,
    encode_score,
    read_entry,
    read_items,
    refusal,
)
from gateway.protocol.json_array import ArrayError, ArrayTruncated, JsonArrayDecoder
from gateway.upstream import errors
from gateway.upstream.dial import ProbeFacts
from gateway.upstream.errors import UpstreamError
from gateway.upstream.observer import UpstreamObserver
from gateway.upstream.origin import tls_context
from gateway.upstream.pool import Pool, PoolFacts, PoolSettings, Stream
from gateway.upstream.transport import Http2Transport

ANSWER_MAX_BYTES: Final = 32 * 1024 * 1024  # a conversation with its messages, or a blob of them

# What an upstream error is to a client.
CODES: Final = MappingProxyType[type[UpstreamError], tuple[Code, str]](
    {
        errors.UpstreamError: (Code.UPSTREAM_ERROR, "The request to Hyperleap failed."),
        errors.InvalidRequest: (Code.INTERNAL, "The request could not be sent."),
        errors.ConnectFailed: (Code.UPSTREAM_UNAVAILABLE, "No connection to Hyperleap."),
        errors.ConnectTimedOut: (Code.UPSTREAM_TIMEOUT, "No connection to Hyperleap in time (connect)."),
        errors.TlsFailed: (Code.UPSTREAM_UNAVAILABLE, "No trusted TLS connection to Hyperleap."),
        errors.NoHttp2: (Code.UPSTREAM_UNAVAILABLE, "The upstream does not speak HTTP/2."),
        errors.QueueTimedOut: (Code.UPSTREAM_OVERLOADED, "No upstream stream became free in time (queue)."),
        errors.QueueFull: (Code.UPSTREAM_OVERLOADED, "Too many requests wait for an upstream stream."),
        errors.PoolClosed: (Code.DRAINING, "The gateway is restarting."),
        errors.StreamReset: (Code.UPSTREAM_RESET, "Hyperleap reset the stream."),
        errors.GoneAway: (Code.UPSTREAM_RESET, "Hyperleap closed the connection."),
        errors.ConnectionLost: (Code.UPSTREAM_RESET, "The connection to Hyperleap was lost."),
        errors.PingTimedOut: (Code.UPSTREAM_RESET, "The connection to Hyperleap went silent."),
        errors.ProtocolViolated: (Code.UPSTREAM_MALFORMED, "Hyperleap broke the rules of HTTP/2."),
        errors.ReceiverRaised: (Code.INTERNAL, "The answer could not be taken in."),
    }
)


def told(error: UpstreamError) -> GatewayError:
    """Translate an upstream error at the border of this room."""
    code, detail = CODES[type(error)]
    return GatewayError(code, detail)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamRules:
    """Where Hyperleap is, how it knows us, and how long anything may take."""

    base_url: str
    api_key: str
    auth_header: str = "x-hl-api-key"
    ca_file: Path | None = None
    queue_timeout_s: float = 10.0
    first_token_timeout_s: float = 60.0
    between_tokens_timeout_s: float = 60.0
    turn_timeout_s: float = 600.0
    call_timeout_s: float = 30.0
    blob_hosts: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"UpstreamRules(base_url={self.base_url!r}, api_key='***')"

    @property
    def credential(self) -> tuple[str, str]:
        """The header that carries the vendor key."""
        value = f"Bearer {self.api_key}" if self.auth_header == "authorization" else self.api_key
        return self.auth_header, value


class HyperleapChat:
    """One answer under way: the pool's Receiver, the turn's Chat."""

    def __init__(self, receiver: ChatReceiver, rules: UpstreamRules) -> None:
        self._receiver = receiver
        self._rules = rules
        self._loop = asyncio.get_running_loop()
        self._decoder = JsonArrayDecoder(StreamItem)
        self._stream: Stream | None = None
        self._unreturned_bytes = 0  # received before open_stream returned the stream
        self._over = False
        self._begun_s = self._heard_s = self._loop.time()
        self._answering = False
        self._clock: asyncio.TimerHandle | None = None

    def bind(self, stream: Stream) -> None:
        """Take the stream once the request is on a connection; callbacks may have come before."""
        self._stream = stream
        if self._over:
            stream.cancel()
            return
        stream.consumed(self._unreturned_bytes)
        self._begun_s = self._loop.time()
        if not self._answering:
            self._heard_s = self._begun_s
        self._wind()

    def cancel(self) -> None:
        self._over = True
        if self._clock is not None:
            self._clock.cancel()
        if self._stream is not None:
            self._stream.cancel()

    # --- Receiver ------------------------------------------------------------------------------------------------

    def headers_received(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        if status != 200 and not self._over:
            retry_after = next((value for name, value in headers if name == b"retry-after"), None)
            self._end(refusal(status, retry_after.decode("latin-1") if retry_after is not None else None))

    def data_received(self, data: bytes) -> None:
        if self._stream is not None:
            self._stream.consumed(len(data))
        else:
            self._unreturned_bytes += len(data)
        if self._over:
            return
        self._heard_s = self._loop.time()
        try:
            items = self._decoder.feed(data)
        except ArrayError:
            self._end(GatewayError(Code.UPSTREAM_MALFORMED))
            return
        if items:
            if not self._answering:
                self._answering = True
                self._wind()  # the clock between tokens may run out before that of the first token would have
            self._receiver.chat_items(read_items(items))
        if self._decoder.error is not None and not self._over:
            self._end(GatewayError(Code.UPSTREAM_MALFORMED))

    def stream_ended(self) -> None:
        if self._over:
            return
        try:
            self._decoder.finish()
        except ArrayTruncated:
            self._end(GatewayError(Code.UPSTREAM_TRUNCATED))
        except ArrayError:
            self._end(GatewayError(Code.UPSTREAM_MALFORMED))
        else:
            self._end(None)

    def stream_failed(self, error: UpstreamError) -> None:
        if not self._over:
            self._end(told(error))

    # --- clocks --------------------------------------------------------------------------------------------------

    def _due(self) -> tuple[float, str, float]:
        """When the next deadline falls, its name and its length."""
        rules = self._rules
        whole = (self._begun_s + rules.turn_timeout_s, "whole turn", rules.turn_timeout_s)
        if self._answering:
            silence = (self._heard_s + rules.between_tokens_timeout_s, "between tokens", rules.between_tokens_timeout_s)
        else:
            silence = (self._begun_s + rules.first_token_timeout_s, "first token", rules.first_token_timeout_s)
        return min(whole, silence)

    def _wind(self) -> None:
        if self._stream is None:
            return  # bind winds it
        if self._clock is not None:
            self._clock.cancel()
        self._clock = self._loop.call_at(self._due()[0], self._ring)

    def _ring(self) -> None:
        """What was heard since the clock was wound only moves its deadline away, so it is looked at when it rings."""
        due_s, name, length_s = self._due()
        if self._loop.time() < due_s:
            self._wind()
        else:
            self._end(GatewayError(Code.UPSTREAM_TIMEOUT, f"Hyperleap took longer than {length_s:g} s ({name})."))

    def _end(self, error: GatewayError | None) -> None:
        self.cancel()  # resets the stream if it is still open
        self._receiver.chat_ended(error)


class HyperleapClient:
    """The Upstream port over one pool of HTTP/2 connections."""

    def __init__(
        self,
        rules: UpstreamRules,
        pool_settings: PoolSettings,
        *,
        observer: UpstreamObserver | None = None,
    ) -> None:
        """Raises ValueError for a base URL that cannot be used, OSError for a CA file that cannot be read."""
        self._rules = rules
        self._pool = Pool(rules.base_url, settings=pool_settings, ca_file=rules.ca_file, observer=observer)
        parts = urlsplit(rules.base_url)
        self._prefix = parts.path.rstrip("/")
        name, value = rules.credential
        self._chat_headers = [
            (name.encode(), value.encode()),
            (b"content-type", b"application/json"),
            (b"accept", b"application/json"),
            (b"accept-encoding", b"identity"),  # a compressed stream would be buffered on its way
            (b"user-agent", b"hyperleap-gateway"),
        ]
        scheme = "https" if parts.scheme == "https" else "http"
        self._http = httpx.AsyncClient(
            transport=Http2Transport(self._pool, owns_pool=True),
            base_url=f"{scheme}://{parts.netloc}{self._prefix}",
            headers={name: value, "accept": "application/json", "accept-encoding": "identity"},
            timeout=httpx.Timeout(rules.call_timeout_s, pool=rules.queue_timeout_s),
        )

    @property
    def facts(self) -> PoolFacts:
        return self._pool.facts

    async def probe(self) -> ProbeFacts:
        """Try TCP, TLS, ALPN and SETTINGS without spending a call; raises ConnectFailed."""
        return await self._pool.probe()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def open_chat(self, conversation_id: ConversationId, message: str, receiver: ChatReceiver) -> HyperleapChat:
        chat = HyperleapChat(receiver, self._rules)
        try:
            stream = await self._pool.open_stream(
                "PATCH",
                f"{self._prefix}/conversations/{conversation_id}/chat-http2",
                self._chat_headers,
                encode_message(message),
                chat,
                deadline_s=self._rules.queue_timeout_s,
            )
        except UpstreamError as error:
            raise told(error) from error
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
    ) -> VendorConversation:
        body = encode_create(
            persona_id=persona_id,
            persona_version_id=persona_version_id,
            replacements=replacements,
            metadata=metadata,
            external_user_id=external_user_id,
        )
        return read_entry(decode_entry(await self._call("POST", "/conversations/persona", body)))

    async def score_message(
        self, conversation_id: ConversationId, message_id: str, feedback: Feedback
    ) -> VendorConversation:
        body = encode_score(message_id, feedback)
        path = f"/conversations/{conversation_id}/set-score/{message_id}"
        return read_entry(decode_entry(await self._call("PATCH", path, body)))

    async def read_conversation(self, conversation_id: ConversationId) -> VendorConversation | None:
        try:
            entry = decode_entry(await self._call("GET", f"/conversations/{conversation_id}", None))
        except GatewayError as error:
            if error.vendor_status == 404:
                return None
            raise
        blob = await self._fetch_blob(entry.blob_uri) if entry.in_blob and entry.blob_uri else None
        return read_entry(entry, blob)

    async def _call(self, method: str, path: str, body: bytes | None) -> bytes:
        headers = {"content-type": "application/json"} if body is not None else {}
        try:
            async with asyncio.timeout(self._rules.call_timeout_s):
                async with self._http.stream(method, path, content=body, headers=headers) as response:
                    if response.status_code != 200 and response.status_code != 201:
                        raise refusal(response.status_code, response.headers.get("retry-after"))
                    return await _read(response)
        except TimeoutError:
            raise GatewayError(
                Code.UPSTREAM_TIMEOUT, f"Hyperleap did not answer within {self._rules.call_timeout_s:g} s (call)."
            ) from None
        except httpx.TimeoutException as error:
            raise _translate(error, Code.UPSTREAM_TIMEOUT) from error
        except httpx.HTTPError as error:
            raise _translate(error, Code.UPSTREAM_UNAVAILABLE) from error

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
