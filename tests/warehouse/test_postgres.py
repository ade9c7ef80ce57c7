"""The warehouse in a real PostgreSQL: rows and marks move together, once, or not at all."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
import trustme

from gateway.core.identity import TenantId
from gateway.core.ledger import Settlement
from gateway.core.turn import TurnState
from gateway.core.warehouse import Line, Mark, Taken, Trouble, WarehouseError
from tests.postgres import PASSWORD, PostgresServer
from tests.warehouse.conftest import ACME, OpenWarehouse, lines, page, settlement

OTHER = TenantId("other")
PATIENCE_S = 30.0


async def rows(postgres: PostgresServer, database: str, tenant: TenantId = ACME) -> list[dict[str, Any]]:
    query = "SELECT * FROM hyperleap.settlements WHERE tenant = $1 ORDER BY turn_id"
    return await postgres.fetch(database, query, tenant)


def as_settlement(row: dict[str, Any]) -> Settlement:
    """Read a row back as what was settled."""
    fields = {name: row[name] for name in Settlement.__struct_fields__ if name in row}
    ended_at = row["ended_at"].strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
    return msgspec.convert(fields | {"owner": row["user_hash"], "ended_at": ended_at}, Settlement)


# --- taken once ---------------------------------------------------------------------------------------------------


async def test_taken_settlements_are_rows_with_every_field(
    postgres: PostgresServer, database: str, warehouse_of: OpenWarehouse
) -> None:
    """What the ledger says is what the table says, field by field; what is unknown is null."""
    warehouse = warehouse_of()
    assert await warehouse.open() == {}
    full = settlement(vendor_key="blue", first_token_s=0.25, cost_micros=10**12, currency="EUR", total_tokens=2**40)
    bare = settlement(message_id=None, state=TurnState.FAILED, reason="upstream_timeout", source="estimated")
    some = lines(full, bare)
    assert await warehouse.take([page(some)]) == Taken(2, 0)
    found = [as_settlement(row) for row in await rows(postgres, database)]
    assert found == sorted([full, bare], key=lambda one: one.turn_id)
    assert await warehouse_of().open() == {ACME: Mark("2-0", bare.turn_id)}


async def test_take_of_many_tenants_is_one_step(
    postgres: PostgresServer, database: str, warehouse_of: OpenWarehouse
) -> None:
    """Pages of several tenants go together, and each tenant's mark is its own; equal turn ids do not meet."""
    warehouse = warehouse_of()
    await warehouse.open()
    same = settlement()
    mine, others = lines(same, settlement()), lines(same, first=7)
    assert await warehouse.take([page(mine), page(others, tenant=OTHER)]) == Taken(3, 0)
    assert len(await rows(postgres, database)) == 2
    assert len(await rows(postgres, database, OTHER)) == 1
    marks = await warehouse_of().open()
    assert {tenant: mark.entry for tenant, mark in marks.items()} == {ACME: "2-0", OTHER: "7-0"}


async def test_same_batch_twice_changes_no_row(
    postgres: PostgresServer, database: str, warehouse_of: OpenWarehouse
) -> None:
    """Whoever begins anew from the beginning writes nothing that is there, not even the time of its export."""
    warehouse = warehouse_of()
    await warehouse.open()
    some = lines(settlement(), settlement(), settlement())
    await warehouse.take([page(some)])
    before = await rows(postgres, database)
    assert await warehouse.take([page(some, page(some).last)]) == Taken(0, 0)
    assert await rows(postgres, database) == before


async def test_one_turn_twice_in_a_batch_is_one_row(
    postgres: PostgresServer, database: str, warehouse_of: OpenWarehouse
) -> None:
    """A stream that says something twice is believed the second time, and the batch is taken."""
    warehouse = warehouse_of()
    await warehouse.open()
    one = settlement(source="estimated")
    again = msgspec.structs.replace(one, total_tokens=99)
    assert await warehouse.take([page(lines(one, again))]) == Taken(1, 0)
    assert [row["total_tokens"] for row in await rows(postgres, database)] == [99]


