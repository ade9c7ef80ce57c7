"""One answer under way: decoded as it arrives, under the clocks that end it when it takes too long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf

from gateway.core.errors import Code, GatewayError
from gateway.core.turn import ChatReceiver
from gateway.protocol.hyperleap import StreamItem, ends_answer, read_item, refusal
from gateway.protocol.json_array import ArrayError, ArrayTruncated, JsonArrayDecoder
from gateway.protocol.sse_items import ItemsError, ItemsTruncated, SseItemDecoder
from gateway.upstream.clocks import Clocks
from gateway.upstream.codes import told
from gateway.upstream.errors import UpstreamError
from gateway.upstream.pool import Stream


class HyperleapChat:
    """One answer under way: the pool's Receiver, the turn's Chat."""

    __slots__ = (
        "_answered",
        "_answering",
        "_begun_s",
        "_clocks",
        "_decoder",
        "_heard_s",
        "_loop",
        "_over",
        "_receiver",
        "_stream",
        "due_s",
    )

    def __init__(self, receiver: ChatReceiver, clocks: Clocks, answered: Callable[[int | None], None]) -> None:
        """``answered`` is told the status once, or None when the chat is over without one."""
        self._receiver = receiver
        self._clocks = clocks
        self._answered: Callable[[int | None], None] | None = answered
        self._loop = asyncio.get_running_loop()
        self._decoder: JsonArrayDecoder[StreamItem] | SseItemDecoder[StreamItem] = (
            JsonArrayDecoder(StreamItem)
            if clocks.rules.stream == "array"
            else SseItemDecoder(StreamItem, ends=ends_answer)
        )
        self._stream: Stream | None = None
        self._over = False
        self._begun_s = self._heard_s = self._loop.time()
        self._answering = False
        self.due_s = inf  # when the next deadline falls, or fell before something was heard

    def bind(self, stream: Stream) -> None:
        """Take the stream once the request is on a connection; callbacks may have come before."""
        if self._over:
            stream.cancel()
            return
        self._stream = stream
        self._begun_s = self._loop.time()
        if not self._answering:
            self._heard_s = self._begun_s
        self._wind()

    def cancel(self) -> None:
        self._over = True
        self._tell(None)
        self._clocks.stop(self)
        if self._stream is not None:
            stream, self._stream = self._stream, None  # each would keep the other
            stream.cancel()

    # --- Receiver ------------------------------------------------------------------------------------------------

    def headers_received(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._tell(status)
        if status != 200 and not self._over:
            retry_after = next((value for name, value in headers if name == b"retry-after"), None)
            self._end(refusal(status, retry_after.decode("latin-1") if retry_after is not None else None))

    def data_received(self, data: bytes) -> None:
        if self._over:
            return
        self._heard_s = self._loop.time()
        decoder = self._decoder
        try:
            items = decoder.feed(data)
        except (ArrayError, ItemsError):
            self._end(GatewayError(Code.UPSTREAM_MALFORMED))
            return
        if items:
            if not self._answering:
                self._answering = True
                self._wind()  # the clock between tokens may run out before that of the first token would have
            self._receiver.chat_items(list(map(read_item, items)))
        if decoder.error is not None and not self._over:
            self._end(GatewayError(Code.UPSTREAM_MALFORMED))

    def stream_ended(self) -> None:
        if self._over:
            return
        try:
            self._decoder.finish()
        except (ArrayTruncated, ItemsTruncated):
            self._end(GatewayError(Code.UPSTREAM_TRUNCATED))
        except (ArrayError, ItemsError):
            self._end(GatewayError(Code.UPSTREAM_MALFORMED))
        else:
            self._end(None)

    def stream_failed(self, error: UpstreamError) -> None:
        if not self._over:
            self._end(told(error))

    # --- clocks --------------------------------------------------------------------------------------------------

    def _due(self) -> tuple[float, str, float]:
        """When the next deadline falls, its name and its length."""
        rules = self._clocks.rules
        whole = (self._begun_s + rules.turn_timeout_s, "whole turn", rules.turn_timeout_s)
        if self._answering:
            silence = (self._heard_s + rules.between_tokens_timeout_s, "between tokens", rules.between_tokens_timeout_s)
        else:
            silence = (self._begun_s + rules.first_token_timeout_s, "first token", rules.first_token_timeout_s)
        return min(whole, silence)

    def _wind(self) -> None:
        if self._stream is None:
            return  # bind winds it
        self.due_s = self._due()[0]
        self._clocks.wind(self)

    def ring(self) -> None:
        """What was heard since the clock was wound only moves its deadline away, so it is looked at when it rings."""
        self.due_s, name, length_s = self._due()
        if self._loop.time() >= self.due_s:
            self._end(GatewayError(Code.UPSTREAM_TIMEOUT, f"Hyperleap took longer than {length_s:g} s ({name})."))

    def _tell(self, status: int | None) -> None:
        answered, self._answered = self._answered, None
        if answered is not None:
            answered(status)

    def _end(self, error: GatewayError | None) -> None:
        self.cancel()  # resets the stream if it is still open
        self._receiver.chat_ended(error)
