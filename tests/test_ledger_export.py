"""The export as an operator meets it: real processes, a real PostgreSQL, and whatever of them is killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis.asyncio
from aiohttp import ClientError

from gateway.check import Finding, check_ledger
from gateway.core.ledger import Settlement
from gateway.options import LedgerSettings
from gateway.sections import Secret, SettingsError
from gateway.settings import load
from gateway.warehouse.target import Target
from tests.conftest import PERSONA_ID, VENDOR_KEY, StartGateway
from tests.postgres import PASSWORD, PostgresServer
from tests.test_commands import chat, kill_store, logged, ports, run
from tests.test_supervisor import workers as worker_pids

PATIENCE_S = 90.0  # the post of an exporter that was killed is free after 20 s
QUERY = "SELECT * FROM hyperleap.settlements ORDER BY turn_id"
CHECKED = {
    "HYPERLEAP_API_KEY": VENDOR_KEY,
    "HYPERLEAP_PERSONA_ID": PERSONA_ID,
    "HYPERLEAP_BASE_URL": "https://127.0.0.1:9",
}


async def ledger(facts: dict[str, str]) -> list[Settlement]:
    """What Redis has of the demo's tenant, in the order of the turns' ids; nothing while it is being restarted."""
    client = redis.asyncio.Redis.from_url(facts["GATEWAY_REDIS_URL"])
    try:
        entries: Any = await client.xrange("hg:{default}:usage:settled")
    finally:
        await client.aclose()
    found = [msgspec.json.decode(values[b"s"], type=Settlement) for _, values in entries]
    return sorted(found, key=lambda one: one.turn_id)


def same(row: dict[str, Any], one: Settlement) -> bool:
    """Whether a row says what the ledger says."""
    plain = {name: getattr(one, name) for name in Settlement.__struct_fields__ if name in row and name != "ended_at"}
    return (
        row["tenant"] == "default"
        and row["user_hash"] == one.owner
        and row["ended_at"].timestamp()
        == pytest.approx(msgspec.convert(one.ended_at, type(row["ended_at"])).timestamp())
        and {name: row[name] for name in plain} == plain
    )


async def until_rows_are_the_ledger(postgres: PostgresServer, database: str, facts: dict[str, str]) -> int:
    """Wait until there is a row for each settlement, in every field as it is; return how many there are."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(OSError, redis.exceptions.RedisError):
                rows, settled = await postgres.fetch(database, QUERY), await ledger(facts)
                if settled and len(rows) == len(settled) and all(map(same, rows, settled)):
                    return len(rows)
            await asyncio.sleep(0.1)


async def until_begun(postgres: PostgresServer, database: str) -> None:
    """Wait until a gateway has made its tables."""
    async with asyncio.timeout(PATIENCE_S):
        while not await postgres.fetch(database, "SELECT 1 FROM pg_tables WHERE tablename = 'settlements'"):
            await asyncio.sleep(0.05)


# --- the whole way ------------------------------------------------------------------------------------------------


async def test_turns_of_a_gateway_are_rows_with_the_tokens_that_users_were_told(
    postgres: PostgresServer, start_gateway: StartGateway
) -> None:
    """From the browser's turn to the row: tokens, persona, key and times are those of the turn, once."""
    database = await postgres.database()
    environ = {"GATEWAY_LEDGER_URL": postgres.url(database), "GATEWAY_LEDGER_EXPORT_INTERVAL_S": "0.05"}
    running = await start_gateway(simulator={"rate_per_s": 0}, environ=environ)
    headers = await running.user()
    told: dict[str, int] = {}
    for _ in range(5):
        path = f"{running.url}/v1/conversations/{await running.conversation(headers)}/turns"
        async with running.http.post(path, json={"message": "Hi"}, headers=headers) as response:
            ending = await response.json()
            told[ending["turn_id"]] = ending["usage"]["total_tokens"]
    await until_begun(postgres, database)
    rows: list[dict[str, Any]] = []
    async with asyncio.timeout(PATIENCE_S):
        while len(rows) < 5:
            rows = await postgres.fetch(database, QUERY)
    assert {row["turn_id"]: row["total_tokens"] for row in rows} == told
    for row in rows:
        assert (row["tenant"], row["persona"], row["state"]) == (running.tenant, "default", "completed")
        assert (row["source"], row["vendor_key"]) == ("reported", "default")
        assert 0 < row["first_token_s"] <= row["duration_s"]
    async with running.http.get(f"{running.internal_url}/metrics") as response:
        assert "gateway_ledger_exported_total 5.0" in await response.text()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform != "linux", reason="finds workers in /proc")