async def test_later_word_replaces_an_earlier_one_unless_it_knows_less(
    postgres: PostgresServer, database: str, warehouse_of: OpenWarehouse
) -> None:
    """A store that lost a turn may settle it anew: the later word counts, but never an estimate above what was told."""
    warehouse = warehouse_of()
    await warehouse.open()
    told, guessed = settlement(), settlement(source="estimated")
    await warehouse.take([page(first := lines(told, guessed))])
    known_less = msgspec.structs.replace(told, source="estimated", total_tokens=1, state=TurnState.FAILED)
    read_back = msgspec.structs.replace(guessed, source="read_back", total_tokens=2)
    assert await warehouse.take([page(lines(known_less, read_back, first=3), page(first).last)]) == Taken(1, 0)
    found = {row["turn_id"]: as_settlement(row) for row in await rows(postgres, database)}
    assert found == {told.turn_id: told, guessed.turn_id: read_back}


async def test_two_writers_at_once_write_once_and_one_is_told(
    postgres: PostgresServer, database: str, warehouse_of: OpenWarehouse
) -> None:
    """Of two that follow the same mark one moves it; the other is told that it is late, and has changed nothing."""
    writers = [warehouse_of() for _ in range(2)]
    for writer in writers:
        await writer.open()
    mark = None
    for number in range(10):
        pages = [[page(lines(settlement(), first=2 * number + i), mark)] for i in range(2)]
        outcomes = await asyncio.gather(
            *(writer.take(its) for writer, its in zip(writers, pages, strict=True)), return_exceptions=True
        )
        late = [error for error in outcomes if isinstance(error, WarehouseError)]
        assert [error.trouble for error in late] == [Trouble.STALE]
        marks = await writers[0].open()
        mark = marks[ACME]
        assert await writers[1].open() == marks
        assert len(await rows(postgres, database)) == number + 1


async def test_mark_that_went_back_is_told(
    postgres: PostgresServer, database: str, warehouse_of: OpenWarehouse
) -> None:
    """A database restored from a backup under a live writer is not written on as if it had what it lost."""
    warehouse = warehouse_of()
    await warehouse.open()
    await warehouse.take([page(first := lines(settlement()))])
    await postgres.execute(database, "DELETE FROM hyperleap.marks")
    with pytest.raises(WarehouseError) as caught:
        await warehouse.take([page(lines(settlement(), first=2), page(first).last)])
    assert caught.value.trouble is Trouble.STALE
    assert len(await rows(postgres, database)) == 1


# --- what is no settlement ----------------------------------------------------------------------------------------


async def test_line_that_is_no_settlement_is_set_aside(
    postgres: PostgresServer, database: str, warehouse_of: OpenWarehouse
) -> None:
    """One bad entry holds up nobody: it is kept as it is, with the reason, and the marks move on, also past a last."""
    warehouse = warehouse_of()
    await warehouse.open()
    good = [settlement(), settlement(), settlement()]
    some = lines(*good)
    broken = msgspec.json.encode(settlement()).replace(b"2026-11-21", b"2026-31-21")
    bad = [Line("4-0", b"{"), Line("5-0", b"\xff\x00"), Line("6-0", b"{}"), Line("7-0", broken)]
    mixed = [some[0], bad[0], bad[1], some[1], bad[2], bad[3]]
    numbered = [Line(f"{number}-0", line.body) for number, line in enumerate(mixed, 1)]
    both = [page(numbered), page([some[2]], tenant=OTHER)]
    assert await warehouse.take(both) == Taken(3, 4)
    assert len(await rows(postgres, database)) == 2
    assert len(await rows(postgres, database, OTHER)) == 1
    aside = await postgres.fetch(database, "SELECT entry, body, why FROM hyperleap.unreadable ORDER BY entry")
    assert [(row["entry"], row["body"]) for row in aside] == [tuple(numbered[i]) for i in (1, 2, 4, 5)]
    assert all("(22" in row["why"] or "(23" in row["why"] for row in aside)
    mark = (await warehouse.open())[ACME]
    assert mark == page(numbered).last
    assert await warehouse.take([page(lines(settlement(), first=9), mark)]) == Taken(1, 0)


