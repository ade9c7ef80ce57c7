"""The sections of prices: every field with its unit, default, bounds and documentation, and the table they make."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

import msgspec

from gateway.core.identity import ALIAS
from gateway.core.prices import CURRENCY, Price, PriceTable, parse_price
from gateway.sections import Section, SettingsError, doc


class PersonaPriceSettings(Section, frozen=True, kw_only=True):
    """What turns of one persona, model or prompt cost, in the currency of the table. Decimal numbers, as text."""

    prompt_per_million: Annotated[str, doc('Price of a million prompt tokens, such as `"2.50"`')]
    completion_per_million: Annotated[str, doc("Price of a million completion tokens")]
    per_turn: Annotated[str, doc("Price of each turn that used tokens, on top of them")] = "0"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.price("XXX")

    def price(self, currency: str) -> Price:
        """Return the price; raises SettingsError by the field's name."""
        return Price(
            currency=currency,
            prompt_micros=_micros("prompt_per_million", self.prompt_per_million),
            completion_micros=_micros("completion_per_million", self.completion_per_million),
            turn_micros=_micros("per_turn", self.per_turn),
        )


class PriceSettings(Section, frozen=True, kw_only=True):
    """What turns cost ([usage](usage.md#prices)). A tenant's own win over its plan's, and those over these."""

    currency: Annotated[str | None, doc("Currency of this table, three letters such as `USD`; needed with prices")] = (
        None
    )
    prompt_per_million: Annotated[
        str | None, doc('Price of a million prompt tokens, such as `"2.50"`, of personas that are not below')
    ] = None
    completion_per_million: Annotated[str | None, doc("Price of a million completion tokens of those")] = None
    per_turn: Annotated[str | None, doc("Price of each turn of those that used tokens, on top of them; unset: 0")] = (
        None
    )
    personas: Annotated[
        dict[str, PersonaPriceSettings], doc("Prices of personas, models and prompts by their aliases")
    ] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.currency is not None and not CURRENCY.fullmatch(self.currency):
            raise SettingsError(
                "currency", f"{self.currency[:16]!r} is no code of a currency; write three capital letters"
            )
        general = self._general()
        for alias in self.personas:
            if not ALIAS.fullmatch(alias):
                raise SettingsError(f"personas.{alias}", f"an alias must match {ALIAS.pattern}")
        if self.currency is None and (general is not None or self.personas):
            raise SettingsError("currency", "is required with prices")

    def price(self, alias: str | None) -> Price | None:
        """Return what this table says of an alias, or (None) of those that are not in it; None: nothing."""
        row = (self.personas.get(alias) if alias is not None else None) or self._general()
        return row.price(self.currency or "") if row is not None else None

    def check_known(self, aliases: Iterable[str], words: str) -> None:
        """Raise SettingsError for the price of an alias that is not among these."""
        for alias in sorted(self.personas.keys() - set(aliases)):
            raise SettingsError(f"personas.{alias}", words)

    def _general(self) -> PersonaPriceSettings | None:
        prompt, completion, turn = self.prompt_per_million, self.completion_per_million, self.per_turn
        if prompt is None and completion is None and turn is None:
            return None
        if prompt is None or completion is None:  # for nothing, it would have to say so
            missing = "prompt_per_million" if prompt is None else "completion_per_million"
            raise SettingsError(missing, 'is required with the other prices; "0" is for free')
        return PersonaPriceSettings(
            prompt_per_million=prompt, completion_per_million=completion, per_turn="0" if turn is None else turn
        )


def price_table(levels: Sequence[PriceSettings], aliases: Iterable[str]) -> PriceTable:
    """Join the tables that hold for a tenant, the most particular first; a row is taken whole, never mixed."""

    def of(alias: str | None) -> Price | None:
        return next((price for level in levels if (price := level.price(alias)) is not None), None)

    return PriceTable(
        general=of(None), personas={alias: price for alias in aliases if (price := of(alias)) is not None}
    )


def _micros(name: str, text: str) -> int:
    try:
        return parse_price(text)
    except ValueError as error:
        raise SettingsError(name, str(error)) from None
