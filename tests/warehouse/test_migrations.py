"""The tables: made once by however many, brought forward whole or not at all, never taken for an older gateway's."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.core.warehouse import Taken, Trouble, WarehouseError
from gateway.warehouse.statements import Migration, migrations, script
from tests.postgres import PostgresServer
from tests.warehouse.conftest import OpenWarehouse, lines, page, settlement

COLUMNS = """
    SELECT table_name, column_name, data_type, is_nullable, column_default,
           col_description(format('%I.%I', table_schema, table_name)::regclass, ordinal_position) AS comment
    FROM information_schema.columns WHERE table_schema = $1 ORDER BY table_name, ordinal_position
"""
INDEXES = "SELECT tablename, indexdef FROM pg_indexes WHERE schemaname = $1 ORDER BY indexdef"


async def shape(postgres: PostgresServer, database: str, schema: str = "hyperleap") -> list[dict[str, Any]]:
    return await postgres.fetch(database, COLUMNS, schema) + await postgres.fetch(database, INDEXES, schema)


async def test_many_that_begin_at_once_make_the_tables_once(
    postgres: PostgresServer, database: str, warehouse_of: OpenWarehouse
) -> None:
    """Ten gateways meet an empty database in the same moment: all can export, each step was taken once."""
    warehouses = [warehouse_of() for _ in range(10)]
    await asyncio.gather(*(warehouse.open() for warehouse in warehouses))
    applied = await postgres.fetch(database, "SELECT version, name FROM hyperleap.migrations ORDER BY version")
    assert applied == [{"version": step.version, "name": step.name} for step in migrations("hyperleap")]
    assert str(await warehouses[0].inspect()).endswith(f"at version {len(applied)}")


async def test_every_column_of_the_settlements_is_explained_or_plain(
    postgres: PostgresServer, database: str, warehouse_of: OpenWarehouse
) -> None:
    """Who reads the table in a client finds there what a column means; counts of tokens say it by their name."""
    await warehouse_of().open()
    columns = await postgres.fetch(database, COLUMNS, "hyperleap")
    plain = [row["column_name"] for row in columns if row["table_name"] == "settlements" and row["comment"] is None]
    assert plain == ["prompt_tokens", "completion_tokens", "total_tokens"]


async def test_printed_script_makes_the_same_tables(
    postgres: PostgresServer, database: str, warehouse_of: OpenWarehouse
) -> None:
    """Who lets a database administrator make the tables gets what the gateway would have made, and it is content."""
    other = await postgres.database()
    await postgres.execute(other, script("hyperleap"))
    await warehouse_of().open()
    assert await shape(postgres, other) == await shape(postgres, database)
    facts = await warehouse_of(url=postgres.url(other)).inspect()
    assert facts.version == facts.newest


async def test_schema_of_any_plain_name_holds_all_tables(
    postgres: PostgresServer, database: str, warehouse_of: OpenWarehouse
) -> None:
    """Two gateways can share a database by two schemas, also under names that are words of SQL."""
    for schema in ("user", "billing_2"):
        warehouse = warehouse_of(schema=schema)
        await warehouse.open()
        assert await warehouse.take([page(lines(settlement()))]) == Taken(1, 0)
        assert len(await postgres.fetch(database, f'SELECT 1 FROM "{schema}".settlements')) == 1
    spaces = "SELECT nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg!_%' ESCAPE '!' ORDER BY 1"
    assert [row["nspname"] for row in await postgres.fetch(database, spaces)] == [
        "billing_2", "information_schema", "public", "user",
    ]  # fmt: skip


def with_second(sql: str) -> list[Migration]:
    return [*migrations("hyperleap"), Migration(len(migrations("hyperleap")) + 1, "second", sql)]


async def test_upgrade_keeps_rows_and_an_older_gateway_is_refused(
    postgres: PostgresServer, database: str, warehouse_of: OpenWarehouse
) -> None:
    """A newer gateway brings the tables forward under what they hold; an older one is told so and writes nothing."""
    old = warehouse_of()
    await old.open()
    await old.take([page(some := lines(settlement()))])
    steps = with_second("ALTER TABLE hyperleap.settlements ADD COLUMN region text")
    new = warehouse_of(steps=steps)
    marks = await new.open()
    assert marks == {page(some).tenant: page(some).last}
    assert await postgres.fetch(database, "SELECT region FROM hyperleap.settlements") == [{"region": None}]
    # One that was connected before goes on: a step may add, and takes nothing away.
    assert await old.take([page(lines(settlement(), first=2), page(some).last)]) == Taken(1, 0)
    with pytest.raises(WarehouseError) as caught:
        await old.open()
    assert caught.value.trouble is Trouble.NEWER
    assert f"to version {len(steps)}, and this one knows {len(steps) - 1}" in str(caught.value)


async def test_upgrade_that_fails_changes_nothing(
    postgres: PostgresServer, database: str, warehouse_of: OpenWarehouse
) -> None:
    """A step that breaks in its middle takes the steps before it with it, and the older gateway goes on."""
    old = warehouse_of()
    await old.open()
    before = await shape(postgres, database)
    broken = with_second("ALTER TABLE hyperleap.settlements ADD COLUMN region text; SELECT 1/0")
    with pytest.raises(WarehouseError, match="division by zero") as caught:
        await warehouse_of(steps=broken).open()
    assert caught.value.trouble is Trouble.FAILED
    assert await shape(postgres, database) == before
    await old.open()


async def test_first_migration_that_fails_leaves_an_empty_database(
    postgres: PostgresServer, database: str, warehouse_of: OpenWarehouse
) -> None:
    """The schema itself is part of the step."""
    with pytest.raises(WarehouseError):
        await warehouse_of(steps=with_second("SELECT 1/0")).open()
    assert await postgres.fetch(database, "SELECT 1 FROM pg_namespace WHERE nspname = 'hyperleap'") == []
