"""The sections of the settings tree but for tenants: every field with its unit, default, bounds and documentation."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec.structs import force_setattr

from gateway.core.vendor_keys import PlanLimit
from gateway.ledger_url import LedgerUrl
from gateway.sections import Count, Port, Seconds, Secret, Section, SettingsError, doc, normal_uuid, reason, web_url
from gateway.store_url import StoreUrl


def default_data_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Return where state lives by the XDG base directory rules; a service account without a home gets /var/lib."""
    state = environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):  # the specification says that relative paths are to be ignored
        home = environ.get("HOME", "")
        state = f"{home}/.local/state" if os.path.isabs(home) and home != "/" else "/var/lib"
    return Path(state) / "hyperleap-gateway"


class ServerSettings(Section, frozen=True, kw_only=True):
    """The public and the internal port."""

    host: Annotated[str, doc("Address of the public port; `0.0.0.0` listens on every IPv4 interface")] = "127.0.0.1"
    port: Annotated[Port, doc("Public port: chat page and API; 0 lets the system choose")] = 8080
    internal_host: Annotated[str, doc("Address of the internal port; keep it away from the internet")] = "127.0.0.1"
    internal_port: Annotated[Port, doc("Internal port: `/metrics`, `/livez`, `/readyz`, and the admin API")] = 9090
    data_dir: Annotated[Path, doc("Where the embedded Valkey and the secrets made for it live")] = msgspec.field(
        default_factory=default_data_dir
    )
    public_url: Annotated[
        str | None, doc("URL under which browsers reach the public port, if a proxy is before it")
    ] = None
    trusted_proxies: Annotated[
        tuple[str, ...], doc("Networks (`10.0.0.0/8`) whose `X-Forwarded-For` tells the client's address")
    ] = ()
    body_max_bytes: Annotated[Count, doc("Largest request body")] = 1_048_576
    body_timeout_s: Annotated[Seconds, doc("Longest time that a request's body may take to arrive")] = 30.0
    workers: Annotated[
        int | None, doc("Worker processes under a supervisor; unset: one process without one", ge=1, le=256)
    ] = None
    drain_notice_s: Annotated[
        float,
        doc("On SIGTERM, `/readyz` says no this long before listening stops, for a proxy to notice", ge=0),
    ] = 0.0
    drain_s: Annotated[float, doc("On SIGTERM, turns in flight get this long to end", ge=0)] = 10.0
    drain_spread_s: Annotated[
        float, doc("While draining, readers that another worker can serve are sent there over this span", ge=0)
    ] = 5.0
    page: Annotated[bool, doc("Serve the chat page at `/`")] = True
    tenants_file: Annotated[
        Path | None,
        doc("TOML file with `[tenants]` and `[plans]`, followed while it changes; then none are written here"),
    ] = None
    admin_token_file: Annotated[
        Path | None,
        doc("Secret that opens admin API and [console](usage-page.md) on the internal port; unset: there are none"),
    ] = None
    metrics_personas_max: Annotated[
        int,
        doc(
            "Personas that metrics name beyond those that the start finds; later ones count as `other`",
            ge=0,
            le=100_000,
        ),
    ] = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("host", "internal_host"):
            if not getattr(self, name).strip():
                raise SettingsError(name, "must name an address")
        for proxy in self.trusted_proxies:
            try:
                ip_network(proxy)
            except ValueError as error:
                raise SettingsError("trusted_proxies", f"{proxy!r} is not a network: {error}") from None
        if self.port and self.port == self.internal_port and self.host == self.internal_host:
            raise SettingsError("internal_port", "must differ from the public port")
        if self.public_url is not None:
            url = web_url("public_url", self.public_url, ("https", "http"))
            force_setattr(self, "public_url", url)


