"""``deploy/compose.yaml``: a valid Compose file whose parts fit each other, our settings and the image."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis.asyncio
import yaml
from aiohttp import ClientSession

from gateway.check import check_keys, check_secrets
from gateway.lifecycle import drain_longest_s
from gateway.settings import load
from gateway.simulator.server import DEFAULT_API_KEY, Simulator, SimulatorSettings
from gateway.store.embedded import find_servers
from tests.store.topologies import free_port
from tests.test_commands import run
from tests.transports.client import eventually

DEPLOY = Path(__file__).parents[2] / "deploy"
GATEWAYS = ("gateway-1", "gateway-2")
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def demo_env() -> dict[str, str]:
    lines = (DEPLOY / "demo.env").read_text("utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def composed(environ: Mapping[str, str]) -> Any:
    """Read the file as Compose does with these variables."""

    def value(match: re.Match[str]) -> str:
        name, kind, words = match.groups()
        if environ.get(name):
            return environ[name]
        assert kind != "?", f"{name}: {words}"
        return words if kind == "-" else ""

    def filled(node: Any) -> Any:
        match node:
            case dict():
                return {key: filled(one) for key, one in node.items()}
            case list():
                return [filled(one) for one in node]
            case str():
                return VARIABLE.sub(value, node)
        return node

    return filled(yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8")))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory where ``secrets.sh`` was run, twice: the second changes nothing."""
    directory = tmp_path_factory.mktemp("deploy")
    script = shutil.copy(DEPLOY / "secrets.sh", directory)
    subprocess.run([script], check=True, capture_output=True, env={"PATH": "/usr/bin:/bin"})
    before = {path.name: path.read_bytes() for path in (directory / "secrets").iterdir()}
    subprocess.run([script], check=True, capture_output=True, env={"PATH": "/usr/bin:/bin", "HYPERLEAP_API_KEY": "x"})
    assert {path.name: path.read_bytes() for path in (directory / "secrets").iterdir()} == before
    assert (directory / "secrets").stat().st_mode & 0o777 == 0o700
    return directory


def environment(document: Any, name: str, directory: Path) -> dict[str, str]:
    """The variables of a service, with its secrets where ``secrets.sh`` has made them."""
    service = document["services"][name]
    mounted = {f"/run/secrets/{one}": directory / document["secrets"][one]["file"] for one in service["secrets"]}
    found = {}
    for key, text in service["environment"].items():
        if text.startswith("/run/secrets/"):
            assert text in mounted, f"{key} of {name} is not mounted"
            text = str(mounted[text])
        found[key] = text
    return found


