"""The faults by name. Each starts what it strikes, strikes it in mid-answer, and judges what is left."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from tests.bench.survival import store_strikes as store
from tests.bench.survival import topology_strikes as topology
from tests.bench.survival import worker_strikes as worker
from tests.bench.survival.field import Load
from tests.bench.survival.verdict import Verdict

STRIKES: Final[dict[str, Callable[[Load], Awaitable[Verdict]]]] = {
    "kill-finish": lambda load: worker.kill(load, "finish"),
    "kill-drop": lambda load: worker.kill(load, "drop"),
    "kill-twice": worker.kill_twice,
    "kill-stop": worker.kill_stop,
    "kill-stalled": store.kill_stalled,
    "roll": worker.roll,
    "roll-short": worker.roll_short,
    "hand-over": worker.hand_over,
    "crash-loop": worker.crash_loop,
    "restart": worker.restart,
    "vendor-limit": worker.vendor_limit,
    "store-kill-own": lambda load: store.store_kill(load, own=True),
    "store-kill-shared": lambda load: store.store_kill(load, own=False),
    "store-rewind": store.store_rewind,
    "store-stop": store.store_stop,
    "store-away": store.store_away,
    "sentinel-kill": lambda load: topology.sentinel_lost(load, "kill"),
    "sentinel-lag": lambda load: topology.sentinel_lost(load, "lag"),
    "sentinel-hang": lambda load: topology.sentinel_lost(load, "hang"),
    "sentinel-demote": topology.sentinel_demote,
    "cluster-kill": lambda load: topology.cluster_lost(load, "kill"),
    "cluster-lag": lambda load: topology.cluster_lost(load, "lag"),
    "cluster-hang": lambda load: topology.cluster_lost(load, "hang"),
    "cluster-move": lambda load: topology.cluster_move(load, slow=False),
    "cluster-move-slow": lambda load: topology.cluster_move(load, slow=True),
    "cluster-move-whole": topology.cluster_move_whole,
    "lost-host": worker.lost_host,
    "zombie": worker.zombie,
    "stops": worker.stops,
    "storm": store.storm,
}
