"""URLs of a Redis or Valkey: one server, one under Sentinel, or a Cluster. Reads text and opens nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import parse_qsl, unquote

Topology = Literal["single", "sentinel", "cluster"]

SCHEMES: Final[Mapping[str, tuple[Topology, bool]]] = MappingProxyType(
    {  # scheme: topology, TLS
        "redis": ("single", False),
        "rediss": ("single", True),
        "unix": ("single", False),
        "redis+sentinel": ("sentinel", False),
        "rediss+sentinel": ("sentinel", True),
        "redis+cluster": ("cluster", False),
        "rediss+cluster": ("cluster", True),
    }
)
FORMS: Final = (
    "redis://, rediss://, unix://, redis+sentinel://, rediss+sentinel://, redis+cluster:// or rediss+cluster://"
)
DEFAULT_PORT: Final[Mapping[Topology, int]] = MappingProxyType({"single": 6379, "sentinel": 26379, "cluster": 6379})
# What else a client could be told (timeouts, retries, protocol …) is the gateway's own to decide.
LOGIN: Final = ("username", "password")
SENTINEL_LOGIN: Final = ("sentinel_username", "sentinel_password")
TLS_OPTIONS: Final = (
    *("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_password"),
    *("ssl_cert_reqs", "ssl_check_hostname"),
)
CHOICES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"ssl_cert_reqs": ("required", "optional", "none"), "ssl_check_hostname": ("true", "false")}
)

_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>\d{1,5}))?")


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreUrl:
    """What such a URL says. Only ``address`` is fit for printing; the rest may hold passwords, so repr omits it."""

    scheme: str
    topology: Topology
    tls: bool
    hosts: tuple[Address, ...] = ()  # of the server, of the Sentinels, or of some nodes of the Cluster
    path: str = ""  # of a unix socket
    service: str = ""  # the name under which the Sentinels know the master
    db: int = 0
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    sentinel_username: str | None = field(default=None, repr=False)
    sentinel_password: str | None = field(default=None, repr=False)
    tls_options: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def address(self) -> str:
        """The URL without user, passwords and query, fit for printing."""
        if self.path:
            return f"{self.scheme}://{self.path}"
        hosts = ",".join(map(str, self.hosts))
        service = f"/{self.service}" if self.service else ""
        return f"{self.scheme}://{hosts}{service}" + (f"/{self.db}" if self.db else "")

    @classmethod
    def parse(cls, text: str) -> StoreUrl:
        """Read a URL. Raises ValueError, whose words quote nothing that could be a secret."""
        scheme, separator, rest = text.strip().partition("://")
        scheme = scheme.lower()
        if not separator or scheme not in SCHEMES or not rest:
            raise ValueError(f"must begin with {FORMS}")
        topology, tls = SCHEMES[scheme]
        if "#" in rest:
            raise ValueError("must not hold a '#'; write %23 for one in a password")
        rest, _, query = rest.partition("?")
        options = _options(query, topology=topology, tls=tls)
        authority, slash, path = rest.partition("/")
        user, _, hosts = authority.rpartition("@")
        username, _, password = user.partition(":")
        where = {"path": unquote(slash + path)} if scheme == "unix" else _places(hosts, path, topology)
        if scheme == "unix" and (hosts or not path):
            raise ValueError("must be unix:// and the absolute path of a socket")
        return cls(
            scheme=scheme,
            topology=topology,
            tls=tls,
            db=_db(options.pop("db", None), where.pop("db", None), topology),
            username=unquote(username) or options.pop("username", None),
            password=unquote(password) or options.pop("password", None),
            sentinel_username=options.pop("sentinel_username", None),
            sentinel_password=options.pop("sentinel_password", None),
            tls_options={name: value for name, value in options.items() if name in TLS_OPTIONS},
            **where,
        )


def _options(query: str, *, topology: Topology, tls: bool) -> dict[str, str]:
    known = ["db", *LOGIN, *(SENTINEL_LOGIN if topology == "sentinel" else ()), *(TLS_OPTIONS if tls else ())]
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            shown = f"{name!r}" if re.fullmatch(r"[a-z_]{1,32}", name) else "one"  # it may be a cut password
            raise ValueError(f"has a query parameter that means nothing here ({shown}); known are {', '.join(known)}")
        if name in CHOICES and value.lower() not in CHOICES[name]:
            raise ValueError(f"{name} must be one of {', '.join(CHOICES[name])}")
        options[name] = value.lower() if name in CHOICES else value
    return options


def _places(hosts: str, path: str, topology: Topology) -> dict[str, Any]:
    """Read ``host:port[,host:port…]`` and the path behind it."""
    addresses: list[Address] = []
    for text in hosts.split(","):
        found = _HOST.fullmatch(text.strip())
        if found is None or not 0 < int(found["port"] or DEFAULT_PORT[topology]) <= 65_535:
            raise ValueError("must name host[:port] after any user:password@ (percent-encode what is special in those)")
        addresses.append(Address(found["host"].strip("[]"), int(found["port"] or DEFAULT_PORT[topology])))
    if topology == "single" and len(addresses) > 1:
        raise ValueError(
            "names several hosts; those of Sentinels go with redis+sentinel://, a Cluster's redis+cluster://"
        )
    parts = path.strip("/").split("/") if path.strip("/") else []
    service = ""
    if topology == "sentinel":
        service = unquote(parts.pop(0)) if parts else ""
        if not re.fullmatch(r"[A-Za-z0-9._-]+", service):
            raise ValueError("must name the master's service: redis+sentinel://host:port[,host:port…]/<service>[/<db>]")
    if len(parts) > 1:
        raise ValueError("has a longer path than expected")
    return {"hosts": tuple(dict.fromkeys(addresses)), "service": service, "db": parts[0] if parts else None}


def _db(named: str | None, in_path: str | None, topology: Topology) -> int:
    text = named if named is not None else in_path
    if text is None:
        return 0
    if not re.fullmatch(r"[0-9]{1,5}", text):
        raise ValueError("the database must be a number")
    if topology == "cluster" and int(text):
        raise ValueError("a Cluster has no database but 0")
    return int(text)
