"""Which tenants and personas are label values: those of the configuration, and a bounded number of later ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from gateway.telemetry.families import OTHER, Axis


class Labels:
    """Folds tenants and personas that nobody configured to ``other``."""

    def __init__(self, tenants: Mapping[str, Collection[str]], personas_max: int) -> None:
        """``tenants`` maps each to its persona aliases; of later ones ``personas_max`` personas become labels."""
        self._tenants = set(tenants)
        self._known = {(tenant, alias) for tenant, aliases in tenants.items() for alias in aliases}
        self._left = personas_max
        self.tenant = Axis(("tenant",), len(self._tenants | {OTHER}) + personas_max)
        self.persona = Axis(("tenant", "persona"), len(self._known) + len(self._tenants) + 1 + 2 * personas_max)

    def know(self, tenants: Mapping[str, Collection[str]]) -> None:
        """Add tenants and personas, as many as there is room for; none is ever taken away."""
        for tenant, aliases in tenants.items():
            for alias in aliases:
                if (tenant, alias) not in self._known and self._left > 0:
                    self._left -= 1
                    self._tenants.add(tenant)
                    self._known.add((tenant, alias))

    def of_tenant(self, tenant: str) -> str:
        return tenant if tenant in self._tenants else OTHER

    def of_persona(self, tenant: str, persona: str | None) -> tuple[str, str]:
        if (tenant, persona) in self._known:
            return tenant, str(persona)
        return (tenant, OTHER) if tenant in self._tenants else (OTHER, OTHER)
