"""Parameters that ask for more than Hyperleap can do: refused by name, so that none is passed over which matters.

Those that only colour an answer (``temperature`` …) or steer a service of OpenAI's own (``store``, ``service_tier`` …)
are fields of the requests that nobody reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from gateway.core.errors import Code, GatewayError

Harmless = Callable[[Any], bool]


def _unset(value: Any) -> bool:
    return not value


def _one(value: Any) -> bool:
    return value is None or (value == 1 and not isinstance(value, bool))


def _no_tool(value: Any) -> bool:
    return value in (None, "none", "auto")


def _plain_text(value: Any) -> bool:
    return not value or (isinstance(value, dict) and value.get("type", "text") == "text")


def _text_config(value: Any) -> bool:
    return not value or (isinstance(value, dict) and _plain_text(value.get("format")))


def _text_only(value: Any) -> bool:
    return not value or value == ["text"]


def _no_logprobs(value: Any) -> bool:
    return not value or (isinstance(value, list) and "message.output_text.logprobs" not in value)


REASONS: Final = {
    "n": "A turn has one answer.",
    "stop": "Hyperleap knows no stop sequences.",
    "response_format": "An answer is text; its form is the persona's matter.",
    "text": "An answer is text; its form is the persona's matter.",
    "prompt": "Prompts are kept by personas: name one as the model.",
}
_TOOLS: Final = "Tools are the persona's matter; none can be brought along."
_LOGPROBS: Final = "Hyperleap does not tell probabilities."

HARMLESS: Final[dict[str, Harmless]] = {
    "audio": _unset,
    "function_call": _no_tool,
    "functions": _unset,
    "image": _unset,
    "include": _no_logprobs,
    "logit_bias": _unset,
    "logprobs": _unset,
    "modalities": _text_only,
    "moderation": _unset,
    "n": _one,
    "prompt": _unset,
    "response_format": _plain_text,
    "stop": _unset,
    "text": _text_config,
    "tool_choice": _no_tool,
    "tools": _unset,
    "top_logprobs": _unset,
    "web_search_options": lambda value: value is None,
}


def check_parameters(body: object) -> None:
    """Raise GatewayError(unsupported_parameter) for the first field of a request that would have to be passed over."""
    for name, harmless in HARMLESS.items():
        if not harmless(getattr(body, name, None)):
            raise unsupported(name, REASONS.get(name))


def tokens_max(**given: int | None) -> int | None:
    """Return the smallest of the bounds that a request sets to its answer; raises GatewayError(invalid_value)."""
    for field, bound in given.items():
        if bound is not None and bound < 1:
            raise GatewayError(Code.INVALID_VALUE, f"`{field}` is 1 at least.", field=field)
    return min((bound for bound in given.values() if bound is not None), default=None)


def unsupported(field: str, reason: str | None = None) -> GatewayError:
    """Return the refusal of a field."""
    if reason is None:
        tools = "tool" in field or "function" in field
        reason = _TOOLS if tools else _LOGPROBS if "log" in field or field == "include" else "Hyperleap takes text."
    return GatewayError(Code.UNSUPPORTED_PARAMETER, f"`{field}` cannot be served here. {reason}", field=field)
