"""Parts of a gateway as the settings want them."""

from __future__ import annotations

from functools import cache
from ipaddress import ip_network

from gateway.core.identity import WorkerId
from gateway.services.export import POST_S, Exporter
from gateway.services.key_gate import GateRules
from gateway.services.registry import Registry
from gateway.services.tickets import TicketRules
from gateway.services.tokens import SessionRules
from gateway.services.vendor_gate import VendorGate
from gateway.settings import Settings
from gateway.store.gate import RedisGate
from gateway.store.ledger_tap import RedisLedgerTap
from gateway.store.redis import Redis
from gateway.telemetry.metrics import Metrics
from gateway.transports.edge import EdgeRules
from gateway.upstream.client import HyperleapClient
from gateway.upstream.key_files import KeyFiles
from gateway.upstream.keyring import KeyRing
from gateway.upstream.observer import KeyObserver, UpstreamObserver
from gateway.upstream.pool import PoolSettings
from gateway.upstream.rules import UpstreamRules
from gateway.warehouse.target import Target


def vendor_key_ring(settings: Settings, observer: KeyObserver | None = None) -> KeyRing:
    """Build the ring of all vendor keys, of which none has been read yet."""
    return KeyRing(KeyFiles(settings.upstream), observer=observer)


def upstream_client(settings: Settings, keys: KeyRing, observer: UpstreamObserver | None) -> HyperleapClient:
    """Build the vendor's client alone; raises SettingsError, ValueError or OSError."""
    return HyperleapClient(upstream_rules(settings), keys, pool_settings(settings), observer=observer)


def vendor_gate(settings: Settings, redis: Redis, worker: WorkerId, keys: KeyRing, metrics: Metrics) -> VendorGate:
    upstream = settings.upstream
    limit_of = cache(settings.plan_limit)
    return VendorGate(
        RedisGate(redis, worker, limit_of, queue_max=upstream.queue_max),
        metrics.vendor_gate,
        GateRules(
            wait_s=upstream.queue_wait_s,
            failures_max=upstream.breaker_failures,
            rest_s=upstream.breaker_rest_s,
            rest_max_s=upstream.breaker_rest_max_s,
        ),
        keys=keys,
        limit_of=limit_of,
    )


def exporter(
    settings: Settings, redis: Redis, worker: WorkerId, registry: Registry, metrics: Metrics
) -> Exporter | None:
    """Build what exports the ledger, where it is exported; raises SettingsError."""
    ledger = settings.ledger
    if ledger.url is None and ledger.url_file is None:
        return None
    target = Target(ledger)
    target.require()  # an operator hears at once of what can never work
    from gateway.warehouse.postgres import Postgres  # its driver is an extra

    return Exporter(
        RedisLedgerTap(redis, worker, post_s=POST_S, keep_s=ledger.keep_s),
        Postgres(target),
        registry.known,
        metrics.ledger_export,
        interval_s=ledger.export_interval_s,
        batch=ledger.export_batch,
        keep_s=ledger.keep_s,
    )


def upstream_rules(settings: Settings) -> UpstreamRules:
    upstream = settings.upstream
    return UpstreamRules(
        base_url=upstream.base_url,
        auth_header=upstream.auth_header,
        stream=upstream.stream,
        ca_file=upstream.ca_file,
        queue_timeout_s=upstream.queue_timeout_s,
        first_token_timeout_s=upstream.first_token_timeout_s,
        between_tokens_timeout_s=upstream.between_tokens_timeout_s,
        turn_timeout_s=upstream.turn_timeout_s,
        call_timeout_s=upstream.call_timeout_s,
        blob_hosts=frozenset(upstream.blob_hosts),
    )


def pool_settings(settings: Settings) -> PoolSettings:
    upstream = settings.upstream
    return PoolSettings(
        connect_timeout_s=upstream.connect_timeout_s,
        max_connections=upstream.connections_max,
        max_streams=upstream.streams_per_connection_max,
        ping_interval_s=upstream.ping_interval_s,
        ping_timeout_s=upstream.ping_timeout_s,
        idle_timeout_s=upstream.idle_close_s,
    )


def session_rules(settings: Settings) -> SessionRules:
    """Return the bounds of session tokens that are set."""
    sessions = settings.sessions
    return SessionRules(
        ttl_s=int(sessions.ttl_s),
        ttl_min_s=int(sessions.ttl_min_s),
        ttl_max_s=int(sessions.ttl_max_s),
        token_max_bytes=sessions.token_max_bytes,
        visitor_ttl_s=int(sessions.visitor_ttl_s),
    )


def ticket_rules(settings: Settings) -> TicketRules:
    # A turn's log begins with the turn and is kept for a while after its ending; no ticket outlives every token.
    upstream = settings.upstream
    log_life_s = upstream.queue_wait_s + upstream.turn_timeout_s + settings.turns.log_ttl_s
    return TicketRules(stream_life_s=min(log_life_s, settings.sessions.ttl_max_s))


def edge_rules(settings: Settings) -> EdgeRules:
    return EdgeRules(
        body_max_bytes=settings.server.body_max_bytes,
        body_timeout_s=settings.server.body_timeout_s,
        keepalive_s=settings.streams.keepalive_s,
        reader_lag_s=settings.streams.reader_lag_s,
        reader_lag_bytes=settings.streams.reader_lag_bytes,
        retry_ms=settings.streams.retry_ms,
        subscriptions_max=settings.websocket.subscriptions_max,
        commands_per_s=settings.websocket.commands_per_s,
        frame_max_bytes=settings.websocket.frame_max_bytes,
        auth_timeout_s=settings.websocket.auth_timeout_s,
        trusted_proxies=tuple(ip_network(proxy) for proxy in settings.server.trusted_proxies),
    )
