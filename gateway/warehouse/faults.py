"""What PostgreSQL and its driver raise, told as a trouble of the warehouse.

Words are the server's first line only: its DETAIL may quote rows. Codes: PostgreSQL's manual, appendix A.
"""

from __future__ import annotations

import ssl
from typing import Final

import asyncpg

from gateway.core.warehouse import Trouble, WarehouseError

BY_STATE: Final = {
    "25006": Trouble.READ_ONLY,  # read_only_sql_transaction
    "42501": Trouble.FORBIDDEN,  # insufficient_privilege
    "3D000": Trouble.REFUSED,  # invalid_catalog_name: there is no such database
    "57P01": Trouble.AWAY,  # admin_shutdown
    "57P02": Trouble.AWAY,  # crash_shutdown
    "57P03": Trouble.AWAY,  # cannot_connect_now
    "57P05": Trouble.AWAY,  # idle_session_timeout
    "53300": Trouble.AWAY,  # too_many_connections
}
BY_CLASS: Final = {"08": Trouble.AWAY, "28": Trouble.REFUSED}
# The fault is in a line, not in the database: data that does not fit (22), a column that must be there and is not (23).
UNREADABLE: Final = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)
ALL: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, ValueError)


def told(error: BaseException, address: str) -> WarehouseError:
    """Return the trouble that an error of the driver is; ``address`` names the database."""
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return WarehouseError(Trouble.READ_ONLY, f"{address}: no server there is as target_session_attrs asks")
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or ""
        trouble = BY_STATE.get(state) or BY_CLASS.get(state[:2]) or Trouble.FAILED
        return WarehouseError(trouble, f"{address}: {_words(error)} ({state})")
    if isinstance(error, ssl.SSLError):
        return WarehouseError(Trouble.REFUSED, f"{address}: {_words(error)}")
    if isinstance(error, TimeoutError):
        return WarehouseError(Trouble.AWAY, f"{address}: no answer in time")
    if isinstance(error, asyncpg.ClientConfigurationError):
        return WarehouseError(Trouble.UNSET, f"{address}: {_words(error)}")
    if isinstance(error, asyncpg.InterfaceError | OSError):
        return WarehouseError(Trouble.AWAY, f"{address}: {_words(error)}")
    return WarehouseError(Trouble.UNSET, f"{address}: {_words(error)}")


def _words(error: BaseException) -> str:
    lines = str(error.args[0] if len(error.args) == 1 else error).splitlines()
    return lines[0] if lines else type(error).__name__
