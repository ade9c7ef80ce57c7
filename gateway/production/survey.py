"""Looks at all that rules are about: settings, stored tenants, each master of Redis, the upstream, this process."""

from __future__ import annotations

import resource
from pathlib import Path

from gateway.core.errors import GatewayError
from gateway.production.finding import Scene
from gateway.services.registry import Registry
from gateway.services.tenants import Tenants
from gateway.settings import Settings
from gateway.store.examination import StoreState, examine
from gateway.store.redis import Redis
from gateway.store.tenants import RedisTenants
from gateway.upstream.client import HyperleapClient
from gateway.upstream.greeting import Greeting

FILES_WITHOUT_END = 1 << 62  # RLIM_INFINITY is -1


async def survey(settings: Settings, client: HyperleapClient, *, config: Path | None, streams: int) -> Scene:
    """Gather what is to be judged. What cannot be reached is left out: ``check`` says of it that it cannot.

    ``streams`` are those that a worker is to hold. Raises SettingsError for tenants that cannot be read.
    """
    registry = Registry()
    state: StoreState | None = None
    fixed = settings.tenant_tables()
    if settings.redis.url is None:
        registry.replace(settings.tenant_values())
    else:
        url, timeout_s = settings.redis.url.reveal(), settings.redis.timeout_s
        redis = Redis(url, timeout_s=timeout_s, connections=1)
        tenants = Tenants(registry, RedisTenants(redis), fixed, settings.tenant_source)
        try:
            await tenants.load()
            state = await examine(url, timeout_s=timeout_s)
        except GatewayError:
            pass
        finally:
            await redis.aclose()
    return Scene(
        settings=settings,
        tenants=registry,
        config=config,
        store=state,
        upstream=await _greeting(client),
        streams=streams,
        open_files=_open_files(),
    )


async def _greeting(client: HyperleapClient) -> Greeting | None:
    try:
        return await client.greet()
    except GatewayError:
        return None


def _open_files() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return FILES_WITHOUT_END if soft == resource.RLIM_INFINITY else soft
