"""Tenants from the settings or a file and from the store, brought together: the good hold, the bad change nothing."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec
import pytest

from gateway.core.errors import Code, GatewayError
from gateway.core.identity import TenantId
from gateway.core.tenancy import Source
from gateway.price_options import PriceSettings
from gateway.services.registry import Registry
from gateway.services.tenants import Tenants
from gateway.store import tenants as store_module
from gateway.store.tenants import TENANTS, RedisTenants
from gateway.telemetry.metrics import Metrics
from gateway.tenant_options import PlanSettings, ScopeLimitSettings
from gateway.tenant_tables import TenantTables, parse_tenant

PERSONA = "0b9dfb8c-6b9f-4a5e-9c3c-0123456789ab"
GOLD = PlanSettings(user=ScopeLimitSettings(requests_per_min=7))
ACME, FIXED = TenantId("acme"), TenantId("fixed")
LOGIN = {"issuer": "https://login.example", "audience": "chat", "jwks_url": "https://login.example/keys"}


def table(**fields: Any) -> dict[str, Any]:
    return {"personas": {"default": {"persona_id": PERSONA}}, **fields}


def tables(*names: str, **fields: Any) -> TenantTables:
    return TenantTables(plans={"gold": GOLD}, tenants={name: parse_tenant(table(**fields)) for name in names})


def tenants_on(store: RedisTenants, fixed: TenantTables | None = None, metrics: Metrics | None = None) -> Tenants:
    return Tenants(Registry(), store, fixed or tables("fixed"), Source.FILE, metrics=metrics)


async def refused(work: Any) -> GatewayError:
    with pytest.raises(GatewayError) as error:
        await work
    return error.value


async def gauge(metrics: Metrics, line: str) -> float:
    body = await (await metrics.scrape("")).whole()
    (value,) = [text.rpartition(" ")[2] for text in body.decode().splitlines() if text.startswith(f"{line} ")]
    return float(value)


async def test_tenant_put_is_in_force_here_and_after_a_look_elsewhere(stored_tenants: RedisTenants) -> None:
    """A stored tenant holds beside those of the file, with the plan that it names; a look shows it to other workers."""
    here, there = tenants_on(stored_tenants), tenants_on(stored_tenants)
    assert await here.put(ACME, table(plan="gold", origins=["https://Acme.example:443"]))
    assert list(here.registry) == ["fixed", "acme"]
    assert here.registry[ACME].plan.user.requests_per_min == 7
    assert here.registry[ACME].origins == {"https://acme.example"}
    assert (here.enrolled[ACME].source, here.enrolled[FIXED].source) == (Source.STORE, Source.FILE)
    await there.load()
    assert there.registry[ACME] == here.registry[ACME]
    assert not await here.put(ACME, table())
    await there.load()
    assert there.registry[ACME].origins == frozenset()
    assert await there.remove(ACME)
    assert not await there.remove(ACME)
    await here.load()
    assert list(here.registry) == ["fixed"]


async def test_fixed_tenant_is_not_changed_by_the_store(stored_tenants: RedisTenants) -> None:
    """What a file says is refused to an operator's hand, and wins over what the store says of the same name."""
    tenants = tenants_on(stored_tenants)
    for work in (tenants.put(FIXED, table()), tenants.remove(FIXED)):
        assert (await refused(work)).code is Code.TENANT_FIXED
    await stored_tenants.put(FIXED, msgspec.json.encode(table(anonymous=True)))
    await tenants.load()
    assert not tenants.registry[FIXED].anonymous
    tenants.fix(tables("another"))  # the file lets it go: now the store's holds
    assert tenants.registry[FIXED].anonymous
    assert tenants.enrolled[FIXED].source is Source.STORE


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        ({}, "personas"),
        (table(personas={}), "personas"),
        (table(personas={"default": {"persona_id": "nonsense"}}), "personas.default.persona_id"),
        (table(origins=["https://acme.example/path"]), "origins"),
        (table(limits={"user": {"requests_per_min": -1}}), "limits.user.requests_per_min"),
        (table(limits={"user": {"requests_per_min": "many"}}), "limits.user.requests_per_min"),
        (table(plan="platinum"), "plan"),
        (table(doors=["telex"]), "doors"),
        (table(colour="red"), "colour"),
        (table(timezone="Nowhere/City"), "timezone"),
        (table(issuers={"a": {"issuer": "i"}}), "issuers.a.audience"),
        (table(issuers={"a": LOGIN, "b": LOGIN}), "issuers.b"),
        ([], None),
        (table(origins=[f"https://{n}.example" for n in range(5000)]), None),
    ],
)
async def test_bad_tenant_is_refused_by_its_field(stored_tenants: RedisTenants, raw: Any, field: str | None) -> None:
    """An operator learns which field is wrong, and nothing is kept."""
    tenants = tenants_on(stored_tenants)
    error = await refused(tenants.put(ACME, raw))
    assert (error.code, error.field) == (Code.INVALID_VALUE, field)
    assert await stored_tenants.load() == {}


@pytest.mark.parametrize("name", ["", "ACME", "a" * 33, "a/b", "a:b", "äcme", "a\n"])
async def test_tenant_of_a_bad_name_is_refused(stored_tenants: RedisTenants, name: str) -> None:
    """A tenant's id becomes part of keys' names."""
    error = await refused(tenants_on(stored_tenants).put(TenantId(name), table()))
    assert (error.code, error.field) == (Code.INVALID_VALUE, "tenant")


