"""The keys by which Hyperleap knows this gateway: named by labels; what they are stays in mounted files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NewType, Protocol

KeyLabel = NewType("KeyLabel", str)

KEY_LABEL: Final = re.compile(r"[a-z0-9-]{1,32}")
DEFAULT_KEY: Final = KeyLabel("default")  # HYPERLEAP_API_KEY, or the file of it
RING_MAX: Final = 16  # keys of one tenant
WEIGHT_MAX: Final = 100
PLAN_LIMIT_MAX: Final = 100_000_000  # requests; far above any plan, and whole in every count of it

_TERM: Final = re.compile(r"(?P<count>\d{1,9}|\d{1,3}(?:,\d{3}){1,2}) ?/ ?(?P<unit>h|min)", re.ASCII)


@dataclass(frozen=True, slots=True)
class PlanLimit:
    """How many requests Hyperleap's plan grants one key, an hour and a minute; both hold. None: no limit."""

    per_hour: int | None = None
    per_min: int | None = None

    def __post_init__(self) -> None:
        for count in (self.per_hour, self.per_min):
            if count is not None and not 1 <= count <= PLAN_LIMIT_MAX:
                raise ValueError(f"a plan limit lies between 1 and {PLAN_LIMIT_MAX:,} requests, not {count:,}")

    @classmethod
    def parse(cls, text: str) -> PlanLimit:
        """Read a limit as the vendor's plans are written: ``1,000/h + 50/min``, either of both, or ``none``.

        Raises ValueError that says what is wrong.
        """
        if text.strip().lower() == "none":
            return cls()
        counts: dict[str, int] = {}
        for term in text.split("+"):
            found = _TERM.fullmatch(term.strip())
            if found is None:
                raise ValueError(f"{term.strip()[:40]!r} is not <requests>/h or <requests>/min")
            if found["unit"] in counts:
                raise ValueError(f"there is more than one limit a unit: /{found['unit']}")
            counts[found["unit"]] = int(found["count"].replace(",", ""))
        return cls(per_hour=counts.get("h"), per_min=counts.get("min"))

    def __str__(self) -> str:
        terms = [
            f"{count}/{unit}" for count, unit in ((self.per_hour, "h"), (self.per_min, "min")) if count is not None
        ]
        return " + ".join(terms) or "none"


class VendorKeys(Protocol):
    """Which of a tenant's keys to ask with next. Never awaits."""

    def candidates(self, ring: Sequence[KeyLabel], /) -> Sequence[KeyLabel]:
        """Return all keys of a ring, best first: those that work, another of them first each time, then the refused."""
        ...

    def works(self, label: KeyLabel, /) -> bool:
        """Whether a key is there and not known to be refused."""
        ...

    def spare(self, ring: Sequence[KeyLabel], /) -> KeyLabel | None:
        """Return a key that is not known to be refused, or None; one that has just been rotated is not."""
        ...
