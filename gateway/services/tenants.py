"""Brings the tenants together, from the settings or a file and from the store, and keeps the registry as they are.

What is fixed (settings, file) is read-only here and wins over the store. What is stored is looked at when the worker
starts, when it is told of a change, whenever it begins to hear (again), and now and then; once a second while it hears
nothing. A document that cannot be read, such as one of another version's in the middle of a roll, changes nothing: what
was read of that tenant last stays in force.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from gateway.core.errors import Code, GatewayError
from gateway.core.identity import TENANT_ID, Tenant, TenantId
from gateway.core.tenancy import Source, TenantStore
from gateway.sections import SettingsError, written
from gateway.services.registry import Registry
from gateway.telemetry import audit
from gateway.telemetry.logging import event as log_event
from gateway.telemetry.logging import throttled
from gateway.telemetry.metrics import Metrics
from gateway.tenant_options import TenantSettings
from gateway.tenant_tables import TenantTables, parse_tenant

logger = logging.getLogger(__name__)

LOOK_S: Final = 30.0  # between looks at what is stored …
DEAF_LOOK_S: Final = 1.0  # … and while nothing is heard
GATHER_S: Final = 0.05  # changes that come together are taken in together
FIELD_MAX_CHARS: Final = 160  # of what a log line says
NAMED_MAX: Final = 100  # tenants that an audit line names of each kind of change
DOCUMENT_MAX_BYTES: Final = 65_536  # of one tenant in the store


class Enrolled(NamedTuple):
    """A tenant in force, where it is written and what is written there."""

    tenant: Tenant
    source: Source
    settings: TenantSettings


class _Document(NamedTuple):
    """A tenant's document as it was last read; ``settings`` are those of the last one that could be."""

    raw: bytes
    settings: TenantSettings | None
    fault: SettingsError | None


class Claimed:
    """The issuers that tenants have: two of one issuer and audience could not be told apart by a token."""

    def __init__(self) -> None:
        self._by: dict[tuple[str, str], str] = {}

    def claim(self, tenant: TenantId, settings: TenantSettings) -> None:
        """Note a tenant's issuers; raises SettingsError, and notes none, where one is another's."""
        claims: dict[tuple[str, str], str] = {}
        for name, issuer in settings.issuers.items():
            pair = (issuer.issuer, issuer.audience)
            other = self._by.get(pair) or claims.get(pair)
            if other is not None:
                raise SettingsError(f"issuers.{name}", f"has the issuer and the audience of {other}")
            claims[pair] = f"tenants.{tenant}.issuers.{name}"
        self._by.update(claims)


