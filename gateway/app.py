"""Wires one worker together: settings in, two aiohttp applications out. No decisions are made here."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Final

from aiohttp import web

from gateway.core.errors import GatewayError
from gateway.core.identity import WorkerId
from gateway.parts import (
    edge_rules,
    exporter,
    session_rules,
    ticket_rules,
    upstream_client,
    vendor_gate,
    vendor_key_ring,
)
from gateway.secret_files import SecretKeys
from gateway.secret_files import read as read_secret
from gateway.services.accounting import Accounting
from gateway.services.admission import Admission
from gateway.services.answers import Answers
from gateway.services.auth import Auth
from gateway.services.budgets import Budgets
from gateway.services.changes import Changes
from gateway.services.chats import Chats
from gateway.services.conversations import Conversations
from gateway.services.creations import Creations
from gateway.services.desk import Desk
from gateway.services.export import Exporter
from gateway.services.feedback import FeedbackService
from gateway.services.following import Following
from gateway.services.holdings import Holdings
from gateway.services.issuers import Issuers
from gateway.services.journal import Journal
from gateway.services.key_holders import KeyHolders
from gateway.services.key_sets import KeySets
from gateway.services.keys import ApiKeys
from gateway.services.live_turns import LiveTurns
from gateway.services.moderations import Moderations
from gateway.services.owned_turn import TurnPorts, TurnRules
from gateway.services.peers import Peers
from gateway.services.prompt_runs import PromptRuns
from gateway.services.recovery import Recovery
from gateway.services.registry import Registry
from gateway.services.reports import Reports
from gateway.services.rescue import RescueRules
from gateway.services.revocations import Revocations
from gateway.services.roster import Roster
from gateway.services.screening import Screening
from gateway.services.sessions import Sessions
from gateway.services.showing import Showing
from gateway.services.subscriptions import Subscriptions
from gateway.services.sweeper import Sweeper
from gateway.services.tenants import Tenants
from gateway.services.tenants_file import TenantsFile
from gateway.services.threads import Threads
from gateway.services.tickets import Tickets
from gateway.services.tokens import SessionTokens, Signer
from gateway.services.turns import Turns
from gateway.services.usage import UsageService
from gateway.services.vendor import Vendor
from gateway.services.vendor_copy import AfterLoss, VendorCopies
from gateway.services.vendor_gate import VendorGate
from gateway.services.watches import Watches
from gateway.settings import Settings
from gateway.store.chats import RedisChats
from gateway.store.conversations import RedisConversations
from gateway.store.creations import RedisCreationKeys
from gateway.store.event_log import RedisEventLog
from gateway.store.habits import RedisHabits
from gateway.store.inbox import Inbox
from gateway.store.ledger import RedisLedger
from gateway.store.limiter import RedisLimiter
from gateway.store.live_turns import RedisLiveTurns
from gateway.store.prompt_runs import RedisPromptRuns
from gateway.store.redis import Redis
from gateway.store.revocations import RedisRevocations
from gateway.store.tenants import RedisKeys, RedisTenants
from gateway.store.threads import RedisThreads
from gateway.store.uses import RedisUses
from gateway.telemetry import audit
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tracing import Tracing, open_tracing
from gateway.transports import (
    admin,
    admin_turns,
    admin_usage,
    ag_ui,
    ai_sdk,
    console,
    conversations,
    docs,
    middleware,
    ops,
    page,
    tickets,
    turns,
    usage,
    websocket,
)
from gateway.transports.edge import EDGE, Edge
from gateway.transports.hyperleap import chats as hyperleap_chats
from gateway.transports.hyperleap import conversations as hyperleap_conversations
from gateway.transports.hyperleap import door as hyperleap_door
from gateway.transports.hyperleap import judgements as hyperleap_judgements
from gateway.transports.hyperleap.door import Services as HyperleapServices
from gateway.transports.openai import chat, models, responses
from gateway.transports.openai import door as openai_door
from gateway.transports.openapi.doors import described
from gateway.upstream.client import HyperleapClient
from gateway.upstream.key_sets import HttpKeySets
from gateway.upstream.keyring import KeyRing
from gateway.upstream.operations import HyperleapOperations

REVOCATION_EXTRA_S: Final = 60.0  # beyond the longest token: the leeway between clocks


@dataclass(slots=True, kw_only=True)
class Gateway:
    """One worker's parts, from the store up to the doors.

    ``load`` and ``open`` before it serves anybody, ``aclose`` after the turns have been drained.
    """

    settings: Settings
    redis: Redis
    key_ring: KeyRing
    tenants: Tenants
    tenants_file: TenantsFile | None
    upstream: HyperleapClient
    gate: VendorGate
    auth: Auth
    key_sets: KeySets
    key_set_source: HttpKeySets
    conversations: Conversations
    creations: Creations
    moderations: Moderations
    turns: Turns
    following: Following
    watches: Watches
    holdings: Holdings
    live_turns: LiveTurns
    showing: Showing
    recovery: Recovery
    sweeper: Sweeper
    exporter: Exporter | None
    inbox: Inbox
    revocations: Revocations
    hearer: Peers
    metrics: Metrics
    tracing: Tracing
    edge: Edge
    public: web.Application
    internal: web.Application
    worker_id: WorkerId  # no other process has or had it
    draining: bool = field(default=False)

    def open(self) -> None:
        """Begin to hear other workers, and to do what nobody asks for (lost turns, unsettled tokens)."""
        self.inbox.open(self.hearer, self.revocations, self.gate, self.tenants, self.live_turns)
        self.tenants.open()
        if self.tenants_file is not None:
            self.tenants_file.open()
        self.revocations.open()
        self.sweeper.open()
        if self.exporter is not None:
            self.exporter.open()

    async def readiness(self) -> tuple[bool, dict[str, str]]:
        """What ``/readyz`` tells: ready when the worker and the store are ``ok``, else why work should go elsewhere.

        A worker that is ``deaf`` to the others (``peers``) still serves everything, with more delay for readers of
        turns that run elsewhere: that is shown, and is no reason to send anybody away.
        """
        checks = {"worker": "draining" if self.draining else "ok", "store": "ok"}
        try:
            await self.redis.call("PING")
        except GatewayError as error:
            checks["store"] = error.code
        ready = all(state == "ok" for state in checks.values())
        checks["peers"] = "ok" if self.inbox.hears else "deaf"
        return ready, checks

    async def load(self) -> None:
        """Learn what is kept of tenants and of revocations; raises GatewayError(store_unavailable)."""
        await self.tenants.load()
        await self.revocations.load()

    async def aclose(self) -> None:
        if self.exporter is not None:
            await self.exporter.aclose()
        if self.tenants_file is not None:
            await self.tenants_file.aclose()
        await self.tenants.aclose()
        await self.creations.aclose()
        await self.moderations.aclose()
        await self.gate.aclose()
        await self.holdings.aclose()
        await self.sweeper.aclose()
        await self.revocations.aclose()
        await self.inbox.aclose()
        await self.following.aclose()
        await self.watches.aclose()
        await self.showing.aclose()
        await self.live_turns.aclose()
        await self.key_sets.aclose()
        await self.key_set_source.aclose()
        await self.upstream.aclose()
        await self.redis.aclose()
        await self.tracing.aclose()
        audit.flush()


def build(settings: Settings, *, redis_url: str, secrets: SecretKeys, worker_id: str | None = None) -> Gateway:
    """Build a worker. Opens no connection; raises SettingsError, ValueError or OSError for what cannot work."""
    fixed = settings.tenant_tables()
    metrics = Metrics(
        {name: [*tenant.personas, *tenant.models, *tenant.prompts] for name, tenant in fixed.tenants.items()},
        personas_max=settings.server.metrics_personas_max,
    )
    redis = Redis(
        redis_url,
        timeout_s=settings.redis.timeout_s,
        connections=settings.redis.connections,
        observer=metrics.redis_called,
        on_break=metrics.store.breaker_opened,
    )
    ring = vendor_key_ring(settings, metrics.vendor_keys)
    upstream = upstream_client(settings, ring, metrics.upstream)
    worker = WorkerId(worker_id or uuid.uuid4().hex)
    tracing = open_tracing(settings.tracing, instance=worker)
    gate = vendor_gate(settings, redis, worker, ring, metrics)
    vendor = Vendor(upstream, ring, gate)
    rules = settings.turns
    log = RedisEventLog(
        redis,
        worker,
        lease_s=rules.lease_s,
        turn_timeout_s=settings.upstream.queue_wait_s + settings.upstream.turn_timeout_s,
        log_ttl_s=rules.log_ttl_s,
        idempotency_ttl_s=rules.idempotency_ttl_s,
        conversation_ttl_s=rules.conversation_ttl_s,
        ledger_ttl_s=settings.ledger.keep_s,
        settle_after_s=settings.ledger.look_up_s[0],
    )
    store = RedisConversations(redis, ttl_s=rules.conversation_ttl_s)
    limiter = RedisLimiter(redis)
    admission, holdings = Admission(limiter, secrets.pepper, metrics), Holdings(limiter)
    inbox = Inbox(redis, worker, probe_s=rules.probe_s, metrics=metrics.store)
    registry, path = Registry(), settings.server.tenants_file
    tenants = Tenants(
        registry, RedisTenants(redis), fixed, settings.tenant_source, hears=lambda: inbox.hears, metrics=metrics
    )
    ring.require(registry)
    revocations = Revocations(
        RedisRevocations(redis, life_s=settings.sessions.ttl_max_s + REVOCATION_EXTRA_S), hears=lambda: inbox.hears
    )
    uses = RedisUses(redis)
    key_set_source = HttpKeySets()
    key_sets = KeySets(key_set_source)
    signer = Signer(secrets.signing_key, secrets.previous_signing_key)
    auth = Auth(
        registry,
        ApiKeys(RedisKeys(redis), pepper=secrets.pepper),
        SessionTokens(signer, uses, session_rules(settings)),
        Tickets(signer, uses, ticket_rules(settings)),
        Issuers(
            registry,
            key_sets,
            life_max_s=settings.sessions.ttl_max_s,
            token_max_bytes=settings.sessions.token_max_bytes,
        ),
        revocations,
        pepper=secrets.pepper,
    )
    creations = Creations(
        store,
        RedisCreationKeys(redis, ttl_s=rules.idempotency_ttl_s),
        call_timeout_s=settings.upstream.call_timeout_s,
    )
    owned = Conversations(store, vendor, admission, creations)
    roster, showing, watches = Roster(redis.healthy_s), Showing(log), Watches(log)
    ports = TurnPorts(
        vendor=vendor,
        log=log,
        journal=Journal(
            log,
            interval_s=rules.append_interval_s,
            heartbeat_s=rules.heartbeat_s,
            on_saved=metrics.store.saved,
        ),
        showing=showing,
        metrics=metrics,
        rules=TurnRules(answer_max_chars=rules.answer_max_chars, message_max_chars=rules.message_max_chars),
        tracing=tracing,
    )
    copies = VendorCopies(vendor)
    after_loss = AfterLoss(settings.upstream.after_disconnect, RedisHabits(redis))
    recovery = Recovery(
        ports,
        roster,
        store,
        copies,
        after_loss,
        tenants=registry.known,
        rules=RescueRules(timeout_s=rules.recovery_timeout_s, reads_max=rules.recovery_reads_max),
    )
    ledger = RedisLedger(redis, ttl_s=settings.ledger.keep_s, retries_s=settings.ledger.look_up_s[1:])
    accounting = Accounting(ledger, log, store, copies, after_loss, metrics)
    following = Following(log, recovery, hears=lambda: inbox.hears, lost_after_s=2 * rules.lease_s)
    roster.on_add = following.moved
    metrics.store.read_from(breakers_open=redis.breakers_open, log_lag_s=roster.log_lag_s, leases_held=roster.__len__)
    metrics.upstream.read_from(queued=lambda: upstream.facts.queued)
    operations, runs = HyperleapOperations(upstream), RedisPromptRuns(redis, ttl_s=rules.conversation_ttl_s)
    moderations = Moderations(
        *(vendor, operations, admission, holdings, ledger, metrics), text_max_chars=rules.message_max_chars
    )
    turns_service = Turns(
        *(ports, roster),
        admission=admission,
        conversations=owned,
        recovery=recovery,
        watches=watches,
        holdings=holdings,
        screening=Screening(moderations, metrics),
    )
    live_turns = LiveTurns(RedisLiveTurns(redis, worker), roster, worker, registry.known)
    sessions = Sessions(auth)
    thread_store = RedisThreads(redis, ttl_s=rules.conversation_ttl_s, key_ttl_s=rules.idempotency_ttl_s)
    changes = Changes(owned, store, vendor, operations, admission)
    chat_store = RedisChats(redis, ttl_s=rules.chat_ttl_s)
    subscriptions = Subscriptions(
        roster=roster,
        log=log,
        following=following,
        conversations=owned,
        settling=lambda: redis.healthy_s() < rules.lease_s,
    )
    edge = Edge(
        auth=auth,
        sessions=sessions,
        conversations=owned,
        changes=changes,
        feedback=FeedbackService(owned, store, vendor, admission, metrics),
        turns=turns_service,
        subscriptions=subscriptions,
        threads=Threads(thread_store, owned, turns_service, log, pepper=secrets.pepper),
        answers=Answers(log, owned, thread_store),
        chats=Chats(chat_store, owned, turns_service, subscriptions, log, pepper=secrets.pepper),
        watches=watches,
        usage=UsageService(ledger, registry, keep_s=settings.ledger.keep_s),
        metrics=metrics,
        rules=edge_rules(settings),
        tracing=tracing,
    )
    hyperleap_services = HyperleapServices(
        holders=KeyHolders(sessions, store, runs, vendor, admission, pepper=secrets.pepper),
        changes=changes,
        moderations=moderations,
        prompt_runs=PromptRuns(turns_service, runs, vendor, operations, admission),
        reports=Reports(vendor, operations, store, runs, admission),
    )
    turns_service.revoked = auth.covers
    for on_change in (revocations.on_change, registry.on_change):
        on_change += [edge.end_lost, turns_service.stop_revoked]
    hearer = Peers(roster, following, watches)
    redis.on_return = hearer.heard_again
    gateway = Gateway(
        settings=settings,
        redis=redis,
        key_ring=ring,
        tenants=tenants,
        tenants_file=TenantsFile(path, tenants.fix, metrics) if path is not None else None,
        upstream=upstream,
        gate=gate,
        auth=auth,
        key_sets=key_sets,
        key_set_source=key_set_source,
        conversations=owned,
        creations=creations,
        moderations=moderations,
        turns=turns_service,
        following=following,
        watches=watches,
        holdings=holdings,
        live_turns=live_turns,
        showing=showing,
        recovery=recovery,
        sweeper=Sweeper(
            registry.known,
            (recovery.sweep, accounting.sweep, admission.sweep, Budgets(limiter, metrics.limits).sweep, gate.sweep),
            interval_s=rules.lease_s / 2,
        ),
        exporter=exporter(settings, redis, worker, registry, metrics),
        inbox=inbox,
        revocations=revocations,
        hearer=hearer,
        metrics=metrics,
        tracing=tracing,
        edge=edge,
        public=public_app(edge, hyperleap_services, with_page=settings.server.page),
        internal=web.Application(),
        worker_id=worker,
    )
    gateway.internal[ops.METRICS] = metrics
    gateway.internal[ops.READINESS] = gateway
    gateway.internal.add_routes(ops.routes)
    token = settings.server.admin_token_file
    desk = Desk(auth=auth, sessions=sessions, enrolment=tenants, usage=edge.usage)
    admin_token = read_secret(token, "GATEWAY_ADMIN_TOKEN_FILE") if token is not None else None
    for prefix, rooms in (
        (admin.PREFIX, (admin.routes, admin_turns.routes, admin_usage.routes)),
        (admin_usage.PREFIX, (admin_usage.short_routes,)),
    ):
        admin_app = admin.app(edge, desk, admin_token, rooms=rooms, prefix=prefix)
        admin_app[admin_turns.LIVE_TURNS] = live_turns
        gateway.internal.add_subapp(prefix, admin_app)
    if token is not None:
        gateway.internal.add_routes(console.routes)
    return gateway


def public_app(edge: Edge, hyperleap_services: HyperleapServices, *, with_page: bool) -> web.Application:
    """Build the public application: every door, with the same middleware around all."""
    app = web.Application(
        middlewares=[middleware.observe, middleware.refuse], client_max_size=edge.rules.body_max_bytes
    )
    app[EDGE] = edge
    app.on_response_prepare.append(middleware.prepare)
    app[hyperleap_door.SERVICES] = hyperleap_services
    app[middleware.REFUSALS] = (
        (openai_door.PATHS, openai_door.refusal),
        (hyperleap_door.PATHS, hyperleap_door.refusal),
        (ai_sdk.PATHS, ai_sdk.refusal),
        (ag_ui.PATHS, ag_ui.refusal),
    )
    for door in (conversations, turns, tickets, usage, websocket, chat, responses, models, ai_sdk, ag_ui, docs):
        app.add_routes(door.routes)
    if with_page:
        app.add_routes(page.routes)
    for room in (hyperleap_chats, hyperleap_conversations, hyperleap_judgements):
        app.add_routes(room.routes())
    app[docs.REFERENCE] = docs.Reference(described(with_page=with_page))
    edge.metrics.know_routes(resource.canonical for resource in app.router.resources())
    return app