async def test_rows_are_the_ledger_whatever_was_killed(own_postgres: PostgresServer, tmp_path: Path) -> None:
    """Two workers under load, each killed outright, then PostgreSQL, then the store: in the end rows are the ledger.

    Neither the password nor the URL that holds it is in anything that the gateway printed.
    """
    environ = {"GATEWAY_LEDGER_URL": own_postgres.url("postgres"), "GATEWAY_LEDGER_EXPORT_INTERVAL_S": "0.05"}
    demo = ("demo", "--workers", "2", *ports(tmp_path), "--rate", "0")
    endings: list[dict[str, Any]] = []
    over = asyncio.Event()

    async def user(name: str, facts: dict[str, str]) -> None:
        while not over.is_set():
            # A worker or the store may be gone in the middle: such a turn is settled without this user.
            with contextlib.suppress(ClientError, AssertionError, KeyError, OSError, ValueError, TimeoutError):
                endings.append(await asyncio.wait_for(chat(facts, "Tell me #tokens=20", user=name), 10))
            await asyncio.sleep(0.05)

    async with run(tmp_path, *demo, **environ) as command:
        facts = await command.facts()
        users = [asyncio.create_task(user(f"user-{number}", facts)) for number in range(4)]
        await until_begun(own_postgres, "postgres")

        async def more() -> None:
            """Wait for further turns that were told whole."""
            count = len(endings)
            async with asyncio.timeout(PATIENCE_S):
                while len(endings) < count + 8:
                    await asyncio.sleep(0.05)

        await more()
        for _ in range(2):  # one of them exports
            killed = min(worker_pids(command.process.pid))
            os.kill(killed, signal.SIGKILL)
            async with asyncio.timeout(PATIENCE_S):
                while killed in (living := worker_pids(command.process.pid)) or len(living) < 2:
                    await asyncio.sleep(0.05)
            await more()
        own_postgres.kill()
        await more()
        await own_postgres.start()
        await more()
        await kill_store(tmp_path)
        await more()
        over.set()
        await asyncio.gather(*users)
        count = await until_rows_are_the_ledger(own_postgres, "postgres", facts)
        rows = {row["turn_id"]: row for row in await own_postgres.fetch("postgres", QUERY)}
        out, err = await command.end()
    assert count >= len(endings) >= 40
    completed = [ending for ending in endings if ending["event"] == "turn.completed"]
    assert {ending["turn_id"]: ending["usage"]["total_tokens"] for ending in completed} == {
        ending["turn_id"]: rows[ending["turn_id"]]["total_tokens"] for ending in completed
    }
    assert logged(err, "ledger.export_begun")
    assert PASSWORD not in out + err
    assert logged(err, "ledger.export_crashed") == []


# --- settings, check, migrate -------------------------------------------------------------------------------------


