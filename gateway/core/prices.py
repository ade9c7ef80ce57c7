"""What turns cost: a price a persona, and the exact arithmetic from tokens to millionths of a currency's unit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

MICROS: Final = 1_000_000  # of a currency's unit; and tokens that a price is for
PRICE_MAX: Final = 1_000_000  # units a million tokens, or a turn; a unit for each token is far above any vendor's
DECIMALS_MAX: Final = 6  # a price is a whole number of millionths
COST_MAX_MICROS: Final = 2**53 - 1  # of one turn, so that every reader's numbers hold it; only nonsense costs more
CURRENCY: Final = re.compile(r"[A-Z]{3}")  # the shape of ISO 4217's codes

_DECIMAL: Final = re.compile(r"(?P<whole>\d{1,15})(?:\.(?P<part>\d+))?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What turns of one persona cost. Millionths of the currency's unit: a million tokens, and a turn."""

    currency: str
    prompt_micros: int
    completion_micros: int
    turn_micros: int = 0

    def cost_micros(self, prompt_tokens: int, completion_tokens: int, *, turns: int = 1) -> int:
        """Return what this many tokens cost in millionths of the unit: exact, rounded once, a half upwards.

        What used no tokens costs nothing: no message was taken, and so there was no turn to charge for.
        """
        if not prompt_tokens and not completion_tokens:
            return 0
        exact = prompt_tokens * self.prompt_micros + completion_tokens * self.completion_micros
        return min((exact + MICROS // 2) // MICROS + turns * self.turn_micros, COST_MAX_MICROS)


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceTable:
    """A tenant's prices. ``general`` is that of personas without one of their own, and of what has no persona."""

    general: Price | None = None
    personas: Mapping[str, Price] = field(default_factory=dict)

    def of(self, persona: str) -> Price | None:
        """Return the price of a persona, model or prompt by its alias; None: its cost is not known here."""
        return self.personas.get(persona, self.general)


def parse_price(text: str) -> int:
    """Return a price in millionths of the currency's unit, from a decimal number such as ``2.50``.

    Raises ValueError that says what is wrong.
    """
    number = text.strip()
    found = _DECIMAL.fullmatch(number)
    if found is None:
        if number.startswith("-") and _DECIMAL.fullmatch(number[1:]):
            raise ValueError(f"must not be negative, as {number[:40]} is")
        raise ValueError(f'{number[:40]!r} is no price; write a decimal number such as "2.50"')
    part = (found["part"] or "").rstrip("0")
    if len(part) > DECIMALS_MAX:
        raise ValueError(f"may have {DECIMALS_MAX} decimals, and {number[:40]} has {len(part)}")
    micros = int(found["whole"]) * MICROS + int(part.ljust(DECIMALS_MAX, "0") or "0")
    if micros > PRICE_MAX * MICROS:
        raise ValueError(f"must be at most {PRICE_MAX}, not {number[:40]}")
    return micros
