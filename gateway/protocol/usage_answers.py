"""Usage reports as types: what the API's description tells of them. They are written by ``protocol.usage``."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gateway.core.ledger import Source
from gateway.core.turn import TurnState
from gateway.core.usage import Dimension
from gateway.protocol.native_answers import Id, Time

Count = Annotated[int, Meta(ge=0)]
Micros = Annotated[int, Meta(ge=0, description="Millionths of the currency's unit; null where no price was in force.")]
Currency = Annotated[str, Meta(description="Of the cost. Groups of two currencies are never one.")]


class UsageSums(msgspec.Struct):
    """What settlements add up to; `estimated` is how many of them have estimated tokens."""

    turns: Count
    moderations: Count
    completed: Count
    stopped: Count
    failed: Count
    estimated: Count
    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    cost_micros: Micros | None
    currency: Currency | None


class UsageRow(UsageSums, kw_only=True):
    """One group. It has a member for each dimension that the report is by; null is the group that has none."""

    month: str | UnsetType = UNSET
    day: str | UnsetType = UNSET
    hour: str | UnsetType = UNSET
    tenant: str | UnsetType = UNSET
    persona: str | UnsetType | None = UNSET
    user: Annotated[str, Meta(description="A keyed hash, as in logs.")] | UnsetType = UNSET
    outcome: TurnState | UnsetType = UNSET
    source: Source | UnsetType = UNSET
    key: Annotated[str, Meta(description="The vendor key's label.")] | UnsetType | None = UNSET


class UsageReport(msgspec.Struct, rename={"from_": "from"}, tag_field="report", tag="sums"):
    """Sums of what ended from `from` until before `to`; `total` has one for each currency."""

    from_: Time
    to: Time
    timezone: str
    by: list[Dimension]
    data: list[UsageRow]
    total: list[UsageSums]


class UsageRecord(msgspec.Struct):
    """One settled turn, or moderation. What is null was never known; a 0 is a 0."""

    tenant: str
    turn_id: Id
    conversation_id: Id | None
    user: str
    persona: str | None
    state: TurnState
    reason: str
    message_id: str | None
    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    source: Source
    duration_s: float
    first_token_s: float | None
    ended_at: Time
    vendor_key: str | None
    cost_micros: Micros | None
    currency: str | None


class UsagePage(msgspec.Struct, rename={"from_": "from"}, tag_field="report", tag="turns"):
    """Settlements in the order in which they were written. ``next_cursor`` leads to the next page; null on the last."""

    from_: Time
    to: Time
    timezone: str
    data: list[UsageRecord]
    next_cursor: str | None