def test_url_without_its_driver_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is missing: a start says so at once, by the variable."""
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    target = Target(LedgerSettings(url=Secret("postgresql://u:p@db/x")))
    with pytest.raises(SettingsError, match=r'GATEWAY_LEDGER_URL: needs .*"hyperleap-gateway\[postgres\]"'):
        target.require()


def test_url_in_a_file_is_read_anew_and_its_faults_are_named(tmp_path: Path) -> None:
    """A rotated file is what the next connection uses; one that cannot be used is named, and nothing of it is told."""
    path = tmp_path / "url"
    target = Target(LedgerSettings(url_file=path))
    for content, words in ((None, "cannot read"), ("", "is empty"), ("u:very-secret@db", "must begin with postgres")):
        if content is not None:
            path.write_text(content)
        with pytest.raises(SettingsError, match=words) as caught:
            target.require()
        assert caught.value.key == "GATEWAY_LEDGER_URL_FILE"
        assert "very-secret" not in str(caught.value)
    for password in ("one", "two"):
        path.write_text(f"postgresql://u:{password}@db/x\n")
        assert target.require().password == password


@pytest.mark.slow
@pytest.mark.parametrize("workers", [(), ("--workers", "1")])
async def test_start_with_a_url_that_cannot_be_used_is_refused(tmp_path: Path, workers: tuple[str, ...]) -> None:
    """What can never work stops the start and is named; a database that is merely away does not."""
    environ = CHECKED | {"GATEWAY_LEDGER_URL_FILE": str(tmp_path / "missing")}
    async with run(tmp_path, "serve", *ports(tmp_path), *workers, **environ) as command:
        _, err = await command.finish()
        assert command.process.returncode == 1
    assert f"GATEWAY_LEDGER_URL_FILE: cannot read {tmp_path}/missing: No such file or directory" in err
    environ = CHECKED | {"GATEWAY_LEDGER_URL": "postgresql://u:p@127.0.0.1:1/x"}
    async with run(tmp_path, "serve", *ports(tmp_path), *workers, **environ) as command:
        assert "GATEWAY_URL" in await command.facts()
        await command.end()


async def test_check_tells_what_the_database_is(postgres: PostgresServer) -> None:
    """``check`` says what it found and what stops an export, and changes nothing; unset, it says nothing."""
    database = await postgres.database()
    address = f"postgresql://127.0.0.1:{postgres.port}/{database}"

    async def check(url: str | None) -> Finding | None:
        return await check_ledger(load(None, {"HOME": "/", **({"GATEWAY_LEDGER_URL": url} if url else {})}))

    good = await check(postgres.url(database))
    assert good is not None
    assert good.ok
    assert re.fullmatch(rf"{address}: PostgreSQL \d+\.\d.*, role owner, tables to be made", good.words)
    assert await postgres.fetch(database, "SELECT 1 FROM pg_namespace WHERE nspname = 'hyperleap'") == []
    await postgres.execute(database, f'ALTER DATABASE "{database}" SET default_transaction_read_only = on')
    words = f"{address}: is read-only (default_transaction_read_only is on); nothing is exported"
    assert await check(postgres.url(database)) == Finding("ledger export", False, words)
    assert await check(None) is None


async def test_check_that_is_not_let_in_fails_and_shows_no_password(postgres: PostgresServer, tmp_path: Path) -> None:
    """What ``check`` prints of the ledger is its address and what PostgreSQL said."""
    url = postgres.url("postgres", password="another-password-that-no-log-may-show")
    async with run(tmp_path, "check", **CHECKED, GATEWAY_LEDGER_URL=url) as command:
        out, err = await command.finish()
        assert command.process.returncode == 1
    assert "FAIL  ledger export: postgresql://127.0.0.1:" in out
    assert "password authentication failed" in out
    assert "that-no-log-may-show" not in out + err


@pytest.mark.slow
async def test_migrate_makes_the_tables_once_and_prints_them(postgres: PostgresServer, tmp_path: Path) -> None:
    """``ledger migrate`` makes them, does nothing the second time, and prints what psql would need instead."""
    database = await postgres.database()
    for words in ("applied 0001 settlements\n", "nothing to do\n"):
        async with run(tmp_path, "ledger", "migrate", **CHECKED, GATEWAY_LEDGER_URL=postgres.url(database)) as command:
            assert await command.finish() == (words, "")
    async with run(tmp_path, "ledger", "migrate", "--print", **CHECKED) as command:
        out, _ = await command.finish()
    other = await postgres.database()
    await postgres.execute(other, out)
    assert await postgres.fetch(other, "SELECT version FROM hyperleap.migrations") == [{"version": 1}]
    for environ, words in (
        ({}, "GATEWAY_LEDGER_URL: name the database"),
        ({"GATEWAY_LEDGER_URL": postgres.url("no_such_database")}, 'database "no_such_database" does not exist'),
    ):
        async with run(tmp_path, "ledger", "migrate", **CHECKED, **environ) as command:
            _, err = await command.finish()
            assert command.process.returncode == 1
        assert words in err
        assert PASSWORD not in err