class RedisSettings(Section, frozen=True, kw_only=True):
    """Where conversations are kept. Without a URL the gateway starts a Valkey of its own."""

    url: Annotated[
        Secret | None,
        doc(
            "`redis://`, `unix://`, `redis+sentinel://host:port[,host:port…]/<service>[/<db>]` or"
            " `redis+cluster://host:port[,host:port…]`; `rediss` for TLS; unset: the embedded Valkey"
        ),
    ] = None
    url_file: Annotated[Path | None, doc("File that holds this URL, such as a mounted secret; read at the start")] = (
        None
    )
    timeout_s: Annotated[Seconds, doc("Longest time for one call, queueing and connecting included")] = 1.0
    connections: Annotated[Count, doc("Connections a worker keeps for commands, to each master of a Cluster")] = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.url is not None:
            if self.url_file is not None:
                raise SettingsError("url_file", "is given together with url; give one of them")
            _store_url("url", self.url)

    def url_in_file(self) -> Secret:
        """Read ``url_file``, which must be set. Raises SettingsError, whose words quote nothing of it."""
        assert self.url_file is not None
        try:
            url = Secret(self.url_file.read_text("utf-8").strip())
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError("redis.url_file", f"cannot read {self.url_file}: {reason(error)}") from None
        _store_url("redis.url_file", url)
        return url

    def address(self) -> str | None:
        """Return the URL without user, passwords and query, fit for printing."""
        return None if self.url is None else StoreUrl.parse(self.url.reveal()).address


class UpstreamSettings(Section, frozen=True, kw_only=True):
    """Hyperleap: the keys ([access](access.md#vendor-keys)), the address, the deadlines and the HTTP/2 connections."""

    api_key: Annotated[Secret | None, doc("The vendor key, by its label `default`")] = None
    api_key_file: Annotated[Path | None, doc("File that holds the vendor key, such as a mounted secret")] = None
    keys_dir: Annotated[
        Path | None, doc("Directory with further vendor keys, such as a mounted secret: the file `<label>` holds one")
    ] = None
    plan_limit: Annotated[
        str | None,
        doc("What the vendor's plan grants each key, such as `1,000/h + 50/min` or one of the two; unset: no limit"),
    ] = None
    base_url: Annotated[str, doc("`https://` (HTTP/2 by ALPN) or `h2c://` (by prior knowledge)")] = (
        "https://api.hyperleapai.com"
    )
    ca_file: Annotated[Path | None, doc("PEM file with a private CA, trusted on top of the system's")] = None
    persona_id: Annotated[str | None, doc("Persona of the default tenant, used when no `[tenants]` are written")] = None
    auth_header: Annotated[
        Literal["x-hl-api-key", "authorization"], doc("Header that carries the key (`authorization`: as a bearer)")
    ] = "x-hl-api-key"
    stream: Annotated[
        Literal["array", "sse"],
        doc("Form in which answers are asked for: a JSON array (`chat-http2`) or server-sent events (`chat-sse`)"),
    ] = "array"
    connect_timeout_s: Annotated[Seconds, doc("DNS, TCP, TLS and the peer's first SETTINGS together")] = 5.0
    first_token_timeout_s: Annotated[Seconds, doc("From the request sent to the answer's first item")] = 60.0
    between_tokens_timeout_s: Annotated[Seconds, doc("Longest silence inside an answer")] = 60.0
    turn_timeout_s: Annotated[Seconds, doc("Longest whole answer")] = 600.0
    queue_timeout_s: Annotated[Seconds, doc("Longest wait for a free upstream stream")] = 10.0
    queue_wait_s: Annotated[
        Seconds, doc("Longest wait for room under the plan limit; below a minute, a used-up minute refuses", le=1800)
    ] = 90.0
    queue_max: Annotated[Count, doc("Turns and calls that wait for room with one vendor key, of all workers")] = 1000
    breaker_failures: Annotated[Count, doc("Failures in a row after which Hyperleap is left in peace for a while")] = 5
    breaker_rest_s: Annotated[Seconds, doc("How long, before one turn tries it; doubled each time that fails")] = 5.0
    breaker_rest_max_s: Annotated[Seconds, doc("How long at most")] = 60.0
    call_timeout_s: Annotated[Seconds, doc("Longest call that is not a chat (create, read, score)")] = 30.0
    connections_max: Annotated[Count, doc("Upstream connections a worker opens at most")] = 64
    streams_per_connection_max: Annotated[Count, doc("Streams on one connection, or fewer if the peer says so")] = 100
    ping_interval_s: Annotated[Seconds, doc("Silence after which a connection is pinged")] = 20.0
    ping_timeout_s: Annotated[Seconds, doc("A connection whose ping goes unanswered this long is given up")] = 10.0
    idle_close_s: Annotated[Seconds, doc("A connection without streams is closed after this")] = 300.0
    after_disconnect: Annotated[
        Literal["auto", "finishes", "drops"],
        doc("What Hyperleap does with an answer whose connection was lost; `auto`: found out"),
    ] = "auto"
    blob_hosts: Annotated[tuple[str, ...], doc("Hosts from which long transcripts may be fetched")] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        force_setattr(self, "base_url", web_url("base_url", self.base_url, ("https", "h2c")))
        if self.api_key is not None and self.api_key_file is not None:
            raise SettingsError("api_key_file", "is given together with api_key; give one of them")
        plan_limit(self.plan_limit)
        if self.breaker_rest_max_s < self.breaker_rest_s:
            raise SettingsError("breaker_rest_max_s", "must not be below breaker_rest_s")
        if self.persona_id is not None:
            force_setattr(self, "persona_id", normal_uuid("persona_id", self.persona_id))
        for host in self.blob_hosts:
            if not re.fullmatch(r"[A-Za-z0-9.-]+(:\d+)?", host):
                raise SettingsError("blob_hosts", f"{host!r} is not a host name")
        force_setattr(self, "blob_hosts", tuple(host.lower() for host in self.blob_hosts))


