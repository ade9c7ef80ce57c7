"""Traces of real processes: a gateway with workers, and a collector that hears of what they did."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.collector import collector
from tests.test_commands import chat, ports, run

pytestmark = pytest.mark.slow


async def test_workers_export_what_waits_before_they_end(tmp_path: Path) -> None:
    """On SIGTERM spans that wait for their batch are sent; each names its worker, and the log the same trace."""
    async with collector() as spans:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": spans.url, "OTEL_BSP_SCHEDULE_DELAY": "3600000"}
        async with run(tmp_path, "demo", "--workers", "2", "--rate", "0", *ports(tmp_path), **environ) as command:
            ending = await chat(await command.facts(), "Hi #tokens=3")
            assert spans.spans == []
            _, err = await command.end()
            assert command.process.returncode == 0, err
        turn, call = await spans.one("turn"), await spans.one("chat default")
    lines = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    (ended,) = [line for line in lines if line["event"] == "turn.ended"]
    assert (ended["trace_id"], ended["turn_id"]) == (turn.trace_id, ending["turn_id"])
    assert turn.attributes["gateway.turn.id"] == ending["turn_id"]
    (started,) = [line for line in lines if line["event"] == "worker.started" and line["worker"] == ended["worker"]]
    assert turn.resource["service.instance.id"] == call.resource["service.instance.id"] == started["worker_id"]


async def test_collector_that_never_answers_does_not_keep_the_gateway(tmp_path: Path) -> None:
    """A gateway ends in order though its spans cannot be sent, within its flush time and little more."""
    async with collector() as spans:
        spans.hold.clear()
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": spans.url, "OTEL_BSP_SCHEDULE_DELAY": "20"}
        async with run(tmp_path, "demo", "--rate", "0", *ports(tmp_path), **environ) as command:
            await chat(await command.facts(), "Hi #tokens=3")
            await spans.until(lambda: spans.bodies, "an export")
            begun_s = time.monotonic()
            _, err = await command.end()
            assert command.process.returncode == 0, err
            assert time.monotonic() - begun_s < 12.0  # 2 s are the flush's; the SDK alone would wait for 30
        assert spans.spans == []
