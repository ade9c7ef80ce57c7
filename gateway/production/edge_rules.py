"""The public port, the internal port, and who may come in from where."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import Final
from urllib.parse import urlsplit

from gateway.production.finding import Rule, Scene, Severity


def is_loopback(host: str) -> bool:
    """Tell whether a name or an address is this machine's own."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _tls(scene: Scene) -> Iterator[str]:
    server = scene.settings.server
    if server.public_url is None:
        if not is_loopback(server.host):
            yield f"the public port listens on {server.host}:{server.port} in clear, and no https:// address is named"
    elif urlsplit(server.public_url).scheme != "https":
        yield f"browsers reach the public port at {server.public_url}"


def _public_url(scene: Scene) -> Iterator[str]:
    server = scene.settings.server
    if server.public_url is None and is_loopback(server.host):
        yield f"the public port is at {server.host}:{server.port}; where browsers reach it is not said"


def _proxies(scene: Scene) -> Iterator[str]:
    if not scene.settings.server.trusted_proxies:
        yield "no proxy is trusted, so that all visitors behind one have its address, and its limits together"


def _anybody(scene: Scene) -> Iterator[str]:
    for proxy in scene.settings.server.trusted_proxies:
        if ip_network(proxy).prefixlen == 0:
            yield f"{proxy} is trusted: anybody"


def _origins(scene: Scene) -> Iterator[tuple[str, str, str]]:
    for tenant in scene.tenants.values():
        for origin in sorted(tenant.origins):
            parts = urlsplit(origin)
            yield tenant.id, origin, "local" if is_loopback(parts.hostname or "") else parts.scheme


def _clear_origins(scene: Scene) -> Iterator[str]:
    return (f"tenant {tenant}: {origin}" for tenant, origin, kind in _origins(scene) if kind == "http")


def _local_origins(scene: Scene) -> Iterator[str]:
    return (f"tenant {tenant}: {origin}" for tenant, origin, kind in _origins(scene) if kind == "local")


def _internal(scene: Scene) -> Iterator[str]:
    server = scene.settings.server
    if not is_loopback(server.internal_host):
        what = "metrics and the admin API" if server.admin_token_file is not None else "metrics"
        yield f"{what} listen on {server.internal_host}:{server.internal_port}"


EDGE_RULES: Final = (
    Rule(
        name="no-tls",
        severity=Severity.UNSAFE,
        why="Tokens, messages and answers could be read on their way. The gateway speaks no TLS: a proxy must.",
        do="Put a proxy with TLS in front and name the address that it serves: GATEWAY_PUBLIC_URL=https://…",
        look=_tls,
    ),
    Rule(
        name="no-public-url",
        severity=Severity.MISSING,
        why="The gateway's own pages are let in from the address that it knows; whether it has TLS cannot be told.",
        do="Set GATEWAY_PUBLIC_URL=https://… to the address in browsers.",
        look=_public_url,
    ),
    Rule(
        name="proxies-unknown",
        severity=Severity.MISSING,
        why="Limits by network would count every visitor behind the proxy as one.",
        do="Set GATEWAY_TRUSTED_PROXIES to the networks that the proxy's connections come from.",
        look=_proxies,
    ),
    Rule(
        name="proxies-anybody",
        severity=Severity.UNSAFE,
        why="Whoever sends `X-Forwarded-For` is whoever he likes to the limits by network.",
        do="Narrow GATEWAY_TRUSTED_PROXIES to the networks of the proxies.",
        look=_anybody,
    ),
    Rule(
        name="origin-in-clear",
        severity=Severity.UNSAFE,
        why="A page that was changed on its way speaks for its users.",
        do="List only https:// pages in `origins` (GATEWAY_ORIGINS).",
        look=_clear_origins,
    ),
    Rule(
        name="origin-of-a-desk",
        severity=Severity.ADVICE,
        why="Any page that a visitor's own machine serves may open sessions. Have a gateway apart for development.",
        do="Take it out of `origins` (GATEWAY_ORIGINS).",
        look=_local_origins,
    ),
    Rule(
        name="internal-reachable",
        severity=Severity.ADVICE,
        why="The internal port is for a scraper, probes and operators. In a container it has to listen for them.",
        do="Let a firewall or a NetworkPolicy allow only those, or set GATEWAY_INTERNAL_HOST=127.0.0.1.",
        look=_internal,
    ),
)
