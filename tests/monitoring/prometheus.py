"""A real Prometheus with the repository's own files, whose clock runs faster."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml
from aiohttp import ClientError, ClientSession, ClientTimeout

from tests.bench.process import Child, free_port
from tests.monitoring.files import PROMETHEUS, RULE_FILES, load_yaml

FASTER: Final = 60  # what takes a minute in the files takes a second here
WITHIN_S: Final = 60.0  # far beyond what any alert takes here; only one that never fires reaches it
STEP_S: Final = 15.0 / FASTER
SCRAPE: Final = "1250ms"  # not as much faster: a scrape must have time for a worker that is busy
_UNITS_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+)(ms|[smhd])")


class Series(NamedTuple):
    """One series of an answer, with its latest value."""

    labels: Mapping[str, str]
    value: float


def faster(duration: str) -> str:
    """Return a duration of the files as it is here: ``5m`` is ``5000ms``."""
    seconds = sum(int(number) * _UNITS_S[unit] for number, unit in _DURATION.findall(duration))
    return f"{max(1, round(seconds * 1000 / FASTER))}ms"


def faster_query(query: str) -> str:
    """Return a query whose windows and offsets are faster; nothing else of it changes."""
    windows = re.compile(r"\[([\dsmhd]+)(?::([\dsmhd]*))?\]|(?<=\boffset )([\dsmhd]+)")

    def put(found: re.Match[str]) -> str:
        window, step, offset = found.groups()
        if offset:
            return faster(offset)
        return f"[{faster(window)}]" if step is None else f"[{faster(window)}:{step and faster(step)}]"

    return windows.sub(put, query)


def faster_rules(path: Path) -> dict[str, Any]:
    """Return a file of rules with everything that is a time in it faster."""
    loaded: dict[str, Any] = load_yaml(path)
    for group in loaded["groups"]:
        for rule in group["rules"]:
            rule["expr"] = faster_query(rule["expr"])
            if "for" in rule:
                rule["for"] = faster(rule["for"])
    return loaded


def faster_config(target: str) -> dict[str, Any]:
    """Return the configuration with one target in the place of those that are found by name."""
    loaded: dict[str, Any] = load_yaml(PROMETHEUS / "scrape.yaml")
    everything = loaded["global"]
    everything["evaluation_interval"] = faster(everything["evaluation_interval"])
    everything["scrape_interval"] = everything["scrape_timeout"] = SCRAPE
    (job,) = loaded["scrape_configs"]
    del job["dns_sd_configs"]
    job["static_configs"] = [{"targets": [target]}]
    return loaded


class Prometheus:
    """A running server, asked over its API."""

    def __init__(self, url: str, http: ClientSession) -> None:
        self.url = url
        self._http = http
        self.began_s = time.time()

    async def query(self, query: str) -> list[Series]:
        """Evaluate a query now; raises AssertionError with what Prometheus says of a bad one."""
        found = (await self._ask("query", query=query))["result"]
        return [Series(series["metric"], float(series["value"][1])) for series in found]

    async def had(self, query: str) -> bool:
        """Whether a query has had data at any time since the start."""
        now_s = time.time()
        told = await self._ask("query_range", query=query, start=self.began_s, end=now_s, step=1)
        return any(value != "NaN" for series in told["result"] for _, value in series["values"])

    async def firing(self) -> dict[str, list[Mapping[str, str]]]:
        """The alerts that fire, by name, with their labels."""
        found: dict[str, list[Mapping[str, str]]] = {}
        for alert in (await self._ask("alerts"))["alerts"]:
            if alert["state"] == "firing":
                found.setdefault(alert["labels"]["alertname"], []).append(alert["labels"])
        return found

    async def alert(self, name: str) -> dict[str, Any]:
        """One of the firing alerts of this name, with its annotations."""
        alerts = (await self._ask("alerts"))["alerts"]
        found: dict[str, Any] = next(
            alert for alert in alerts if alert["labels"]["alertname"] == name and alert["state"] == "firing"
        )
        return found

    async def rules(self) -> list[dict[str, Any]]:
        """Every rule with its health."""
        groups = (await self._ask("rules"))["groups"]
        return [rule for group in groups for rule in group["rules"]]

    async def metadata(self) -> set[str]:
        """The names of the metrics that its targets say they have; a histogram's once."""
        return set(await self._ask("metadata"))

    async def fires(self, *names: str, within_s: float = WITHIN_S) -> None:
        """Wait until all of these alerts fire."""
        await self._wait(names, lambda fired: set(names) <= fired, "never fired", within_s)

    async def resolves(self, *names: str, within_s: float = WITHIN_S) -> None:
        """Wait until none of these alerts fires."""
        await self._wait(names, lambda fired: not set(names) & fired, "still fire", within_s)

    async def _wait(
        self, names: tuple[str, ...], holds: Callable[[set[str]], bool], complaint: str, within_s: float
    ) -> None:
        fired: set[str] = set()
        try:
            async with asyncio.timeout(within_s):
                while not holds(fired):
                    fired = set(await self.firing())
                    await asyncio.sleep(STEP_S)
        except TimeoutError:
            wrong = set(names) - fired if "never" in complaint else set(names) & fired
            raise AssertionError(
                f"{sorted(wrong)} {complaint} within {within_s:g} s; firing: {sorted(fired)}"
            ) from None

    async def _ask(self, path: str, **parameters: str | float) -> Any:
        async with self._http.get(f"{self.url}/api/v1/{path}", params=parameters) as response:
            told = await response.json()
        assert told["status"] == "success", (path, parameters, told)
        return told["data"]


@asynccontextmanager
async def prometheus(directory: Path, target: str, gateway_url: str) -> AsyncIterator[Prometheus]:
    """Run a Prometheus that scrapes this target by the repository's configuration, rules and alerts."""
    directory.mkdir()
    for path in RULE_FILES:
        (directory / path.name).write_text(yaml.safe_dump(faster_rules(path)), "utf-8")
    (directory / "scrape.yaml").write_text(yaml.safe_dump(faster_config(target)), "utf-8")
    port = free_port()
    command = [
        *("prometheus", f"--config.file={directory / 'scrape.yaml'}", f"--storage.tsdb.path={directory / 'data'}"),
        *(f"--web.listen-address=127.0.0.1:{port}", "--query.lookback-delta=5s", "--log.level=warn"),
        "--enable-feature=expand-external-labels",  # which Prometheus 3 does by itself
    ]
    async with (
        Child("prometheus", command, directory / "prometheus.log", os.environ | {"GATEWAY_URL": gateway_url}) as child,
        ClientSession(timeout=ClientTimeout(total=10)) as http,
    ):
        server = Prometheus(f"http://127.0.0.1:{port}", http)
        await _ready(server.url, http, child)
        yield server


async def _ready(url: str, http: ClientSession, child: Child) -> None:
    async with asyncio.timeout(WITHIN_S):
        while True:
            child.expect_alive()
            try:
                async with http.get(f"{url}/-/ready") as response:
                    if response.status == 200:
                        return
            except ClientError:
                pass
            await asyncio.sleep(0.05)


async def eventually(holds: Callable[[], Awaitable[bool]], complaint: str, within_s: float = WITHIN_S) -> None:
    """Wait until something holds."""
    try:
        async with asyncio.timeout(within_s):
            while not await holds():
                await asyncio.sleep(STEP_S)
    except TimeoutError:
        raise AssertionError(complaint) from None
