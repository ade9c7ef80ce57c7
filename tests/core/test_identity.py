"""Personas keep their vendor ids to themselves, and a principal its user's id."""

from __future__ import annotations

from gateway.core.identity import Persona, Principal, Tenant, TenantId, UserHash, UserId


def test_tenant_persona_named_gives_the_alias_of_its_own_personas_only() -> None:
    """A vendor's persona id leads back to the alias, one that the tenant does not list to nothing."""
    persona = Persona(alias="support", persona_id="p-1")
    tenant = Tenant(id=TenantId("acme"), personas={"support": persona})
    assert tenant.persona_named("p-1") == "support"
    assert tenant.persona_named("p-2") is None
    assert tenant.persona_named(None) is None


def test_principal_external_user_id_holds_tenant_and_hash_but_no_user_id() -> None:
    """The vendor knows a user as tenant and keyed hash; the user's id does not leave the gateway."""
    tenant = Tenant(id=TenantId("acme"), personas={})
    principal = Principal(tenant=tenant, user_id=UserId("ann@x.org"), user_hash=UserHash("ab12"), expires_at_s=0)
    assert principal.external_user_id == "acme:ab12"
