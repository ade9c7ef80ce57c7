"""The registry: one view of all tenants, replaced as a whole, in which what did not change stays the same object."""

from __future__ import annotations

from dataclasses import replace

from gateway.core.identity import TenantId
from gateway.core.plan import Plan, ScopeLimits
from gateway.services.registry import Registry
from tests.services.access import tenant_named

ACME, OTHER = tenant_named("acme"), tenant_named("other", origins=frozenset({"https://other.example"}))


def test_registry_replaced_shows_the_new_tenants_to_who_held_it() -> None:
    """Whoever holds the view sees what is in force, and the union of origins is of that."""
    registry = Registry({ACME.id: ACME})
    assert registry.replace({ACME.id: ACME, OTHER.id: OTHER})
    assert dict(registry) == {ACME.id: ACME, OTHER.id: OTHER}
    assert registry.origins == ACME.origins | OTHER.origins
    assert registry.replace({OTHER.id: OTHER})
    assert ACME.id not in registry
    assert registry.origins == OTHER.origins


def test_registry_remembers_tenants_that_are_gone() -> None:
    """What a removed tenant has begun must still be brought to its end."""
    registry = Registry({ACME.id: ACME})
    known = registry.known
    registry.replace({OTHER.id: OTHER})
    assert dict(known) == {ACME.id: ACME, OTHER.id: OTHER}


def test_registry_replaced_by_equals_changes_nothing() -> None:
    """The same again is no change: nobody is told, and tenants stay the objects that they were."""
    registry, told = Registry({ACME.id: ACME}), []
    registry.on_change.append(lambda: told.append(1))
    assert not registry.replace({ACME.id: replace(ACME, personas=dict(ACME.personas))})
    assert registry[ACME.id] is ACME
    assert told == []


def test_registry_tells_of_a_change_after_it_is_in_force() -> None:
    """Who is told sees the new state."""
    registry = Registry({ACME.id: ACME})
    seen: list[list[TenantId]] = []
    registry.on_change.append(lambda: seen.append(list(registry)))
    registry.replace({OTHER.id: OTHER})
    registry.replace({OTHER.id: replace(OTHER, anonymous=False)})
    assert seen == [["other"], ["other"]]


def test_registry_keeps_the_plan_of_a_tenant_in_which_other_things_changed() -> None:
    """Limits are worked out anew only when the plan is another."""
    registry = Registry({ACME.id: ACME})
    registry.replace({ACME.id: replace(ACME, anonymous=False, plan=Plan())})
    assert registry[ACME.id].plan is ACME.plan
    assert not registry[ACME.id].anonymous
    tighter = Plan(user=ScopeLimits(requests_per_min=1))
    registry.replace({ACME.id: replace(ACME, plan=tighter)})
    assert registry[ACME.id].plan is tighter
