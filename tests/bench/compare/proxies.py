"""Programs that are compared where they are installed: how each is found, configured and started.

All pass every event on as it comes, keep connections to the source open, write no access log and have one worker
(Caddy has no such choice). LiteLLM has no database; it does not start without a key, so its clients show one.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# Where programs run, as daemons do. LiteLLM imports from two directories above the current one whatever is there.
ROOT: Final = Path("/")
LITELLM_KEY: Final = f"sk-{secrets.token_hex(32)}"
VERSION_S: Final = 60.0  # LiteLLM imports everything before it says its version

_NGINX: Final = """\
worker_processes 1;
daemon off;
pid nginx.pid;
error_log stderr crit;
events { worker_connections 8192; }
http {
    access_log off;
    upstream source { server 127.0.0.1:%(source)d; keepalive 2048; keepalive_requests 1000000; }
    server {
        listen 127.0.0.1:%(port)d backlog=1024;
        keepalive_requests 1000000;
        location / {
            proxy_pass http://source;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_read_timeout 600s;
        }
    }
}
"""

_HAPROXY: Final = """\
global
    nbthread 1
    maxconn 4096
defaults
    mode http
    maxconn 4096
    timeout connect 10s
    timeout client 600s
    timeout server 600s
    http-reuse always
    option http-no-delay
frontend clients
    bind 127.0.0.1:%(port)d backlog 1024
    default_backend source
backend source
    server source 127.0.0.1:%(source)d
"""

_LITELLM: Final = """\
model_list:
  - model_name: bench
    litellm_params:
      model: openai/bench
      api_base: http://127.0.0.1:%(source)d/v1
      api_key: none
litellm_settings:
  request_timeout: 600
  num_retries: 0
"""


@dataclass(frozen=True, slots=True)
class Program:
    """A program, and what makes a proxy of it."""

    name: str
    title: str
    path: Path
    version: str
    # Writes its configuration for (directory, its port, the source's port) and returns the command's arguments.
    configure: Callable[[Path, int, int], list[str]]
    environ: dict[str, str]

    def command(self, directory: Path, port: int, source_port: int) -> list[str]:
        directory.mkdir()
        return [str(self.path), *self.configure(directory, port, source_port)]


def installed(litellm: Path | None) -> tuple[list[Program], list[str]]:
    """Find the programs; returns those that are there, and a line on each that is not.

    ``litellm`` is the virtual environment that LiteLLM is in, or its program.
    """
    if litellm is not None and litellm.is_dir():
        litellm = litellm / "bin" / "litellm"
    found, missing = [], []
    for name, (title, version, configure, environ) in _KNOWN.items():
        if name == "litellm":
            place = shutil.which(litellm.absolute()) if litellm is not None else None
            where = "no --litellm" if litellm is None else f"not at {litellm}"
        else:
            place, where = shutil.which(name), "not on PATH"
        if place is None:
            missing.append(f"{title}: skipped, {where}")
        else:
            found.append(Program(name, title, Path(place), _version([place, *version]), configure, environ))
    return found, missing


def _version(command: list[str]) -> str:
    told = subprocess.run(command, capture_output=True, text=True, timeout=VERSION_S, check=False, cwd=ROOT)
    found = re.search(r"\d+\.\d+\.\d+", told.stdout + told.stderr)
    return found[0] if found else "unknown"


def _nginx(directory: Path, port: int, source_port: int) -> list[str]:
    return ["-p", str(directory), "-c", _written(directory / "nginx.conf", _NGINX, port, source_port)]


def _haproxy(directory: Path, port: int, source_port: int) -> list[str]:
    return ["-db", "-f", _written(directory / "haproxy.cfg", _HAPROXY, port, source_port)]


def _litellm(directory: Path, port: int, source_port: int) -> list[str]:
    config = _written(directory / "litellm.yaml", _LITELLM, port, source_port)
    return [
        "--config",
        config,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--num_workers",
        "1",
        "--telemetry",
        "False",
    ]


def _caddy(directory: Path, port: int, source_port: int) -> list[str]:
    handler = {
        "handler": "reverse_proxy",
        "flush_interval": -1,
        "upstreams": [{"dial": f"127.0.0.1:{source_port}"}],
        "transport": {"protocol": "http", "keep_alive": {"max_idle_conns_per_host": 2048}},
    }
    server = {"listen": [f"127.0.0.1:{port}"], "routes": [{"handle": [handler]}], "automatic_https": {"disable": True}}
    document = {
        "admin": {"disabled": True},
        "storage": {"module": "file_system", "root": str(directory)},
        "apps": {"http": {"servers": {"bench": server}}},
    }
    path = directory / "caddy.json"
    path.write_text(json.dumps(document))
    return ["run", "--config", str(path)]


def _envoy(directory: Path, port: int, source_port: int) -> list[str]:
    def address(at: int) -> dict[str, object]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": at}}

    http = "type.googleapis.com/envoy.extensions.filters"
    route = {"match": {"prefix": "/"}, "route": {"cluster": "source", "timeout": "0s"}}
    connections = {
        "@type": f"{http}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "route_config": {"virtual_hosts": [{"name": "bench", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{http}.http.router.v3.Router"}}
        ],
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": connections}]
    endpoint = {"endpoint": {"address": address(source_port)}}
    many = {"max_connections": 4096, "max_pending_requests": 4096, "max_requests": 4096}
    cluster = {
        "name": "source",
        "type": "STATIC",
        "load_assignment": {"cluster_name": "source", "endpoints": [{"lb_endpoints": [endpoint]}]},
        "circuit_breakers": {"thresholds": [many]},
    }
    listener = {"name": "clients", "address": address(port), "filter_chains": [{"filters": filters}]}
    path = directory / "envoy.json"
    path.write_text(json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}}))
    return ["-c", str(path), "--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]


def _written(path: Path, text: str, port: int, source_port: int) -> str:
    path.write_text(text % {"port": port, "source": source_port})
    return str(path)


_KNOWN: Final[dict[str, tuple[str, list[str], Callable[[Path, int, int], list[str]], dict[str, str]]]] = {
    "nginx": ("nginx", ["-v"], _nginx, {}),
    "haproxy": ("HAProxy", ["-v"], _haproxy, {}),
    "envoy": ("Envoy", ["--version"], _envoy, {}),
    "caddy": ("Caddy", ["version"], _caddy, {}),
    # It asks the network for its list of prices unless told not to, and logs every request at its usual level.
    "litellm": (
        "LiteLLM proxy",
        ["--version"],
        _litellm,
        {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_MASTER_KEY": LITELLM_KEY},
    ),
}
NAMES: Final = tuple(_KNOWN)
