"""Redis: whether it keeps what it is given, survives the loss of a server, and is open to nobody else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from gateway.production.edge_rules import is_loopback
from gateway.production.finding import Rule, Scene, Severity
from gateway.store.examination import ServerState
from gateway.store_url import StoreUrl

CLOCK_S: Final = 1.0
SENTINELS_MIN: Final = 3
CLIENTS_BESIDE: Final = 64  # scrapers, replicas, operators


def _each(words: Callable[[ServerState], str | None]) -> Callable[[Scene], Iterator[str]]:
    """Look at every master; say which."""

    def look(scene: Scene) -> Iterator[str]:
        for server in scene.store.servers if scene.store is not None else ():
            if (found := words(server)) is not None:
                yield f"{server.address}: {found}"

    return look


def _url(scene: Scene) -> StoreUrl | None:
    """Return a URL that leads to other machines."""
    url = scene.settings.redis.url
    where = StoreUrl.parse(url.reveal()) if url is not None else None
    return where if where is not None and not all(is_loopback(address.host) for address in where.hosts) else None


def _embedded(scene: Scene) -> Iterator[str]:
    if scene.settings.redis.url is None:
        yield f"an embedded Valkey on this machine, in {scene.settings.server.data_dir}"


def _open(scene: Scene) -> Iterator[str]:
    where = _url(scene)
    if where is not None and where.password is None:
        yield f"{where.address} is asked without a password"


def _clear(scene: Scene) -> Iterator[str]:
    where = _url(scene)
    if where is not None and not where.tls:
        yield f"{where.address} is asked in clear"


def _evicts(server: ServerState) -> str | None:
    policy = server.info.get("maxmemory_policy", "noeviction")
    return f"maxmemory-policy is {policy}" if policy != "noeviction" else None


def _unbounded(server: ServerState) -> str | None:
    return "maxmemory is 0" if server.info.get("maxmemory", "0") == "0" else None


def _forgets(server: ServerState) -> str | None:
    if server.info.get("aof_enabled") != "0" or server.config is None or server.config.get("save"):
        return None
    return 'appendonly is no and save is ""'


def _snapshots(server: ServerState) -> str | None:
    if server.info.get("aof_enabled") == "0" and (server.config is None or server.config.get("save")):
        return "appendonly is no"
    if server.info.get("aof_enabled") == "1" and (server.config or {}).get("appendfsync") == "no":
        return "appendfsync is no"
    return None


def _fails(server: ServerState) -> str | None:
    failed = [
        name
        for name in ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status")
        if server.info.get(name, "ok") != "ok"
    ]
    return f"{' and '.join(failed)}: err" if failed else None


def _lonely(server: ServerState) -> str | None:
    return "no replica follows it" if server.info.get("connected_slaves", "0") == "0" else None


def _split(scene: Scene) -> Iterator[str]:
    if scene.store is None or scene.store.topology == "single":
        return
    for server in scene.store.servers:
        followed = server.info.get("connected_slaves", "0") != "0"
        if followed and (server.config or {}).get("min-replicas-to-write") == "0":
            yield f"{server.address}: min-replicas-to-write is 0"


def _sentinels(scene: Scene) -> Iterator[str]:
    if scene.store is not None and scene.store.topology == "sentinel" and scene.store.sentinels < SENTINELS_MIN:
        yield f"there are {scene.store.sentinels}"


def _one_host(scene: Scene) -> Iterator[str]:
    url = scene.settings.redis.url
    where = StoreUrl.parse(url.reveal()) if url is not None else None
    if where is not None and where.topology != "single" and len(where.hosts) == 1:
        yield f"{where.address} names one host"


def _coverage(server: ServerState) -> str | None:
    covers = (server.config or {}).get("cluster-require-full-coverage") == "yes"
    return "cluster-require-full-coverage is yes" if covers and server.info.get("cluster_enabled") == "1" else None


def _broken(scene: Scene) -> Iterator[str]:
    if scene.store is not None and scene.store.cluster is not None:
        state = scene.store.cluster.get("cluster_state", "?")
        if state != "ok":
            yield f"cluster_state is {state}"
        for address in scene.store.unreachable:
            yield f"the master {address} does not answer"


def _hidden(server: ServerState) -> str | None:
    return "CONFIG is not allowed" if server.config is None else None


def _clock(server: ServerState) -> str | None:
    ahead_s = server.clock_ahead_s
    if abs(ahead_s) <= CLOCK_S:
        return None
    return f"this machine's clock is {abs(ahead_s):.1f} s {'behind' if ahead_s > 0 else 'ahead of'} it"


def _clients(scene: Scene) -> Iterator[str]:
    settings = scene.settings
    each = (settings.redis.connections + 2) * (settings.server.workers or 1)
    for server in scene.store.servers if scene.store is not None else ():
        most = int((server.config or {}).get("maxclients", "0"))
        if most and most < 2 * each + CLIENTS_BESIDE:  # twice, since a roll starts the new before the old has gone
            yield f"{server.address}: maxclients is {most}, and this gateway alone may take {2 * each} in a roll"


STORE_RULES: Final = (
    Rule(
        name="store-embedded",
        severity=Severity.MISSING,
        why="With this machine go all conversations and all answers in flight, and there can be no second gateway.",
        do="Set GATEWAY_REDIS_URL to a Redis or Valkey with a replica.",
        look=_embedded,
    ),
    Rule(
        name="store-open",
        severity=Severity.UNSAFE,
        why="Whoever reaches it reads every conversation, and is told every answer.",
        do="Set `requirepass` or a user by ACL, and write it into GATEWAY_REDIS_URL_FILE: redis://user:password@…",
        look=_open,
    ),
    Rule(
        name="store-in-clear",
        severity=Severity.ADVICE,
        why="Messages, answers and the password could be read on their way between the machines.",
        do="Use rediss:// (or rediss+sentinel://, rediss+cluster://), unless the network itself is encrypted.",
        look=_clear,
    ),
    Rule(
        name="eviction",
        severity=Severity.UNSAFE,
        why="A server that is full throws away live logs, limits and keys, which nobody notices until they are missed.",
        do="Set `maxmemory-policy noeviction` in Redis.",
        look=_each(_evicts),
    ),
    Rule(
        name="no-maxmemory",
        severity=Severity.MISSING,
        why="A server without a bound is ended by the system, with everybody on it; one with a bound refuses by name.",
        do="Set `maxmemory` in Redis to about two thirds of what it may have.",
        look=_each(_unbounded),
    ),
    Rule(
        name="no-persistence",
        severity=Severity.UNSAFE,
        why="A restart of Redis ends all keys, all conversations and all tenants of the admin API, and what is due.",
        do="Set `appendonly yes` and `appendfsync everysec` in Redis.",
        look=_each(_forgets),
    ),
    Rule(
        name="weak-persistence",
        severity=Severity.MISSING,
        why="A crash loses minutes of what was settled, revoked or made; live turns write again seconds only.",
        do="Set `appendonly yes` and `appendfsync everysec` in Redis.",
        look=_each(_snapshots),
    ),
    Rule(
        name="persistence-fails",
        severity=Severity.UNSAFE,
        why="What is on disk is old, and Redis may take no more writes because of it.",
        do="See Redis's log and the room on its disk.",
        look=_each(_fails),
    ),
    Rule(
        name="no-replica",
        severity=Severity.MISSING,
        why="Nothing is there to take its place; until it is back no turn begins.",
        do="Add a replica, with three Sentinels or as a Cluster.",
        look=_each(_lonely),
    ),
    Rule(
        name="split-brain",
        severity=Severity.ADVICE,
        why="A master that is cut off from its replicas takes writes that are lost when it comes back.",
        do="Set `min-replicas-to-write 1` and `min-replicas-max-lag 10` in Redis, on every server. With one replica its"
        " loss then stops writes too: have two.",
        look=_split,
    ),
    Rule(
        name="few-sentinels",
        severity=Severity.MISSING,
        why="A majority of them must be left to agree on a new master when one goes with its machine.",
        do="Run three, on machines of their own.",
        look=_sentinels,
    ),
    Rule(
        name="one-host",
        severity=Severity.ADVICE,
        why="A worker that starts while that one is away finds no other, unless its name leads to several.",
        do="Name all Sentinels, or some nodes of the Cluster, in GATEWAY_REDIS_URL: host:port,host:port.",
        look=_one_host,
    ),
    Rule(
        name="full-coverage",
        severity=Severity.MISSING,
        why="A node that is lost stops all tenants, not only those whose slots it has.",
        do="Set `cluster-require-full-coverage no` on every node.",
        look=_each(_coverage),
    ),
    Rule(
        name="cluster-broken",
        severity=Severity.UNSAFE,
        why="Some tenants' slots are nobody's: they are refused.",
        do="See `redis-cli --cluster check` and mend it.",
        look=_broken,
    ),
    Rule(
        name="config-hidden",
        severity=Severity.ADVICE,
        why="Whether it saves, and what it does without its replicas, could not be looked at.",
        do="Look there yourself, or allow this user `CONFIG GET`.",
        look=_each(_hidden),
    ),
    Rule(
        name="clock-of-redis",
        severity=Severity.UNSAFE,
        why="Leases, limits and what is revoked go by Redis's clock, tokens by this one's.",
        do="Run NTP (chrony, systemd-timesyncd) on both.",
        look=_each(_clock),
    ),
    Rule(
        name="few-clients",
        severity=Severity.MISSING,
        why="Beyond it Redis refuses connections: a worker that is started by a roll may find no place.",
        do="Raise `maxclients` in Redis, or lower GATEWAY_REDIS_CONNECTIONS.",
        look=_clients,
    ),
)