async def test_many_lines_that_are_no_settlements_hold_up_nobody(
    postgres: PostgresServer, database: str, warehouse_of: OpenWarehouse
) -> None:
    """A page in which every third line is bad is taken whole, in its order, and found again as it was."""
    warehouse = warehouse_of()
    await warehouse.open()
    bodies = [msgspec.json.encode(settlement()) if number % 3 else b"[]" for number in range(200)]
    some = [Line(f"{number}-0", body) for number, body in enumerate(bodies, 1)]
    assert await warehouse.take([page(some)]) == Taken(133, 67)
    assert (await warehouse.open())[ACME] == page(some).last
    assert len(await postgres.fetch(database, "SELECT 1 FROM hyperleap.unreadable")) == 67


async def test_nul_in_a_vendors_word_is_taken(
    postgres: PostgresServer, database: str, warehouse_of: OpenWarehouse
) -> None:
    """PostgreSQL's text has no NUL, and a finish reason is the vendor's to choose."""
    warehouse = warehouse_of()
    await warehouse.open()
    assert await warehouse.take([page(lines(settlement(reason="st\0op", message_id="ä\u2028\\u0000")))]) == Taken(1, 0)
    (row,) = await rows(postgres, database)
    assert row["reason"] == "st\ufffdop"


# --- cut short ----------------------------------------------------------------------------------------------------


async def blocked(postgres: PostgresServer, database: str) -> asyncpg.Connection:
    """Hold the settlements, so that whoever writes there waits in the middle of its statement."""
    connection = await asyncpg.connect(postgres.url(database))
    await connection.execute("BEGIN; LOCK TABLE hyperleap.settlements IN EXCLUSIVE MODE")
    return connection


async def until_waiting(postgres: PostgresServer, database: str) -> None:
    query = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = $1"
    async with asyncio.timeout(PATIENCE_S):
        while not await postgres.fetch(database, query, database):
            await asyncio.sleep(0.01)


async def test_take_that_is_cancelled_leaves_nothing_half_done(
    postgres: PostgresServer, database: str, warehouse_of: OpenWarehouse
) -> None:
    """An exporter that ends in mid-batch leaves neither rows nor a mark, and the next one takes all."""
    warehouse = warehouse_of()
    await warehouse.open()
    holder = await blocked(postgres, database)
    task = asyncio.create_task(warehouse.take([page(some := lines(settlement(), settlement()))]))
    await until_waiting(postgres, database)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await holder.execute("ROLLBACK")
    await holder.close()
    async with asyncio.timeout(PATIENCE_S):  # the server learns by itself that nobody waits for it any more
        while await postgres.fetch(
            database, "SELECT 1 FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid()", database
        ):
            await asyncio.sleep(0.01)
    if marks := await warehouse.open():  # it got that far before it learned it: then whole
        assert len(await rows(postgres, database)) == 2
        assert marks == {ACME: page(some).last}
    else:
        assert await rows(postgres, database) == []
        assert await warehouse.take([page(some)]) == Taken(2, 0)


async def test_take_that_takes_too_long_is_given_up(
    postgres: PostgresServer, database: str, warehouse_of: OpenWarehouse
) -> None:
    """A batch that hangs ends within its time, as a trouble that names the database."""
    warehouse = warehouse_of(take_s=0.3)
    await warehouse.open()
    holder = await blocked(postgres, database)
    with pytest.raises(WarehouseError, match=f"127.0.0.1:{postgres.port}/{database}: no answer in time") as caught:
        await warehouse.take([page(lines(settlement()))])
    assert caught.value.trouble is Trouble.AWAY
    await holder.close()


async def test_server_that_stands_still_holds_nobody_up(
    own_postgres: PostgresServer, warehouse_of: OpenWarehouse
) -> None:
    """A server whose processes are stopped answers nothing at all: batch, new connection and end are bounded."""
    url = own_postgres.url("postgres")
    warehouse = warehouse_of(url=url, connect_s=0.3, take_s=0.3)
    await warehouse.open()
    own_postgres.pause()
    async with asyncio.timeout(PATIENCE_S):
        for attempt in (lambda: warehouse.take([page(lines(settlement()))]), warehouse.open):
            with pytest.raises(WarehouseError) as caught:
                await attempt()
            assert caught.value.trouble is Trouble.AWAY
        await warehouse.aclose()
        own_postgres.resume()
        troubles = {Trouble.AWAY}
        while troubles == {Trouble.AWAY}:
            try:
                await warehouse.open()
                break
            except WarehouseError as error:
                troubles.add(error.trouble)
    assert await warehouse.take([page(lines(settlement()))]) == Taken(1, 0)


