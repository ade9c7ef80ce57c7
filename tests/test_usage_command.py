"""``hyperleap-gateway usage`` as an operator uses it, on the store of a gateway that runs meanwhile."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from gateway.cli import main
from gateway.core.identity import TenantId, UserHash
from gateway.protocol.usage_answers import UsageReport
from gateway.services import usage as service
from gateway.store.ledger import RedisLedger
from tests.conftest import PERSONA_ID, SECRETS, TENANT_TOML, Running, StartGateway
from tests.core.test_usage import settlement
from tests.transports.client import Client, eventually

Command = Callable[..., Awaitable[Result]]
PRICES = '\n[prices]\ncurrency = "EUR"\nprompt_per_million = "1000"\ncompletion_per_million = "2000"\n'
TENANT = "acme-for-the-usage-command"


@pytest.fixture
async def running(start_gateway: StartGateway) -> Running:
    """A gateway whose tenant has used three turns, one of a persona that is not the default one."""
    running = await start_gateway(
        simulator={"h2c": True}, toml=TENANT_TOML.format(tenant=TENANT, persona=PERSONA_ID) + PRICES
    )
    redis = running.gateway.redis
    await redis.call("DEL", f"hg:{{{TENANT}}}:usage:settled")
    client = Client(running, await running.user())
    for persona, turns in (("default", 2), ("other", 1)):
        conversation = await client.conversation(persona=persona)
        for _ in range(turns):
            await client.complete(conversation, "Hi #tokens=3 #rate=0")

    async def settled() -> bool:
        return len(await RedisLedger(redis, ttl_s=100, retries_s=()).settled(TenantId(TENANT), None, 10)) == 3

    await eventually(settled, "three turns to be settled")
    return running


@pytest.fixture
def command(running: Running, store_url: str, tmp_path: Path) -> Command:
    """Run ``hyperleap-gateway usage …`` with the settings of the gateway, without its vendor key."""
    (config,) = tmp_path.glob("*.toml")
    for name, secret in (("pepper", SECRETS.pepper), ("signing-key", SECRETS.signing_key)):
        (tmp_path / name).write_bytes(secret)
        (tmp_path / name).chmod(0o600)
    environ = {
        "GATEWAY_CONFIG": str(config),
        "GATEWAY_REDIS_URL": store_url,
        "GATEWAY_DATA_DIR": str(tmp_path),
        "GATEWAY_PEPPER_FILE": str(tmp_path / "pepper"),
        "GATEWAY_SIGNING_KEY_FILE": str(tmp_path / "signing-key"),
    }

    async def invoke(*arguments: str) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, main, ("usage", *arguments), env=environ)

    return invoke


async def done(command: Command, *arguments: str) -> Result:
    """Run a command that must work."""
    result = await command(*arguments)
    assert result.exit_code == 0, result.output
    return result


async def test_table_is_readable_at_80_columns(command: Command, running: Running) -> None:
    """Days and personas with what they used and cost, their total below, and no number broken."""
    result = await done(command, "--tenant", TENANT)
    lines = result.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert "DAY" in lines[1]
    assert lines[1].split() == ["DAY", "PERSONA", "TURNS", "FAILED", "IN", "OUT", "COST"]
    (other,) = [line.split() for line in lines if " other " in line]
    (total,) = [line.split() for line in lines if line.startswith("total")]
    runs = list(running.simulator.bill)
    prompt, completion = sum(run.prompt_tokens for run in runs), sum(run.completion_tokens for run in runs)
    cost = (1000 * prompt + 2000 * completion) / 10**6
    assert other[2:4] == ["1", "0"]
    assert total[1:5] == ["3", "0", str(prompt), str(completion)]
    assert (total[5], total[6]) == (f"{cost:.4f}", "EUR")


async def test_table_of_many_dimensions_and_large_numbers_keeps_them_whole(command: Command, running: Running) -> None:
    """Names break over lines; a count of tokens never does, and what is estimated or has no price is said apart."""
    redis = running.gateway.redis
    large = settlement(
        datetime.now(UTC),
        owner=UserHash("0123456789abcdef" * 2),
        prompt_tokens=9_876_543,
        completion_tokens=1_234_567,
        source="estimated",
    )
    await redis.call("XADD", f"hg:{{{TENANT}}}:usage:settled", "*", "s", msgspec.json.encode(large))
    result = await done(command, "--tenant", TENANT, "--by", "day,persona,user")
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    assert "9,876,543" in result.stdout
    assert "1,234,567" in result.stdout
    assert "of 1 of 4 are estimated" in result.stderr
    assert "1 of 4 were settled without a price" in result.stderr


async def test_csv_json_and_lines_say_what_the_table_does(command: Command) -> None:
    """For programs: rows under a header, rows as objects, or one document with the totals."""
    day = f"{datetime.now(UTC) - timedelta(days=1):%Y-%m-%d}"
    asked = ("--tenant", TENANT, "--from", day, "--by", "persona")
    report = msgspec.json.decode((await done(command, *asked, "--format", "json")).stdout, type=UsageReport)
    lines = [json.loads(line) for line in (await done(command, *asked, "--format", "jsonl")).stdout.splitlines()]
    text = (await done(command, *asked, "--format", "csv")).stdout_bytes.decode()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row.persona for row in report.data] == ["default", "other"]
    assert lines == [
        {"persona": row.persona, **{name: getattr(row, name) for name in lines[0] if name != "persona"}}
        for row in report.data
    ]
    assert [float(row["cost"]) * 10**6 for row in rows] == [line["cost_micros"] for line in lines]
    assert [row["turns"] for row in rows] == ["2", "1"]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
async def test_turns_are_printed_one_by_one(command: Command, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once, over as many pages as it takes, under one header."""
    monkeypatch.setattr("gateway.usage_command.RECORDS_MAX", 2)
    monkeypatch.setattr(service, "PAGE", 2)
    text = (await done(command, "--by", "turn", "--tenant", TENANT, "--format", form)).stdout_bytes.decode()
    if form == "csv":
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    else:
        rows = [json.loads(line) for line in text.splitlines()]
    assert [row["persona"] for row in rows] == ["default", "default", "other"]
    assert len({row["turn_id"] for row in rows}) == 3
    assert all(row["tenant"] == TENANT for row in rows)