class VendorKeySettings(Section, frozen=True, kw_only=True):
    """What is particular to the vendor key of this label."""

    plan_limit: Annotated[str | None, doc("Its plan limit instead of `upstream.plan_limit`; `none`: it has none")] = (
        None
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        plan_limit(self.plan_limit)


class TurnSettings(Section, frozen=True, kw_only=True):
    """Turns, their event logs and what is remembered of them."""

    answer_max_chars: Annotated[Count, doc("Code points of an answer, after which the turn fails")] = 1_000_000
    message_max_chars: Annotated[Count, doc("Code points of a user's message")] = 32_000
    log_ttl_s: Annotated[Seconds, doc("A turn's event log is kept this long after its ending")] = 3600.0
    idempotency_ttl_s: Annotated[Seconds, doc("An idempotency key is remembered this long")] = 86_400.0
    conversation_ttl_s: Annotated[Seconds, doc("A cached conversation is kept this long after its last use")] = (
        604_800.0
    )
    chat_ttl_s: Annotated[
        Seconds, doc("Where a chat that a client named is held is remembered this long after its last use")
    ] = 7_776_000.0
    append_interval_s: Annotated[
        Seconds, doc("A live turn's log is written this often; 0.1 to 0.25 is sensible", le=5)
    ] = 0.25
    lease_s: Annotated[Seconds, doc("A worker owns a turn this long after its last heartbeat")] = 5.0
    heartbeat_s: Annotated[Seconds, doc("Interval of the heartbeat; at most half of the lease")] = 1.5
    recovery_timeout_s: Annotated[
        Seconds, doc("A lost worker's answer is looked for at Hyperleap this long, then its turn fails")
    ] = 60.0
    recovery_reads_max: Annotated[Count, doc("Reads of the conversation in that time, for each lost turn")] = 6
    probe_s: Annotated[Seconds, doc("A worker checks this often that what others tell it arrives")] = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heartbeat_s * 2 > self.lease_s:
            raise SettingsError("heartbeat_s", f"must be at most half of lease_s ({self.lease_s:g})")


class LedgerSettings(Section, frozen=True, kw_only=True):
    """What turns cost."""

    keep_s: Annotated[
        Seconds, doc("A turn's settlement is kept this long in the store, and can be reported; 40 days unless set")
    ] = 3_456_000.0
    look_up_s: Annotated[
        tuple[float, ...],
        doc("Tokens that a stream did not tell are looked up at Hyperleap after these waits, then estimated for good"),
    ] = (2.0, 15.0, 60.0)
    url: Annotated[
        Secret | None,
        doc(
            "PostgreSQL to which settlements are [exported](postgres.md):"
            " `postgresql://user:password@host[:port][,host:port…]/database`; unset: no export"
        ),
    ] = None
    url_file: Annotated[
        Path | None, doc("File that holds this URL, such as a mounted secret; read anew for every connection")
    ] = None
    schema: Annotated[str, doc("Schema of that database that the gateway makes its tables in")] = "hyperleap"
    export_interval_s: Annotated[Seconds, doc("Settlements are exported this often", le=10)] = 2.0
    export_batch: Annotated[int, doc("Settlements that are exported in one transaction", ge=1, le=10_000)] = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.url is not None:
            if self.url_file is not None:
                raise SettingsError("url_file", "is given together with url; give one of them")
            try:
                LedgerUrl.parse(self.url.reveal())
            except ValueError as error:
                raise SettingsError("url", str(error)) from None
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", self.schema) or self.schema.startswith("pg_"):
            raise SettingsError("schema", "must be a plain name in lower case that does not begin with pg_")
        if not self.look_up_s or not all(0 < wait_s < math.inf for wait_s in self.look_up_s):
            raise SettingsError("look_up_s", "must be one or more waits, each above 0")

    def address(self) -> str | None:
        """Return the URL without user, password and query, fit for printing."""
        return None if self.url is None else LedgerUrl.parse(self.url.reveal()).address


class StreamSettings(Section, frozen=True, kw_only=True):
    """Readers over SSE and WebSocket."""

    keepalive_s: Annotated[Seconds, doc("A comment or ping goes out after this much silence")] = 15.0
    reader_lag_s: Annotated[Seconds, doc("A reader whose socket takes nothing for this long is let go")] = 30.0
    reader_lag_bytes: Annotated[Count, doc("A reader with this much unsent is let go")] = 1_048_576
    retry_ms: Annotated[int, doc("Milliseconds an SSE client waits before it reconnects", ge=0)] = 2000


class WebSocketSettings(Section, frozen=True, kw_only=True):
    """Limits of one WebSocket."""

    subscriptions_max: Annotated[Count, doc("Subscriptions on one socket")] = 64
    commands_per_s: Annotated[float, doc("Commands a second on one socket", gt=0)] = 20.0
    frame_max_bytes: Annotated[Count, doc("Largest frame from a client; a longest message must fit")] = 262_144
    auth_timeout_s: Annotated[Seconds, doc("An unauthenticated socket is closed after this")] = 10.0


class SessionSettings(Section, frozen=True, kw_only=True):
    """Session tokens, visitors and the secrets behind them."""

    ttl_s: Annotated[Seconds, doc("Life of a session token when the request names none")] = 900.0
    ttl_min_s: Annotated[Seconds, doc("Shortest life that a request may name")] = 30.0
    ttl_max_s: Annotated[Seconds, doc("Longest life that a request may name")] = 86_400.0
    token_max_bytes: Annotated[int, doc("Largest session token", ge=256)] = 4096
    visitor_ttl_s: Annotated[Seconds, doc("Life of an anonymous visitor's id")] = 31_536_000.0
    pepper_file: Annotated[
        Path | None, doc("Secret behind the hashes of keys and users; needed with a Redis of your own")
    ] = None
    signing_key_file: Annotated[Path | None, doc("Secret that signs tokens; needed with a Redis of your own")] = None
    previous_signing_key_file: Annotated[Path | None, doc("The signing key before a rotation, still accepted")] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ttl_min_s <= self.ttl_s <= self.ttl_max_s:
            raise SettingsError(
                "ttl_s", f"must lie between ttl_min_s ({self.ttl_min_s:g}) and ttl_max_s ({self.ttl_max_s:g})"
            )


class LoggingSettings(Section, frozen=True, kw_only=True):
    """What is logged, and how it looks."""

    level: Annotated[Literal["debug", "info", "warning", "error"], doc("Least severe level that is logged")] = "info"
    format: Annotated[Literal["json", "console", "auto"], doc("`auto`: console on a terminal, else JSON")] = "auto"
    starts: Annotated[bool, doc("Log the beginning of requests, sockets and turns too, not only their end")] = True
    audit_file: Annotated[
        Path | None, doc("File that the audit stream is appended to, as JSON; unset: it is among the other lines")
    ] = None


class TracingSettings(Section, frozen=True, kw_only=True):
    """Traces ([tracing](tracing.md)); OpenTelemetry's own variables say where they go and which are sampled."""

    export: Annotated[
        Literal["auto", "otlp", "off"],
        doc("`auto`: exported where `OTEL_EXPORTER_OTLP_ENDPOINT` is set; `otlp`: always, or the start fails"),
    ] = "auto"
    flush_s: Annotated[Seconds, doc("When the gateway ends, spans that wait to be sent get this long at most")] = 2.0


def _store_url(field: str, url: Secret) -> None:
    try:
        StoreUrl.parse(url.reveal())
    except ValueError as error:
        raise SettingsError(field, str(error)) from None


def plan_limit(text: str | None) -> PlanLimit:
    """Return the plan limit that is written; raises SettingsError."""
    try:
        return PlanLimit.parse(text) if text is not None else PlanLimit()
    except ValueError as error:
        raise SettingsError("plan_limit", str(error)) from None