async def test_server_killed_and_started_has_what_it_said_it_had(
    own_postgres: PostgresServer, warehouse_of: OpenWarehouse
) -> None:
    """``kill -9`` of PostgreSQL: what was taken is there with its mark; while it is away, that is said."""
    warehouse = warehouse_of(url=own_postgres.url("postgres"))
    await warehouse.open()
    await warehouse.take([page(some := lines(settlement()))])
    own_postgres.kill()
    later = page(lines(settlement(), first=2), page(some).last)
    for attempt in (lambda: warehouse.take([later]), warehouse.open):
        with pytest.raises(WarehouseError) as caught:
            await attempt()
        assert caught.value.trouble is Trouble.AWAY
    await own_postgres.start()
    assert await warehouse.open() == {ACME: page(some).last}
    assert await warehouse.take([later]) == Taken(1, 0)


# --- refused ------------------------------------------------------------------------------------------------------


async def refusal(warehouse: Any) -> WarehouseError:
    """Open a warehouse that must refuse."""
    with pytest.raises(WarehouseError) as caught:
        await warehouse.open()
    return caught.value


async def test_read_only_database_is_refused_before_anything_is_done(
    postgres: PostgresServer, database: str, warehouse_of: OpenWarehouse
) -> None:
    """A database that was made read-only is named as such, and is as it was."""
    await postgres.execute(database, f'ALTER DATABASE "{database}" SET default_transaction_read_only = on')
    error = await refusal(warehouse_of())
    assert error.trouble is Trouble.READ_ONLY
    assert str(error).startswith(f"postgresql://127.0.0.1:{postgres.port}/{database}: is read-only")
    assert await postgres.fetch(database, "SELECT 1 FROM pg_namespace WHERE nspname = 'hyperleap'") == []


async def test_standby_is_refused_as_read_only(own_postgres: PostgresServer, warehouse_of: OpenWarehouse) -> None:
    """A server that turned standby refuses what it took before; of several hosts none is the primary then."""
    url = own_postgres.url("postgres")
    warehouse = warehouse_of(url=url)
    await warehouse.open()
    await own_postgres.stop()
    own_postgres.make_standby()
    await own_postgres.start()
    error = await refusal(warehouse)
    assert error.trouble is Trouble.READ_ONLY
    assert "a standby" in str(error)
    many = url.replace(f":{own_postgres.port}/", f":{own_postgres.port},localhost:{own_postgres.port}/")
    assert (await refusal(warehouse_of(url=many))).trouble is Trouble.READ_ONLY


async def test_database_that_turns_read_only_under_a_writer_takes_nothing(
    own_postgres: PostgresServer, warehouse_of: OpenWarehouse
) -> None:
    """A batch meets read-only in its middle: nothing of it is there, and the next try says so before it begins."""
    warehouse = warehouse_of(url=own_postgres.url("postgres"))
    await warehouse.open()
    await own_postgres.execute("postgres", "ALTER SYSTEM SET default_transaction_read_only = on")
    await own_postgres.execute("postgres", "SELECT pg_reload_conf()")
    async with asyncio.timeout(PATIENCE_S):
        trouble, number, mark = None, 1, None
        while trouble is None:  # its process reads the configuration when it next waits for a statement
            some = lines(settlement(), first=number)
            try:
                await warehouse.take([page(some, mark)])
                number, mark = number + 1, page(some, mark).last
            except WarehouseError as error:
                trouble = error.trouble
    assert trouble is Trouble.READ_ONLY
    assert len(await rows(own_postgres, "postgres")) == number - 1
    assert (await refusal(warehouse)).trouble is Trouble.READ_ONLY