async def test_all_tenants_are_told_unless_one_is_named(command: Command) -> None:
    """By tenant, so that they can be told apart; where nothing was used, that is said beside the table."""
    report = (await done(command, "--by", "tenant", "--format", "json")).stdout
    assert [row["tenant"] for row in json.loads(report)["data"]] == [TENANT]
    today = datetime.now(UTC)
    nothing = await done(
        command, "--from", f"{today - timedelta(days=3):%Y-%m-%d}", "--to", f"{today - timedelta(days=2):%Y-%m-%d}"
    )
    assert nothing.stdout == ""
    assert "Nothing was settled" in nothing.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("--from", "2016-01-01", "--to", "2016-12-31"), 2, "--from: Settlements are kept for 40 days"),
        (("--from", "2016-01-01"), 2, "--from: A range may have 366 days"),
        (("--from", "yesterday"), 2, "--from: 'yesterday' is no date"),
        (("--to", "2016-01-01"), 2, "--to: The range is empty"),
        (("--by", "colour"), 2, "--by: 'colour' is none of"),
        (("--timezone", "Mars"), 2, "--timezone: 'Mars' is no time zone"),
        (("--format", "xml"), 2, "'xml' is not one of"),
        (("--by", "turn"), 2, "add --format csv"),
        (("--tenant", "nobody"), 1, "There is no tenant 'nobody'"),
    ],
)
async def test_mistake_is_told_on_standard_error_with_a_status(
    command: Command, arguments: tuple[str, ...], status: int, words: str
) -> None:
    """Called wrongly is 2, not to be done is 1; nothing half-done is on standard output."""
    result = await command(*arguments)
    assert (result.exit_code, result.stdout) == (status, "")
    assert words in result.stderr