async def test_issuer_of_another_tenant_is_refused(stored_tenants: RedisTenants) -> None:
    """Two tenants cannot both be whom one token means; a tenant may keep its own issuer when it is put again."""
    tenants = tenants_on(stored_tenants)
    await tenants.put(ACME, table(issuers={"login": LOGIN}))
    error = await refused(tenants.put(TenantId("rival"), table(issuers={"theirs": LOGIN})))
    assert error.field == "issuers.theirs"
    await tenants.put(ACME, table(issuers={"renamed": LOGIN}, anonymous=True))
    assert tenants.registry[ACME].anonymous


async def test_document_that_cannot_be_read_takes_nobody_down(stored_tenants: RedisTenants) -> None:
    """Rows of strangers and of other versions are passed over, told in a metric, and leave what was read of them."""
    metrics = Metrics({}, personas_max=10)
    tenants = tenants_on(stored_tenants, metrics=metrics)
    await tenants.put(ACME, table(anonymous=True))
    newer = msgspec.json.encode(table(anonymous=False, field_of_a_later_version=1))
    for name, raw in (
        (ACME, newer),
        ("torn", b'{"personas":'),
        ("bytes", b"\xff\xfe"),
        ("number", b"7"),
        ("deep", b"[" * 9999),
    ):
        await stored_tenants._redis.call("HSET", TENANTS, name, raw)
    await stored_tenants._redis.call("HSET", TENANTS, b"\xff no name", b"{}")
    await stored_tenants.put(TenantId("good"), msgspec.json.encode(table()))
    await tenants.load()
    assert sorted(tenants.registry) == ["acme", "fixed", "good"]
    assert tenants.registry[ACME].anonymous  # as it was read last
    assert tenants.unreadable == {"acme": "field_of_a_later_version", "torn": "", "bytes": "", "number": "", "deep": ""}
    assert await gauge(metrics, "gateway_tenants_unreadable") == 5
    assert await gauge(metrics, 'gateway_tenants{source="store"}') == 2
    await tenants.put(ACME, table())
    for name in ("torn", "bytes", "number", "deep"):
        await tenants.remove(TenantId(name))
    assert await gauge(metrics, "gateway_tenants_unreadable") == 0
    assert not tenants.registry[ACME].anonymous


async def test_prices_of_all_reach_tenants_that_are_in_force(stored_tenants: RedisTenants) -> None:
    """A price that changes in the file holds for every tenant without one of its own, those of the store too."""
    tenants = tenants_on(stored_tenants)
    await tenants.put(ACME, table())
    assert tenants.registry[ACME].prices.of("default") is None
    prices = PriceSettings(currency="EUR", prompt_per_million="2", completion_per_million="8")
    tenants.fix(TenantTables(prices=prices, tenants=tables("fixed").tenants))
    for name in (ACME, FIXED):
        price = tenants.registry[name].prices.of("default")
        assert price is not None
        assert (price.currency, price.completion_micros) == ("EUR", 8_000_000)


async def test_plan_that_the_file_drops_leaves_stored_tenants_with_what_they_had(stored_tenants: RedisTenants) -> None:
    """A change of the file is no reason to shut out a tenant of the store; it is told until it is mended."""
    tenants = tenants_on(stored_tenants)
    await tenants.put(ACME, table(plan="gold"))
    had = tenants.registry[ACME]
    tenants.fix(TenantTables(tenants=tables("fixed").tenants))
    assert tenants.registry[ACME] is had
    assert tenants.unreadable == {"acme": "plan"}
    silver = PlanSettings(user=ScopeLimitSettings(requests_per_min=3))
    tenants.fix(TenantTables(plans={"gold": silver}, tenants=tables("fixed").tenants))
    assert tenants.registry[ACME].plan.user.requests_per_min == 3
    assert tenants.unreadable == {}


async def test_look_that_finds_the_same_changes_no_object(stored_tenants: RedisTenants) -> None:
    """Tenants and plans stay the same objects over looks and re-reads of the file, and nobody is told of a change."""
    tenants, told = tenants_on(stored_tenants), []
    await tenants.put(ACME, table(plan="gold"))
    had = dict(tenants.registry)
    tenants.registry.on_change.append(lambda: told.append(1))
    await tenants.load()
    tenants.fix(tables("fixed"))
    assert all(tenants.registry[name] is tenant for name, tenant in had.items())
    assert told == []


async def test_word_of_a_change_makes_the_worker_look(stored_tenants: RedisTenants) -> None:
    """An open book looks when it is told, and takes in a burst of changes together."""
    here, there = (
        tenants_on(stored_tenants),
        Tenants(Registry(), stored_tenants, tables("fixed"), Source.FILE, hears=lambda: True),
    )
    there.open()
    async with asyncio.timeout(5):
        changed = asyncio.Event()
        there.registry.on_change.append(changed.set)
        await here.put(ACME, table())
        there.tenants_changed()
        await changed.wait()
    assert ACME in there.registry
    await there.aclose()


async def test_tenants_are_bounded(stored_tenants: RedisTenants, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every worker holds them all: beyond the bound a new one is refused, and one that is there can be changed."""
    monkeypatch.setattr(store_module, "TENANTS_MAX", 1)
    tenants = tenants_on(stored_tenants)
    await tenants.put(ACME, table())
    assert (await refused(tenants.put(TenantId("second"), table()))).code is Code.INVALID_VALUE
    assert not await tenants.put(ACME, table(anonymous=True))


async def test_no_value_of_a_bad_document_is_logged(
    stored_tenants: RedisTenants, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody may have pasted a key where it does not belong: the log names the field only."""
    caplog.set_level(logging.DEBUG)
    await stored_tenants.put(TenantId("pasted"), msgspec.json.encode(table(timezone="hgs_acme.secret")))
    await tenants_on(stored_tenants).load()
    fields = [getattr(record, "fields", {}) for record in caplog.records]
    assert {"tenant": "pasted", "field": "timezone"} in fields
    assert "hgs_acme.secret" not in repr(fields) + caplog.text
