"""The doors of the public port, in the order in which they are described: what the application opens is told here."""

from __future__ import annotations

from typing import Final

from gateway.transports.openapi import ag_ui, ai_sdk, hyperleap, native, openai, page, reference
from gateway.transports.openapi.operation import Door

DOORS: Final = (native.DOOR, hyperleap.DOOR, openai.DOOR, ai_sdk.DOOR, ag_ui.DOOR, reference.DOOR)


def described(*, with_page: bool) -> tuple[Door, ...]:
    """Return the doors that there are, with the chat page's or without."""
    return (*DOORS, page.DOOR) if with_page else DOORS
