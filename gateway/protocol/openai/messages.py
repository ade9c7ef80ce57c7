"""Lists of messages and input items: read into what was said, refusing by name what is not text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from gateway.core.errors import Code, GatewayError
from gateway.core.threads import ANSWER, INSTRUCTION, QUESTION, Said
from gateway.protocol.openai.parameters import unsupported

ROLES: Final = {"user": QUESTION, "assistant": ANSWER, "system": INSTRUCTION, "developer": INSTRUCTION}
LIST_MAX: Final = 2_048  # of messages, and of parts of one: what OpenAI takes
TEXT_PARTS: Final = frozenset({"text", "input_text", "output_text"})
CALLS: Final = ("tool_calls", "function_call", "tool_call_id", "audio")


class Part(msgspec.Struct):
    """A part of a message's content. Text is in ``text``, a refusal in ``refusal``; what else there may be is not."""

    type: str
    text: str | None = None
    refusal: str | None = None


class Item(msgspec.Struct):
    """A message, as it is given to either interface. What a client sends back of an answer beside its text is ignored.

    ``role`` is missing in items that are not messages, which are refused by their ``type``.
    """

    role: str | None = None
    content: str | list[Part] | None = None
    type: str = "message"
    id: str | None = None
    refusal: str | None = None
    tool_calls: Any = None
    function_call: Any = None
    tool_call_id: Any = None
    audio: Any = None


def said(items: list[Item], field: str) -> list[Said]:
    """Read a list.

    Raises GatewayError: missing_field for an empty one, message_too_long, unsupported_parameter, invalid_value.
    """
    if not items:
        raise GatewayError(Code.MISSING_FIELD, "There is no message to answer.", field=field)
    _check_length(items, field, Code.MESSAGE_TOO_LONG)  # clients that cut long lists look for its code
    found = [_said(item, f"{field}[{index}]") for index, item in enumerate(items)]
    if found[-1].role == ANSWER:
        raise unsupported(f"{field}[{len(items) - 1}].role", "The last message is the one to answer, not an answer.")
    return found


def _check_length(items: Sequence[object], field: str, code: Code = Code.INVALID_VALUE) -> None:
    if len(items) > LIST_MAX:
        raise GatewayError(code, f"A list may have {LIST_MAX} members.", field=field)


def _said(item: Item, at: str) -> Said:
    if item.type != "message":
        raise unsupported(f"{at}.type", "Hyperleap takes messages of text.")
    if item.role is None:
        raise GatewayError(Code.MISSING_FIELD, "A message has a role.", field=f"{at}.role")
    role = ROLES.get(item.role)
    if role is None:
        if item.role in ("tool", "function"):
            raise unsupported(f"{at}.role", "Tools are the persona's matter; none can be brought along.")
        raise GatewayError(
            Code.INVALID_VALUE, "A role is `user`, `assistant`, `system` or `developer`.", field=f"{at}.role"
        )
    for name in CALLS:
        if getattr(item, name):
            raise unsupported(f"{at}.{name}")
    return Said(role, _text(item, at))


def _text(item: Item, at: str) -> str:
    if item.content is None:
        return item.refusal or ""
    if isinstance(item.content, str):
        return item.content
    _check_length(item.content, f"{at}.content")
    texts: list[str] = []
    for index, part in enumerate(item.content):
        if part.type in TEXT_PARTS and part.text is not None:
            texts.append(part.text)
        elif part.type == "refusal":
            texts.append(part.refusal or "")
        elif part.type in TEXT_PARTS:
            raise GatewayError(Code.MISSING_FIELD, "The part has no text.", field=f"{at}.content[{index}].text")
        else:
            raise unsupported(f"{at}.content[{index}].type", "Hyperleap takes text.")
    return "\n".join(texts)
