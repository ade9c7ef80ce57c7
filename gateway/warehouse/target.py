"""Where settlements are exported to, as the settings say: a URL, or a file with one, read for each connection."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Final

from gateway.core.warehouse import Trouble, WarehouseError
from gateway.ledger_url import LedgerUrl
from gateway.options import LedgerSettings
from gateway.sections import Secret, SettingsError, reason
from gateway.telemetry.logging import conceal

TLS_FILES: Final = frozenset({"sslrootcert", "sslcert", "sslkey", "sslcrl"})
CONCEALED_CHARS: Final = 12  # a shorter password may be a word that logs are made of; URLs lose theirs in any case
MISSING: Final = 'needs the package asyncpg: pip install "hyperleap-gateway[postgres]"'


class Target:
    """Reads the URL; a password that was rotated in its file is found by the next connection."""

    def __init__(self, settings: LedgerSettings) -> None:
        self._settings = settings
        self.schema = settings.schema

    @property
    def key(self) -> str:
        """The variable that says it."""
        return "GATEWAY_LEDGER_URL" if self._settings.url is not None else "GATEWAY_LEDGER_URL_FILE"

    def require(self) -> LedgerUrl:
        """Return the URL, whose password no log will show. Raises SettingsError, also where the driver is missing."""
        if importlib.util.find_spec("asyncpg") is None:
            raise SettingsError(self.key, MISSING)
        url, path = self._settings.url, self._settings.url_file
        if url is None:
            assert path is not None, "only who has set one of them has a target"
            try:
                if path.exists() and not path.is_file():  # a pipe would hold up the event loop
                    raise SettingsError(self.key, f"{path} is not a regular file")
                text = path.read_text("utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(self.key, f"cannot read {path}: {reason(error)}") from None
            if not text:
                raise SettingsError(self.key, f"{path} is empty")
            url = Secret(text)
        try:
            found = LedgerUrl.parse(url.reveal())
        except ValueError as error:
            raise SettingsError(self.key, str(error)) from None
        for name in TLS_FILES & found.tls_options.keys():
            if not Path(found.tls_options[name]).is_file():
                raise SettingsError(self.key, f"{name}: there is no file {found.tls_options[name]}")
        if found.password is not None and len(found.password) >= CONCEALED_CHARS:
            conceal(Secret(found.password))
        return found

    def read(self) -> LedgerUrl:
        """Return the URL as it is now; raises WarehouseError."""
        try:
            return self.require()
        except SettingsError as error:
            raise WarehouseError(Trouble.UNSET, str(error)) from None
