"""The tenants as they are now: one view that every service holds, replaced as a whole while requests go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from gateway.core.identity import Tenant, TenantId


class Registry(Mapping[TenantId, Tenant]):
    """The tenants in force. Who looks one up sees one state of all; who keeps a tenant keeps what it was.

    A tenant that did not change stays the same object, and so does a plan of one that did: what is worked out from
    them is good until they are others.
    """

    def __init__(self, tenants: Mapping[TenantId, Tenant] | None = None) -> None:
        self._tenants: dict[TenantId, Tenant] = {}
        self._known: dict[TenantId, Tenant] = {}
        self.origins: frozenset[str] = frozenset()  # of all tenants together: a preflight shows no tenant
        self.on_change: list[Callable[[], None]] = []  # called after the tenants have changed, in this order
        self.replace(tenants or {})

    @property
    def known(self) -> Mapping[TenantId, Tenant]:
        """The tenants that are in force or were since this process began, each as it was last.

        What a tenant has begun is brought to its end also when it is gone.
        """
        return self._known

    def replace(self, tenants: Mapping[TenantId, Tenant]) -> bool:
        """Put these tenants in force in the place of all others; False when they are the same."""
        following = {name: _unless_equal(self._tenants.get(name), tenant) for name, tenant in tenants.items()}
        same = following.keys() == self._tenants.keys() and all(
            tenant is self._tenants[name] for name, tenant in following.items()
        )
        if same:
            return False
        self._tenants = following
        self._known.update(following)
        self.origins = frozenset().union(*(tenant.origins for tenant in following.values()))
        for changed in self.on_change:
            changed()
        return True

    def __getitem__(self, tenant: TenantId) -> Tenant:
        return self._tenants[tenant]

    def __iter__(self) -> Iterator[TenantId]:
        return iter(tuple(self._tenants))

    def __len__(self) -> int:
        return len(self._tenants)


def _unless_equal(old: Tenant | None, new: Tenant) -> Tenant:
    """Return the old tenant where nothing changed, and the new one with the old plan where only other things did."""
    if old is None or old is new or old == new:
        return old or new
    return replace(new, plan=old.plan) if old.plan == new.plan else new
