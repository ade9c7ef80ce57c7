"""URLs of the PostgreSQL that settlements are exported to. Reads text and opens nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, unquote

from gateway.store_url import Address

SCHEMES: Final = ("postgresql", "postgres")
PORT: Final = 5432
LOGIN: Final = ("user", "password")
TLS_OPTIONS: Final = (
    *("sslmode", "sslrootcert", "sslcert", "sslkey", "sslpassword", "sslcrl", "sslnegotiation"),
    *("ssl_min_protocol_version", "ssl_max_protocol_version"),
)
CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "target_session_attrs": ("any", "primary", "standby", "read-write", "read-only", "prefer-standby"),
}
KNOWN: Final = ("host", "port", *LOGIN, "passfile", "target_session_attrs", *TLS_OPTIONS)

_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>\d{1,5}))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerUrl:
    """What such a URL says. Only ``address`` is fit for printing; the rest may hold passwords, so repr omits it."""

    hosts: tuple[Address, ...]  # one, or several of which one is the primary; a host that begins with / is a directory
    database: str
    user: str = field(repr=False)
    password: str | None = field(default=None, repr=False)
    passfile: str | None = None
    target_session_attrs: str | None = None
    tls_options: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def address(self) -> str:
        """The URL without user, passwords and query, fit for printing."""
        if self.hosts[0].host.startswith("/"):
            return f"postgresql:///{self.database} in {self.hosts[0].host}"
        return f"postgresql://{','.join(map(str, self.hosts))}/{self.database}"

    @classmethod
    def parse(cls, text: str) -> LedgerUrl:
        """Read a URL. Raises ValueError, whose words quote nothing that could be a secret."""
        scheme, separator, rest = text.strip().partition("://")
        if not separator or scheme.lower() not in SCHEMES:
            raise ValueError("must begin with postgresql:// or postgres://")
        if "#" in rest:
            raise ValueError("must not hold a '#'; write %23 for one in a password")
        rest, _, query = rest.partition("?")
        options = _options(query)
        authority, _, path = rest.partition("/")
        login, _, hosts = authority.rpartition("@")
        user, _, password = login.partition(":")
        if "/" in path.strip("/") or not path.strip("/"):
            raise ValueError("must name a database: postgresql://user:password@host[:port]/database")
        if not (user or options.get("user")):
            raise ValueError("must name a user: postgresql://user:password@host[:port]/database")
        return cls(
            hosts=_hosts(hosts, options.pop("host", None), options.pop("port", None)),
            database=unquote(path.strip("/")),
            user=unquote(user) or options["user"],
            password=unquote(password) or options.pop("password", None),
            passfile=options.pop("passfile", None),
            target_session_attrs=options.pop("target_session_attrs", None),
            tls_options={name: value for name, value in options.items() if name in TLS_OPTIONS},
        )


def _options(query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in KNOWN:
            shown = f"{name!r}" if re.fullmatch(r"[a-z_]{1,32}", name) else "one"  # it may be a cut password
            raise ValueError(f"has a query parameter that means nothing here ({shown}); known are {', '.join(KNOWN)}")
        if name in CHOICES and value not in CHOICES[name]:
            raise ValueError(f"{name} must be one of {', '.join(CHOICES[name])}")
        options[name] = value
    return options


def _hosts(hosts: str, directory: str | None, port: str | None) -> tuple[Address, ...]:
    """Read ``host:port[,host:port…]``, or ``?host=/directory`` of a unix socket."""
    if port is not None and not (re.fullmatch(r"\d{1,5}", port) and 0 < int(port) <= 65_535):
        raise ValueError("port must be a number up to 65535")
    if directory is not None:
        if hosts or not directory.startswith("/"):
            raise ValueError("host in the query is for the directory of a unix socket, and then the only one")
        return (Address(directory, int(port or PORT)),)
    addresses: list[Address] = []
    for text in hosts.split(","):
        found = _HOST.fullmatch(text.strip())
        if found is None or not 0 < int(found["port"] or port or PORT) <= 65_535:
            raise ValueError("must name host[:port] after any user:password@ (percent-encode what is special in those)")
        addresses.append(Address(found["host"].strip("[]"), int(found["port"] or port or PORT)))
    return tuple(dict.fromkeys(addresses))
