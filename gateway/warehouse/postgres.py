"""The warehouse in PostgreSQL, over one connection of asyncpg.

asyncpg, since it is asyncio all the way, carries a batch as binary arrays of one statement, and is one wheel without a
libpq or an OpenSSL of its own; psycopg has these and, under the LGPL, another licence than the gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

import asyncpg

from gateway.core.identity import TenantId
from gateway.core.warehouse import Line, Mark, Page, Taken, Trouble, WarehouseError
from gateway.warehouse.faults import ALL, UNREADABLE, told
from gateway.warehouse.statements import Migration, create_schema, migrations, statement
from gateway.warehouse.target import Target

CONNECT_S: Final = 5.0
TAKE_S: Final = 10.0  # a batch; an exporter's post must last longer
MIGRATE_S: Final = 600.0
CLOSE_S: Final = 1.0


class Facts(NamedTuple):
    """What a database is to the gateway; nothing was changed to find it out."""

    server: str  # its version
    role: str
    has_schema: bool
    version: int  # of the gateway's tables; 0: there are none
    newest: int  # that this gateway knows

    def __str__(self) -> str:
        state = f"at version {self.version}" if self.version else "to be made"
        if 0 < self.version < self.newest:
            state += f", to be brought to {self.newest}"
        return f"PostgreSQL {self.server}, role {self.role}, tables {state}"


class _Unreadable(Exception):
    """A line among those given is no settlement; the words say why."""


class Postgres:
    """Warehouse over three tables of a schema: settlements, marks, and what is no settlement.

    An error or a cancellation gives the connection up, so that nothing is left of a statement under way; ``open``
    makes a new one.
    """

    def __init__(
        self,
        target: Target,
        *,
        connect_s: float = CONNECT_S,
        take_s: float = TAKE_S,
        steps: Sequence[Migration] | None = None,
    ) -> None:
        """``connect_s`` and ``take_s`` bound a connection's making and a batch; ``steps`` make the tables.

        Opens no connection and reads no file.
        """
        self._target = target
        self._schema = target.schema
        self._connect_s = connect_s
        self._take_s = take_s
        self._migrations = migrations(target.schema) if steps is None else steps
        self._take = statement("take", target.schema)
        self._set_aside = statement("set_aside", target.schema)
        self._connection: Any = None  # asyncpg tells mypy nothing
        self._address = ""

    async def open(self) -> Mapping[TenantId, Mark]:
        facts = await self.inspect()
        if facts.version < facts.newest:
            await self.migrate()
        async with self._asking(self._take_s) as connection:
            rows = await connection.fetch(statement("marks", self._schema))
            return {TenantId(row["tenant"]): Mark(row["entry"], row["turn_id"]) for row in rows}

    async def inspect(self) -> Facts:
        """Connect anew, change nothing, and say what is there. Raises WarehouseError for what stops an export."""
        await self.aclose()
        await self._connect()
        async with self._asking(self._take_s) as connection:
            row = await connection.fetchrow(statement("inspect", self._schema), self._schema)
            if row["read_only"]:
                why = "a standby" if row["standby"] else "default_transaction_read_only is on"
                raise self._error(Trouble.READ_ONLY, f"is read-only ({why}); nothing is exported")
            version = 0
            if row["has_tables"]:
                lacking = [] if row["may_use"] else [f"USAGE on schema {self._schema}"]
                lacking += [r["lacking"] for r in await connection.fetch(statement("privileges", ""), self._schema)]
                if lacking:
                    raise self._error(Trouble.FORBIDDEN, f"the role {row['role']} lacks {', '.join(lacking)}")
                version = await connection.fetchval(statement("version", self._schema))
            newest = len(self._migrations)
            if version > newest:
                raise self._error(
                    Trouble.NEWER,
                    f"a newer gateway has brought the schema {self._schema} to version {version}, and this one knows"
                    f" {newest}: run the newer one",
                )
            if version < newest and not (row["may_create"] if row["has_schema"] else row["may_create_schema"]):
                what = f"tables in the schema {self._schema}" if row["has_schema"] else f"the schema {self._schema}"
                raise self._error(
                    Trouble.FORBIDDEN,
                    f"the role {row['role']} may not make {what}; let one that may run: hyperleap-gateway ledger"
                    " migrate",
                )
            return Facts(row["version"], row["role"], row["has_schema"], version, newest)

    async def migrate(self) -> list[str]:
        """Bring the tables to the newest version, in one transaction, and return the steps taken.

        Of several that do so at once, one does. The connection must be open (``inspect``).
        """
        async with self._asking(MIGRATE_S) as connection:
            await connection.execute("BEGIN")
            await connection.execute(statement("lock", self._schema), self._schema)
            row = await connection.fetchrow(statement("inspect", self._schema), self._schema)
            if not row["has_schema"]:
                await connection.execute(create_schema(self._schema))
            if not row["has_tables"]:
                await connection.execute(statement("versions", self._schema))
            version = await connection.fetchval(statement("version", self._schema))
            for step in self._migrations[version:]:
                await connection.execute(step.sql)
                await connection.execute(statement("applied", self._schema), step.version, step.name)
            await connection.execute("COMMIT")
            return [f"{step.version:04} {step.name}" for step in self._migrations[version:]]

    async def take(self, pages: Sequence[Page]) -> Taken:
        try:
            return Taken(await self._write(pages), 0)
        except _Unreadable:
            taken = [await self._take_apart(page) for page in pages]
            return Taken(sum(part.written for part in taken), sum(part.unreadable for part in taken))

    async def _take_apart(self, page: Page) -> Taken:
        """Take a page that may hold a line that is no settlement, by halves, until that one is alone."""
        try:
            return Taken(await self._write([page]), 0)
        except _Unreadable as error:
            if len(page.lines) == 1:
                await self._put_aside(page, str(error))
                return Taken(0, 1)
        half = len(page.lines) // 2
        first = Page(page.tenant, page.before, page.lines[:half])
        second = Page(page.tenant, first.last, page.lines[half:])
        taken = await self._take_apart(first), await self._take_apart(second)
        return Taken(taken[0].written + taken[1].written, taken[0].unreadable + taken[1].unreadable)

    async def _write(self, pages: Sequence[Page]) -> int:
        """Write pages and move their marks in one statement; raises _Unreadable with nothing done."""
        arguments = (
            [page.tenant for page in pages],
            [_entry(page.before) for page in pages],
            [page.last.entry for page in pages],
            [page.last.turn_id for page in pages],
            [page.tenant for page in pages for _ in page.lines],
            [_json(line) for page in pages for line in page.lines],
        )
        async with self._asking(self._take_s) as connection:
            try:
                row = await connection.fetchrow(self._take, *arguments)
            except UNREADABLE as error:
                why = str(told(error, self._address))
            else:
                self._require(row["ours"], pages)
                written: int = row["written"]
                return written
        raise _Unreadable(why)

    async def _put_aside(self, page: Page, why: str) -> None:
        async with self._asking(self._take_s) as connection:
            arguments = (page.tenant, _entry(page.before), *page.last, page.lines[0].body, why)
            self._require(await connection.fetchval(self._set_aside, *arguments), [page])

    def _require(self, moved: Sequence[str], pages: Sequence[Page]) -> None:
        if len(moved) < len(pages):
            raise self._error(Trouble.STALE, "somebody else has exported meanwhile, or it went back in time")

    async def aclose(self) -> None:
        """Safe to repeat."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(*ALL):
                await connection.close(timeout=CLOSE_S)

    async def _connect(self) -> None:
        url = self._target.read()
        self._address = url.address
        options = urlencode(url.tls_options)
        async with self._bounded(self._connect_s):
            self._connection = await asyncpg.connect(
                f"postgresql://?{options}" if options else None,
                host=[host.host for host in url.hosts],
                port=[host.port for host in url.hosts],
                user=url.user,
                password=url.password,
                passfile=url.passfile,
                database=url.database,
                target_session_attrs=url.target_session_attrs or ("read-write" if len(url.hosts) > 1 else None),
                timeout=None,
                server_settings={"application_name": "hyperleap-gateway"},
            )

    @contextlib.asynccontextmanager
    async def _asking(self, timeout_s: float) -> AsyncIterator[Any]:
        """Give the connection for so long; see ``_bounded``."""
        async with self._bounded(timeout_s):
            if self._connection is None:
                raise self._error(Trouble.AWAY, "the connection was given up")
            yield self._connection

    @contextlib.asynccontextmanager
    async def _bounded(self, timeout_s: float) -> AsyncIterator[None]:
        """Whatever goes wrong within is told as the warehouse's, and the connection given up."""
        try:
            async with asyncio.timeout(timeout_s):
                yield
        except ALL as error:
            self._give_up()
            raise told(error, self._address) from None  # its DETAIL may quote rows
        except BaseException:
            self._give_up()
            raise

    def _give_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    def _error(self, trouble: Trouble, words: str) -> WarehouseError:
        return WarehouseError(trouble, f"{self._address}: {words}")


def _entry(mark: Mark | None) -> str | None:
    return mark.entry if mark is not None else None


def _json(line: Line) -> str:
    """Return a settlement as JSON that PostgreSQL takes: its text holds no NUL, which a vendor's word might."""
    return line.body.replace(b"\\u0000", b"\\ufffd").decode(errors="replace")