def test_compose_file_is_valid() -> None:
    """The schema of the Compose specification finds nothing."""
    pytest.importorskip("check_jsonschema", reason="no check-jsonschema: pip install check-jsonschema")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    told = subprocess.run([*command, str(DEPLOY / "compose.yaml")], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout


def test_every_mount_secret_network_and_volume_is_there() -> None:
    """Whatever a service names exists: files in ``deploy``, secrets that ``secrets.sh`` makes, the rest in the file."""
    document = composed(demo_env())
    for name, service in document["services"].items():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in document["volumes"], (
                name,
                volume,
            )
        networks = service["networks"]
        assert set(networks) <= set(document["networks"]), name
        assert set(service.get("secrets", ())) <= set(document["secrets"]), name
        assert set(service.get("depends_on", ())) <= set(document["services"]), name
    script = (DEPLOY / "secrets.sh").read_text("utf-8")
    for secret in document["secrets"]:
        assert re.search(rf"\b{secret}\b", script), secret


def test_every_service_is_held_down() -> None:
    """All have a read-only root, no capability but one, no new privileges, limits, one version of an image, a check."""
    for name, service in composed(demo_env())["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service.get("cap_add", []) == (["NET_BIND_SERVICE"] if name == "caddy" else []), name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "healthcheck" in service, name
        assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}, name
        image, _, tag = service["image"].rpartition(":")
        assert image, name
        assert "build" in service or re.match(r"v?\d+(\.\d+)+", tag), f"{name}: {tag} is not one version"


def test_only_caddy_is_open_to_others() -> None:
    """No port but the proxy's is published beyond this machine, nor one twice; of a gateway only the internal one."""
    published = []
    for name, service in composed(demo_env())["services"].items():
        for port in service.get("ports", ()):
            assert name == "caddy" or port.startswith("127.0.0.1:"), (name, port)
            assert name not in GATEWAYS or port.endswith(":9090"), (name, port)
            published.append(port.rpartition(":")[0].rpartition(":")[2] + "/udp" * port.endswith("/udp"))
    assert len(published) == len(set(published)), published
    assert composed(demo_env())["networks"]["store"] == {"internal": True}


def test_console_is_where_the_page_says() -> None:
    """The port that the page about the console forwards is the internal one of a gateway, not Prometheus."""
    page = (DEPLOY.parent / "gateway" / "docs" / "usage-page.md").read_text("utf-8")
    told = re.search(r"\| Compose \| `ssh -L \d+:127\.0\.0\.1:(\d+) host`.* of `(gateway-\d)`", page)
    assert told is not None
    services = composed(demo_env())["services"]
    assert services[told[2]]["ports"] == [f"127.0.0.1:{told[1]}:9090"]
    assert services[told[2]]["environment"]["GATEWAY_ADMIN_TOKEN_FILE"]


@pytest.mark.parametrize("site", [None, "chat.example.com"])
def test_alerts_lead_to_where_browsers_reach_the_gateways(site: str | None) -> None:
    """Prometheus is told the address that Caddy serves, from which it makes the links to the runbook."""
    services = composed(demo_env() | ({"PROXY_SITE": site} if site else {}))["services"]
    labels = yaml.safe_load((DEPLOY / "prometheus" / "scrape.yaml").read_text("utf-8"))["global"]["external_labels"]
    assert labels["gateway_url"] == "${GATEWAY_URL}"
    url = services["prometheus"]["environment"]["GATEWAY_URL"]
    assert url == services["gateway-1"]["environment"]["GATEWAY_PUBLIC_URL"] == f"https://{site or 'localhost'}"
    assert services["caddy"]["environment"]["PROXY_SITE"] == (site or "localhost")
    major = int(re.search(r":v(\d+)\.", services["prometheus"]["image"])[1])  # type: ignore[index]  # a failure is one
    assert major >= 3  # which puts in what stands in braces by itself


def test_secrets_are_each_for_the_one_who_reads_them(made: Path) -> None:
    """No secret has two users, and as root the script leaves each readable by nobody but that one."""
    document = composed(demo_env())
    users = {"valkey": 999, "postgres": 70, "grafana": 472} | dict.fromkeys(GATEWAYS, 65532)
    readers = {
        (secret, users[name]) for name, service in document["services"].items() for secret in service.get("secrets", ())
    }
    assert len(readers) == len(document["secrets"])
    assert document["services"]["valkey"]["user"].split(":")[0] == str(users["valkey"])
    assert "USER 65532:" in (DEPLOY.parent / "Dockerfile").read_text("utf-8")
    for secret, user in readers:
        facts = (made / document["secrets"][secret]["file"]).stat()
        if os.getuid() == 0:
            assert (facts.st_uid, facts.st_mode & 0o777) == (user, 0o400), secret
        else:
            assert facts.st_mode & 0o777 == 0o444, secret


def test_gateways_load_with_what_they_are_given(made: Path) -> None:
    """Both have the same settings, which hold: real names, readable secrets, and more time to stop than they take."""
    document = composed(demo_env())
    environs = [environment(document, name, made) for name in GATEWAYS]
    assert environs[0] == environs[1]
    settings = load(None, environs[0])
    settings.tenant_values()
    assert check_secrets(settings).ok
    assert all(finding.ok for finding in check_keys(settings))
    for name in GATEWAYS:
        grace_s = float(document["services"][name]["stop_grace_period"].removesuffix("s"))
        assert grace_s > drain_longest_s(settings)
    assert made.joinpath("secrets/hyperleap-api-key").read_text().strip() == DEFAULT_API_KEY


def test_names_of_the_services_are_those_the_others_use(made: Path) -> None:
    """Caddy, Prometheus, the store's URL and the trusted proxy mean services that are on a network with who asks."""
    document = composed(demo_env())
    services = document["services"]
    settings = load(None, environment(document, GATEWAYS[0], made))

    def share(one: str, other: str) -> set[str]:
        return set(services[one]["networks"]) & set(services[other]["networks"])

    caddyfile = (DEPLOY / "proxy" / "Caddyfile").read_text("utf-8")
    given = services["caddy"]["environment"]
    assert set(re.findall(r"\bPROXY_\w+", caddyfile)) >= set(given)
    assert given["PROXY_GATEWAYS"].split() == [f"{name}:8080" for name in GATEWAYS]
    dockerfile = (DEPLOY.parent / "Dockerfile").read_text("utf-8")
    assert f"EXPOSE 8080 {given['PROXY_READY_PORT']}" in dockerfile
    address = settings.redis.address()
    assert address is not None
    assert re.search(r"//(\w+):", address)[1] == "valkey"  # type: ignore[index]  # a failure is a failure here
    ledger = urlsplit(made.joinpath("secrets/ledger-url").read_text("ascii").strip())
    given = services["postgres"]["environment"]
    assert (ledger.hostname, ledger.port) == ("postgres", 5432)
    assert (ledger.username, ledger.path) == (given["POSTGRES_USER"], f"/{given['POSTGRES_DB']}")
    assert ledger.password == made.joinpath("secrets/postgres-password").read_text("ascii").strip()
    for name in GATEWAYS:
        assert share("postgres", name) == {"store"}
        assert share("caddy", name) == {"edge"}
        assert share("valkey", name) == {"store"}
        assert share("prometheus", name) == {"watch"}
        assert services[name]["networks"]["watch"]["aliases"] == ["gateway"]
    assert not share("caddy", "valkey")
    address = services["caddy"]["networks"]["edge"]["ipv4_address"]
    assert settings.server.trusted_proxies == (f"{address}/32",)
    assert settings.upstream.base_url == "h2c://simulator:8443"
    assert share("simulator", GATEWAYS[0]) == {"edge"}


def test_image_has_what_the_file_asks_for() -> None:
    """The build's argument is one of the Dockerfile's, and the user can write to nothing but what is mounted."""
    (argument,) = composed(demo_env())["x-image"]["build"]["args"]
    assert f"ARG {argument}=" in (DEPLOY.parent / "Dockerfile").read_text("utf-8")


def test_real_name_is_asked_for() -> None:
    """Without a persona nothing starts, and the words say what to do."""
    with pytest.raises(AssertionError, match=r"HYPERLEAP_PERSONA_ID: set it in \.env"):
        composed({})


@contextlib.asynccontextmanager
async def valkey(document: Any, made: Path, tmp_path: Path) -> AsyncIterator[str]:
    """A Valkey with the command of the file, and its URL as ``secrets.sh`` writes it, but at loopback."""
    service = document["services"]["valkey"]
    program, *arguments = shlex.split(service["command"])
    assert program == "valkey-server"
    (secret,) = service["secrets"]
    places = {f"/run/secrets/{secret}": str(made / document["secrets"][secret]["file"]), "/data": str(tmp_path)}
    port = free_port()
    server = await asyncio.create_subprocess_exec(
        str(find_servers()[0].path),
        *(places.get(argument, argument) for argument in arguments),
        *("--port", str(port), "--bind", "127.0.0.1", "--logfile", str(tmp_path / "log")),
    )
    url = made.joinpath("secrets/redis-url").read_text("ascii").strip().replace("@valkey:6379", f"@127.0.0.1:{port}")
    try:
        async with redis.asyncio.Redis.from_url(url) as client:

            async def answers() -> bool:
                with contextlib.suppress(redis.ConnectionError):
                    return bool(await client.ping())
                return False

            await eventually(answers, "the store to answer", within_s=20)
        yield url
    finally:
        server.terminate()
        await server.wait()


async def test_store_keeps_what_it_is_given(made: Path, tmp_path: Path) -> None:
    """A Valkey with the command of the file lets in the gateways only, and forgets a second's worth when it crashes."""
    async with valkey(composed(demo_env()), made, tmp_path) as url:
        async with redis.asyncio.Redis.from_url(url) as client:
            for name, value in (("appendonly", "yes"), ("appendfsync", "everysec"), ("maxmemory-policy", "noeviction")):
                assert await client.config_get(name) == {name: value}
        port = urlsplit(url).port
        assert port is not None
        async with redis.asyncio.Redis(port=port) as stranger:
            with pytest.raises(redis.AuthenticationError):
                await stranger.ping()


@pytest.mark.skipif(shutil.which("redis-cli") is None, reason="no redis-cli: apt install redis-tools")
async def test_store_is_found_well_only_while_it_answers(made: Path, tmp_path: Path) -> None:
    """The health check of the file passes with the password that the store has, and fails with another."""
    document = composed(demo_env())
    kind, words = document["services"]["valkey"]["healthcheck"]["test"]
    assert kind == "CMD-SHELL"
    async with valkey(document, made, tmp_path) as url:
        port = urlsplit(url).port
        other = tmp_path / "other.conf"
        other.write_text("requirepass another\n")
        for conf, status in ((made / "secrets" / "valkey.conf", 0), (other, 1)):
            line = words.replace("$$", "$").replace("/run/secrets/valkey.conf", str(conf))
            line = line.replace("valkey-cli", f"redis-cli -p {port}")
            process = await asyncio.create_subprocess_exec("sh", "-c", line, stderr=asyncio.subprocess.DEVNULL)
            assert await process.wait() == status


async def told(*arguments: str, **environ: str) -> tuple[int | None, str, str]:
    """Run a command of the gateway to its end."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("GATEWAY_", "HYPERLEAP_"))}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", *arguments),
        env=clean | environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


@pytest.mark.slow
async def test_commands_of_the_page_work_in_a_container(made: Path, tmp_path: Path) -> None:
    """`check --production` finds nothing unsafe but the stand-in of the demo, and `keys create` makes keys."""
    page = (DEPLOY.parent / "gateway" / "docs" / "scale-out.md").read_text("utf-8")
    check, keys = (
        shlex.split(next(line for line in page.splitlines() if line.startswith(f"{shell} {word}")))[5:]
        for shell in ("docker compose exec gateway-1 hyperleap-gateway",)
        for word in ("check", "keys")
    )
    document = composed(demo_env())
    async with valkey(document, made, tmp_path) as url, Simulator(SimulatorSettings(h2c=True)) as simulator:
        store = tmp_path / "redis-url"
        store.write_text(url)
        store.chmod(0o400)
        environ = environment(document, GATEWAYS[0], made)
        environ |= {"GATEWAY_REDIS_URL_FILE": str(store), "HYPERLEAP_BASE_URL": simulator.url}
        status, out, err = await told(*check, "--format", "json", **environ)
        assert status == 1, err  # the demo is no production
        unsafe = {
            found["subject"]: found["words"] for found in json.loads(out)["findings"] if found["severity"] == "unsafe"
        }
        expected = {"simulator"} if os.getuid() == 0 else {"simulator", "secret-readable"}
        assert set(unsafe) == expected, unsafe
        status, out, err = await told(*keys, **environ)
        assert status == 0, err
        assert re.search(r"\bhgs_default\.", out)


async def test_gateway_starts_with_the_environment_of_the_file(made: Path, tmp_path: Path, store_url: str) -> None:
    """What a container is given starts a gateway that is ready, with the store and the vendor put at loopback."""
    async with Simulator(SimulatorSettings(h2c=True)) as simulator:
        environ = environment(composed(demo_env()), GATEWAYS[0], made)
        store = tmp_path / "redis-url"
        store.write_text(store_url)
        environ |= {"GATEWAY_REDIS_URL_FILE": str(store), "HYPERLEAP_BASE_URL": simulator.url}
        environ |= {"GATEWAY_DRAIN_NOTICE_S": "0"}
        arguments = ("--port", "0", "--internal-port", "0", "--env-file", str(tmp_path / "gateway.env"))
        async with run(tmp_path, "serve", *arguments, **environ) as command:
            facts = await command.facts()
            async with ClientSession() as http, http.get(f"{facts['GATEWAY_INTERNAL_URL']}/readyz") as response:
                assert response.status == 200, await response.text()
            await command.end()
            assert command.process.returncode == 0
