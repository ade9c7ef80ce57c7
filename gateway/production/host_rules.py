"""The machine, its clock, and the upstream as it is reached from there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from gateway.production.edge_rules import is_loopback
from gateway.production.finding import Rule, Scene, Severity

FILES_BESIDE: Final = 128  # of a worker: its logs, its control line, listening sockets, secrets that are read
UPSTREAM_CLOCK_S: Final = 5.0


def files_needed(scene: Scene) -> int:
    """Return how many descriptors a worker has open when it is full."""
    settings = scene.settings
    masters = len(scene.store.servers) if scene.store is not None else 1
    store = settings.redis.connections * masters + 4  # subscribers, Sentinels
    return scene.streams + settings.upstream.connections_max + store + FILES_BESIDE


def _files(scene: Scene) -> Iterator[str]:
    needed = files_needed(scene)
    if scene.open_files < needed:
        yield f"a process may open {scene.open_files} files; {scene.streams} streams a worker take {needed}"


def _workers(scene: Scene) -> Iterator[str]:
    if scene.settings.server.workers in (None, 1):
        yield "one process serves everybody here"


def _stand_in(scene: Scene) -> Iterator[str]:
    if scene.upstream is not None and scene.upstream.stand_in:
        yield f"{scene.settings.upstream.base_url} is the simulator"


def _clear(scene: Scene) -> Iterator[str]:
    url = urlsplit(scene.settings.upstream.base_url)
    if url.scheme != "https" and not is_loopback(url.hostname or ""):
        yield f"{scene.settings.upstream.base_url} is asked in clear"


def _plan_limit(scene: Scene) -> Iterator[str]:
    settings = scene.settings
    labels = dict.fromkeys(label for tenant in scene.tenants.values() for label in tenant.vendor_keys)
    for label in labels:
        own = settings.vendor_keys.get(label)
        if settings.upstream.plan_limit is None and (own is None or own.plan_limit is None):
            yield f"vendor key {label}: what Hyperleap's plan grants it is not said"


def _clock(scene: Scene) -> Iterator[str]:
    ahead_s = scene.upstream.clock_ahead_s if scene.upstream is not None else None
    if ahead_s is not None and abs(ahead_s) > UPSTREAM_CLOCK_S:
        yield f"this machine's clock is {abs(ahead_s):.0f} s {'behind' if ahead_s > 0 else 'ahead of'} Hyperleap's"


HOST_RULES: Final = (
    Rule(
        name="few-files",
        severity=Severity.UNSAFE,
        why="A worker that may open no more files accepts nobody and cannot ask Hyperleap.",
        do="Raise it: `LimitNOFILE=` of a systemd unit, `--ulimit nofile=` of a container. `--streams` says what to"
        " count on. What is looked at is the limit of this command: run it as the service runs.",
        look=_files,
    ),
    Rule(
        name="one-worker",
        severity=Severity.ADVICE,
        why="Its crash, or its roll, is everybody's. Several pods or machines on one Redis do as well.",
        do="Set GATEWAY_WORKERS to the number of cores, unless there are several gateways.",
        look=_workers,
    ),
    Rule(
        name="simulator",
        severity=Severity.UNSAFE,
        why="It answers nothing that a user could want.",
        do="Unset HYPERLEAP_BASE_URL, or set it to Hyperleap's address.",
        look=_stand_in,
    ),
    Rule(
        name="upstream-in-clear",
        severity=Severity.UNSAFE,
        why="The vendor key goes with every request.",
        do="Set HYPERLEAP_BASE_URL=https://…",
        look=_clear,
    ),
    Rule(
        name="no-plan-limit",
        severity=Severity.ADVICE,
        why="Without it the first that is known of a limit is Hyperleap's 429, which fails the turn that met it.",
        do="Set HYPERLEAP_PLAN_LIMIT, or `vendor_keys.<label>.plan_limit`, such as `1,000/h + 50/min` or `none`.",
        look=_plan_limit,
    ),
    Rule(
        name="clock-of-hyperleap",
        severity=Severity.UNSAFE,
        why="Tokens begin and end by the clock, budgets by the calendar, and ledgers are compared by both.",
        do="Run NTP (chrony, systemd-timesyncd) here.",
        look=_clock,
    ),
)