class Tenants:
    """The TenantHearer of a worker. ``load`` before it serves anybody, then ``open``; ``aclose`` at the end."""

    def __init__(
        self,
        registry: Registry,
        store: TenantStore,
        fixed: TenantTables,
        source: Source,
        *,
        hears: Callable[[], bool] = lambda: False,
        metrics: Metrics | None = None,
    ) -> None:
        """``fixed`` are the tenants of ``source``. ``hears``: whether word from other workers arrives here."""
        self.registry = registry
        self._store = store
        self._fixed, self._source = fixed, source
        self._hears = hears
        self._metrics = metrics
        self._documents: dict[TenantId, _Document] = {}
        self._enrolled: dict[TenantId, Enrolled] = {}
        self._enrolled_by: tuple[object, ...] = ()  # the plans and the prices that they were made with
        self._unreadable: dict[TenantId, str] = {}
        self._loading = asyncio.Lock()
        self._look = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._apply()

    def open(self) -> None:
        """Begin to look at what is stored, in a task."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def aclose(self) -> None:
        """Safe to repeat."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    @property
    def enrolled(self) -> Mapping[TenantId, Enrolled]:
        """The tenants in force, with where they come from."""
        return self._enrolled

    @property
    def stored(self) -> frozenset[TenantId]:
        """The tenants that the store keeps, those too that cannot be read or that are fixed as well."""
        return frozenset(self._documents)

    @property
    def unreadable(self) -> dict[TenantId, str]:
        """The stored tenants that cannot be read as they are now, each with the field that is wrong."""
        return self._unreadable

    @property
    def fixed(self) -> list[TenantId]:
        """The tenants of the settings or the file."""
        return [TenantId(name) for name in self._fixed.tenants]

    def fix(self, tables: TenantTables) -> None:
        """Put other fixed tenants and plans in force: the file has changed."""
        before, self._fixed = self._fixed, tables
        self._apply()
        added, removed = tables.tenants.keys() - before.tenants.keys(), before.tenants.keys() - tables.tenants.keys()
        changed = {name for name, table in tables.tenants.items() if before.tenants.get(name, table) != table}
        with audit.acting("file"):
            audit.record(
                "tenants_file.taken",
                tenants=len(tables.tenants),
                added=_named(added),
                changed=_named(changed),
                removed=_named(removed),
                plans_changed=tables.plans != before.plans,
            )

    async def load(self) -> None:
        """Take in what is stored. Raises GatewayError(store_unavailable), which changes nothing."""
        async with self._loading:  # else an answer that was on its way for longer could undo a later one
            kept = await self._store.load()
            if kept.keys() != self._documents.keys() or any(
                raw != self._documents[name].raw for name, raw in kept.items()
            ):
                # Beside the loop: many at once, as at the start, take a while.
                self._documents = await asyncio.to_thread(_read_all, kept, self._documents)
                self._apply()

    async def put(self, tenant: TenantId, raw: object) -> bool:
        """Keep a tenant, whose table is ``raw``, on every worker; False when it was there and is another now.

        Raises GatewayError: tenant_fixed; invalid_value, naming the field; store_unavailable.
        """
        if not TENANT_ID.fullmatch(tenant):
            raise GatewayError(Code.INVALID_VALUE, f"A tenant's id must match {TENANT_ID.pattern}.", field="tenant")
        self.check_free(tenant)
        try:
            settings = parse_tenant(raw)
            self._fixed.check_plan(settings)
            claimed = Claimed()
            for other, known in self._enrolled.items():
                if other != tenant:
                    with contextlib.suppress(SettingsError):  # one that keeps what it had: another's matter
                        claimed.claim(other, known.settings)
            claimed.claim(tenant, settings)
        except SettingsError as error:
            words = error.message[:1].upper() + error.message[1:]
            raise GatewayError(Code.INVALID_VALUE, f"{words}.", field=error.key or None) from None
        document = msgspec.json.encode(written(settings))
        if len(document) > DOCUMENT_MAX_BYTES:
            raise GatewayError(Code.INVALID_VALUE, f"A tenant may have {DOCUMENT_MAX_BYTES} bytes of JSON.")
        with audit.change("tenant.put", tenant=tenant) as told:
            told["added"] = added = await self._store.put(tenant, document)
        await self.load()
        return added

    async def remove(self, tenant: TenantId) -> bool:
        """Forget a stored tenant on every worker; False when there was none.

        Raises GatewayError: tenant_fixed, store_unavailable.
        """
        self.check_free(tenant)
        with audit.change("tenant.removed", tenant=tenant):
            removed = await self._store.remove(tenant)
        await self.load()
        return removed

    def check_free(self, tenant: TenantId) -> None:
        """Raise GatewayError(tenant_fixed) for a tenant that is not to be changed here."""
        if tenant in self._fixed.tenants:
            raise GatewayError(Code.TENANT_FIXED, f"The tenant is written in the {self._source}; change it there.")

    # --- TenantHearer --------------------------------------------------------------------------------------------

    def tenants_changed(self) -> None:
        self._look.set()

    def heard(self) -> None:
        self._look.set()

    # --- what is in force ----------------------------------------------------------------------------------------

    def _apply(self) -> None:
        """Put in force what is fixed and, beside it, what can be read of what is stored."""
        before, tables = self._enrolled, self._fixed
        following: dict[TenantId, Enrolled] = {}
        claimed = Claimed()
        for name in self.fixed:
            claimed.claim(name, tables.tenants[name])
            following[name] = self._enrol(name, tables.tenants[name], self._source)
        unreadable: dict[TenantId, str] = {}
        for name in sorted(self._documents):
            document = self._documents[name]
            settings, fault = document.settings, document.fault
            if name in tables.tenants:
                throttled(logger, f"shadowed:{name}", "tenant.shadowed", tenant=name, source=self._source)
                continue
            if settings is not None:
                try:
                    tables.check_plan(settings)
                    claimed.claim(name, settings)
                    following[name] = self._enrol(name, settings, Source.STORE)
                except SettingsError as error:  # what it refers to has changed; what it had stays
                    fault = error
                    if name in before and before[name].source is Source.STORE:
                        following[name] = before[name]
            if fault is not None:
                unreadable[name] = fault.key[:FIELD_MAX_CHARS]
                throttled(logger, f"unreadable:{name}", "tenant.unreadable", tenant=name, field=unreadable[name])
        self._enrolled, self._enrolled_by, self._unreadable = following, _shared(tables), unreadable
        if self._metrics is not None:
            self._metrics.know_tenants({name: sorted(known.tenant.aliases) for name, known in following.items()})
            self._metrics.limits.budgets_of(following)
            self._metrics.tenants_changed(Counter(known.source for known in following.values()), len(unreadable))
        if self.registry.replace({name: known.tenant for name, known in following.items()}):
            log_event(
                logger,
                logging.INFO,
                "tenants.changed",
                tenants=len(following),
                added=len(following.keys() - before.keys()),
                removed=len(before.keys() - following.keys()),
            )

    def _enrol(self, name: TenantId, settings: TenantSettings, source: Source) -> Enrolled:
        """Return what a tenant's settings and the plans make; what they made before, where neither is another."""
        known = self._enrolled.get(name)
        if known is not None and (known.source, known.settings, self._enrolled_by) == (
            source,
            settings,
            _shared(self._fixed),
        ):
            return known
        return Enrolled(self._fixed.tenant(name, settings), source, settings)

    async def _run(self) -> None:
        while True:
            self._look.clear()
            try:
                await self.load()
            except GatewayError as error:
                throttled(logger, "tenants.unread", error=error)
            except Exception:  # a mistake of ours must not leave the worker without news
                logger.exception("tenants.crashed")
            # Not wait_for, which until Python 3.12 may lose a cancellation that comes in the moment of the word.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S if self._hears() else DEAF_LOOK_S):
                    await self._look.wait()
                await asyncio.sleep(GATHER_S)


def _shared(tables: TenantTables) -> tuple[object, ...]:
    """Return what of the tables goes into every tenant."""
    return tables.plans, tables.prices


def _named(names: Iterable[str]) -> list[str]:
    """Return names for an audit line: in order, and not without end."""
    return sorted(names)[:NAMED_MAX]


def _read_all(kept: Mapping[TenantId, bytes], before: Mapping[TenantId, _Document]) -> dict[TenantId, _Document]:
    return {name: _read(raw, before.get(name)) for name, raw in kept.items()}


def _read(raw: bytes, before: _Document | None) -> _Document:
    """Read a document, once for as long as it is the same."""
    if before is not None and before.raw == raw:
        return before
    last = before.settings if before is not None else None
    try:
        return _Document(raw, parse_tenant(_decode(raw)), None)
    except SettingsError as error:
        return _Document(raw, last, error)


def _decode(raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise SettingsError("", "is not JSON") from None
