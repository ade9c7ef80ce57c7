"""The rules of limits, exact and in memory: what the store's scripts must agree with, and what holds without them.

A worker that cannot reach the store decides by books of its own (see ``services.admission``); the tests decide by
them what the scripts ought to have said. Everything is whole numbers, so the two agree to the last one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from gateway.core.limits import (
    COMPLETION_UNKNOWN,
    COMPLETIONS_KEPT,
    LEVEL_MAX,
    SLOT_LEASE_US,
    SLOT_WAIT_US,
    Ask,
    Decision,
    Kind,
    Quota,
    Rule,
    percentile_90,
)


@dataclass(slots=True)
class Meter:
    """A bucket that drains ``limit`` a period; ``level`` counts in shares, of which ``period_us`` make one token."""

    level: int = 0
    at_us: int = 0

    def drain(self, rule: Rule, now_us: int) -> int:
        """Return the level now."""
        return max(0, self.level - max(0, now_us - self.at_us) * rule.limit)

    def fill(self, rule: Rule, amount: int, now_us: int) -> None:
        """Add requests or tokens, or take some back; what has drained already is not given back."""
        self.level = min(max(0, self.drain(rule, now_us) + amount * rule.period_us), LEVEL_MAX)
        self.at_us = now_us


@dataclass(slots=True)
class Charge:
    """What a request was charged: its answer, under which rules, how many tokens by now, and whether that is final."""

    ask: Ask
    decision: Decision
    tokens: int
    ended: bool = False
    undone: bool = False


@dataclass(slots=True)
class Books:
    """The counts of one tenant."""

    lease_us: int = SLOT_LEASE_US
    meters: dict[str, Meter] = field(default_factory=dict)
    slots: dict[str, dict[str, int]] = field(default_factory=dict)  # of a rule: holder → end of its lease
    spent: dict[str, int] = field(default_factory=dict)
    charges: dict[str, Charge] = field(default_factory=dict)
    prompts: dict[str, int] = field(default_factory=dict)  # of a conversation: tokens of its last prompt
    completions: dict[str, deque[int]] = field(default_factory=dict)  # of a persona

    def admit(self, ask: Ask, now_us: int) -> Decision:
        """Decide on a request and charge it under all of its rules, or under none."""
        known = self.charges.get(ask.id)
        if known is not None:
            return known.decision
        if ask.until_us and not ask.since_us <= now_us < ask.until_us:
            return Decision(None, 0, 0, 0, now_us, (), stale=True)
        tokens, least = self._estimate(ask)
        refused, longest_us = None, 0
        for rule in ask.rules:
            wait_us = self._wait_us(rule, tokens, least, now_us)
            if wait_us > longest_us:
                refused, longest_us = rule, wait_us
        if refused is None:
            for rule in ask.rules:
                self._charge(ask.id, rule, tokens, now_us)
        quotas = tuple(self._quota(rule, now_us) for rule in ask.rules)
        decision = Decision(refused, longest_us, 0 if refused else tokens, max(0, least - 1), now_us, quotas)
        if refused is None:
            self.charges[ask.id] = Charge(ask, decision, tokens)
        return decision

    def extend(self, request_id: str, tokens: int, now_us: int) -> int:
        """Reserve up to ``tokens`` in all; return what is reserved now, or ``tokens`` where nothing is known of it."""
        charge = self.charges.get(request_id)
        if charge is None:
            return tokens
        more = tokens - charge.tokens
        for rule in charge.ask.rules:
            if rule.kind is Kind.BUDGET:
                more = min(more, rule.limit - self.spent.get(rule.key, 0))
        if more > 0 and not charge.ended:
            self._correct(charge, charge.tokens + more, now_us)
        return charge.tokens

    def settle(
        self, request_id: str, now_us: int, *, prompt: int, completion: int, total: int, known: bool, completed: bool
    ) -> None:
        """Correct what a turn was charged to what it cost, give its slots back, and learn for the next estimate.

        ``known`` figures are the vendor's. Safe to repeat with other figures: the difference is charged.
        """
        charge = self.charges.get(request_id)
        if charge is None:
            return
        self._correct(charge, total, now_us)
        self._leave(charge)
        work = charge.ask.work
        if work is not None and known and _counts_tokens(charge.ask):
            self.prompts[work.conversation_id] = prompt
            if completed:
                self.completions.setdefault(work.persona, deque(maxlen=COMPLETIONS_KEPT)).append(completion)

    def undo(self, request_id: str, now_us: int) -> None:
        """Give back everything that a request was charged. Safe to repeat."""
        charge = self.charges.get(request_id)
        if charge is None:
            return
        self._correct(charge, 0, now_us)
        self._leave(charge)
        if not charge.undone:
            charge.undone = True
            for rule in charge.ask.rules:
                if rule.kind is Kind.RATE:
                    self._meter(rule).fill(rule, -1, now_us)

    def renew(self, key: str, holder: str, now_us: int) -> None:
        """Renew the lease of a slot that is held; nothing happens where it is not."""
        if holder in self.slots.get(key, {}):
            self.slots[key][holder] = now_us + self.lease_us

    def _estimate(self, ask: Ask) -> tuple[int, int]:
        """Return (tokens to reserve, the least that must be left for the turn to make sense)."""
        work = ask.work
        if work is None or not _counts_tokens(ask):
            return 0, 0
        prompt = self.prompts.get(work.conversation_id, 0) + work.message_tokens
        tokens = prompt + (percentile_90(self.completions.get(work.persona, ())) or COMPLETION_UNKNOWN)
        for rule in ask.rules:
            if rule.kind is Kind.BUDGET:
                tokens = min(tokens, rule.limit - self.spent.get(rule.key, 0))
        return max(0, tokens), prompt + 1

    def _wait_us(self, rule: Rule, tokens: int, least: int, now_us: int) -> int:
        """Return after how long a rule would admit, as far as it knows; 0 when it does now."""
        match rule.kind:
            case Kind.SLOTS:
                held = self._held(rule, now_us)
                return SLOT_WAIT_US if len(held) >= rule.limit else 0
            case Kind.BUDGET:
                return rule.period_us - now_us if rule.limit - self.spent.get(rule.key, 0) < least else 0
            case _:
                # A request that is larger than the whole bucket waits for a full one, and leaves it in debt.
                amount = 1 if rule.kind is Kind.RATE else min(tokens, rule.limit)
                room = (rule.limit - amount) * rule.period_us - self._meter(rule).drain(rule, now_us)
                return -(room // rule.limit) if room < 0 else 0

    def _charge(self, holder: str, rule: Rule, tokens: int, now_us: int) -> None:
        match rule.kind:
            case Kind.SLOTS:
                self._held(rule, now_us)[holder] = now_us + self.lease_us
            case Kind.BUDGET:
                self.spent[rule.key] = self.spent.get(rule.key, 0) + tokens
            case _:
                self._meter(rule).fill(rule, 1 if rule.kind is Kind.RATE else tokens, now_us)

    def _quota(self, rule: Rule, now_us: int) -> Quota:
        match rule.kind:
            case Kind.SLOTS:
                remaining = max(0, rule.limit - len(self._held(rule, now_us)))
                return Quota(rule, remaining, 0 if remaining else SLOT_WAIT_US)
            case Kind.BUDGET:
                return Quota(rule, max(0, rule.limit - self.spent.get(rule.key, 0)), rule.period_us - now_us)
            case _:
                level, full = self._meter(rule).drain(rule, now_us), rule.limit * rule.period_us
                remaining = max(0, (full - level) // rule.period_us)
                # Until it is empty again, or has room for one.
                over = level if remaining else level + rule.period_us - full
                return Quota(rule, remaining, -(-over // rule.limit))

    def _correct(self, charge: Charge, tokens: int, now_us: int) -> None:
        """Change what was charged to another figure."""
        more, charge.tokens = tokens - charge.tokens, tokens
        for rule in charge.ask.rules:
            if rule.kind is Kind.TOKENS:
                self._meter(rule).fill(rule, more, now_us)
            elif rule.kind is Kind.BUDGET:
                self.spent[rule.key] = self.spent.get(rule.key, 0) + more

    def _leave(self, charge: Charge) -> None:
        charge.ended = True
        for rule in charge.ask.rules:
            if rule.kind is Kind.SLOTS:
                self.slots.get(rule.key, {}).pop(charge.ask.id, None)

    def _held(self, rule: Rule, now_us: int) -> dict[str, int]:
        held = {holder: until for holder, until in self.slots.get(rule.key, {}).items() if until > now_us}
        self.slots[rule.key] = held
        return held

    def _meter(self, rule: Rule) -> Meter:
        return self.meters.setdefault(rule.key, Meter())


def _counts_tokens(ask: Ask) -> bool:
    return any(rule.kind in (Kind.TOKENS, Kind.BUDGET) for rule in ask.rules)