async def test_wrong_password_is_told_without_it(
    postgres: PostgresServer, database: str, warehouse_of: OpenWarehouse
) -> None:
    """Who is not let in is told by whom; neither the wrong password nor the right one is in the words."""
    wrong = "another-password-that-no-log-may-show"
    error = await refusal(warehouse_of(url=postgres.url(database, password=wrong)))
    assert error.trouble is Trouble.REFUSED
    assert "password authentication failed" in str(error)
    assert wrong not in str(error)
    assert PASSWORD not in str(error)
    assert error.__cause__ is None
    assert (await refusal(warehouse_of(url=postgres.url("no_such_database")))).trouble is Trouble.REFUSED


async def test_server_that_is_not_there_is_away(warehouse_of: OpenWarehouse, tmp_path: Path) -> None:
    """Nobody listens, or there is no such socket: it is away, and named."""
    for url in ("postgresql://u:p@127.0.0.1:1/x", f"postgresql://u:p@/x?host={tmp_path}"):
        assert (await refusal(warehouse_of(url=url))).trouble is Trouble.AWAY


async def test_tls_is_checked_where_it_is_asked_for(
    own_postgres: PostgresServer, warehouse_of: OpenWarehouse, tmp_path: Path
) -> None:
    """With ``verify-full`` a server that the CA vouches for by its name is exported to, and no other."""
    ca, stranger = trustme.CA(), trustme.CA()
    certificate = ca.issue_cert("localhost")
    own_postgres.serve_tls(certificate.cert_chain_pems[0].bytes(), certificate.private_key_pem.bytes())
    await own_postgres.stop()
    await own_postgres.start()
    for name, authority in (("ca.pem", ca), ("stranger.pem", stranger)):
        authority.cert_pem.write_to_path(str(tmp_path / name))
    url = own_postgres.url("postgres").replace("127.0.0.1", "localhost")
    verified = f"{url}?sslmode=verify-full&sslrootcert={tmp_path}"
    warehouse = warehouse_of(url=f"{verified}/ca.pem")
    await warehouse.open()
    assert await warehouse.take([page(lines(settlement()))]) == Taken(1, 0)
    for wrong in (f"{verified}/stranger.pem", f"{verified}/ca.pem".replace("localhost", "127.0.0.1")):
        error = await refusal(warehouse_of(url=wrong))
        assert error.trouble is Trouble.REFUSED
        assert "certificate" in str(error).lower()
    error = await refusal(warehouse_of(url=f"{verified}/missing.pem"))
    assert error.trouble is Trouble.UNSET
    assert "sslrootcert" in str(error)


async def test_role_without_privileges_is_told_which(
    postgres: PostgresServer, database: str, warehouse_of: OpenWarehouse
) -> None:
    """A role that may not make tables is told what to do; once they are there, each privilege that it lacks."""
    role = f"{database}_writer"
    await postgres.execute(database, f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
    warehouse = warehouse_of(url=postgres.url(database, user=role))
    error = await refusal(warehouse)
    assert error.trouble is Trouble.FORBIDDEN
    assert f"the role {role} may not make the schema hyperleap" in str(error)
    await warehouse_of().open()
    error = await refusal(warehouse)
    assert error.trouble is Trouble.FORBIDDEN
    assert "USAGE on schema hyperleap" in str(error)
    await postgres.execute(
        database,
        f"GRANT USAGE ON SCHEMA hyperleap TO {role}",
        f"GRANT SELECT, INSERT, UPDATE ON hyperleap.settlements, hyperleap.marks TO {role}",
        f"GRANT SELECT ON hyperleap.migrations TO {role}",
    )
    assert str(await refusal(warehouse)).endswith("lacks INSERT on unreadable, SELECT on unreadable")
    await postgres.execute(database, f"GRANT SELECT, INSERT ON hyperleap.unreadable TO {role}")
    await warehouse.open()
    assert await warehouse.take([page([*lines(settlement()), Line("2-0", b"{")])]) == Taken(1, 1)
    await postgres.execute(database, f"REVOKE UPDATE ON hyperleap.marks FROM {role}")
    with pytest.raises(WarehouseError, match="permission denied for table marks") as caught:
        await warehouse.take([page(lines(settlement(), first=3), Mark("2-0", ""))])
    assert caught.value.trouble is Trouble.FORBIDDEN
