"""``deploy/kubernetes``: manifests that the schemas take, whose parts fit each other, our settings and the image."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import re
import secrets
import tomllib
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # has no types
import pytest
import yaml
from aiohttp import ClientSession

from gateway import __version__
from gateway.app import build
from gateway.lifecycle import HARD_DEADLINE_EXTRA_S, drain_longest_s
from gateway.secret_files import load as load_secrets
from gateway.settings import Settings, load
from gateway.store_url import StoreUrl
from tests.conftest import VENDOR_KEY, Running

SHIPPED = Path(__file__).parents[2] / "deploy" / "kubernetes"
REDIS = sorted((SHIPPED / "redis").glob("*.yaml"))
FILES = [*sorted(SHIPPED.glob("*.yaml")), *REDIS]
VERSIONS = ("1.29", "1.33", "1.37")
NAME = "hyperleap-gateway"


@functools.cache
def parsed(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text("utf-8")))


def documents(*paths: Path) -> list[Any]:
    return copy.deepcopy(list(itertools.chain.from_iterable(parsed(path) for path in paths)))


def one(kind: str, name: str = NAME) -> Any:
    """The only object of a kind and name."""
    (found,) = [
        document
        for document in documents(*sorted(SHIPPED.glob("*.yaml")), REDIS[0])
        if (document["kind"], document["metadata"]["name"]) == (kind, name)
    ]
    return found


def pod() -> Any:
    return one("Deployment")["spec"]["template"]["spec"]


def container() -> Any:
    (only,) = pod()["containers"]
    return only


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """What a pod reads: the ConfigMaps and keys mounted, with ``tmp_path`` for the root."""
    volumes = {volume["name"]: volume for volume in pod()["volumes"]}
    for mount in container()["volumeMounts"]:
        volume, place = volumes[mount["name"]], tmp_path / mount["mountPath"].lstrip("/")
        place.mkdir(parents=True)
        if "configMap" in volume:
            for file, text in one("ConfigMap", volume["configMap"]["name"])["data"].items():
                (place / file).write_text(re.sub(r'"(?=/(etc|run)/)', f'"{tmp_path}', text), "utf-8")
        elif "secret" in volume:
            for key in keys_told():
                path = place / key
                path.write_text(VENDOR_KEY if key == "hyperleap-api-key" else secrets.token_hex(32))
                path.chmod(0o400)
    environ = {}
    for variable in container()["env"]:
        if "value" in variable:
            environ[variable["name"]] = re.sub(r"^/", f"{tmp_path}/", variable["value"])
        else:
            reference = variable["valueFrom"]["secretKeyRef"]
            environ[variable["name"]] = one("Secret", reference["name"])["stringData"][reference["key"]]
    return load(None, environ)


def keys_told() -> set[str]:
    """The keys of the secret that the first file tells one to make."""
    text = (SHIPPED / "namespace.yaml").read_text("utf-8")
    assert f"create secret generic {NAME}-keys" in text
    return set(re.findall(r"--from-literal=([\w-]+)=", text))


# --- each by itself ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_manifests_are_valid(version: str) -> None:
    """The API's own schemas, old and new, take every object, and no field is one that they do not know."""
    validate = pytest.importorskip("kubernetes_validate", reason="no kubernetes-validate: pip install it").validate
    checked = [document for document in documents(*FILES) if document["kind"] != "ServiceMonitor"]
    for document in checked:
        validate(document, version, strict=True)
    assert len(checked) == len(documents(*FILES)) - 1


def test_schemas_refuse_what_is_wrong() -> None:
    """A field that is misspelt is found, or the test above could not fail."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="no kubernetes-validate: pip install it")
    wrong = one("Deployment")
    wrong["spec"]["template"]["spec"]["terminationGracePeriodSecond"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_service_monitor_is_valid() -> None:
    """Of the operator's fields those that are used are written as it reads them."""
    schema = json.loads(Path(__file__).with_name("service_monitor.schema.json").read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(one("ServiceMonitor"), schema)


def test_pod_keeps_to_the_restricted_standard() -> None:
    """Pods are what their namespace enforces, and beyond: a root that cannot be written, no token of the API."""
    assert one("Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert pod()["securityContext"]["runAsNonRoot"] is True
    assert pod()["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container()["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod()["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod())
    assert container()["resources"]["limits"]["memory"]


# --- together ---------------------------------------------------------------------------------------------------------


def test_every_object_is_in_the_namespace_and_selects_the_pods() -> None:
    """Services, budget, policy and spread mean the Deployment's pods, the monitor means the internal Service."""
    labels = one("Deployment")["spec"]["template"]["metadata"]["labels"]
    for document in documents(*FILES):
        if document["kind"] != "Namespace":
            assert document["metadata"]["namespace"] == one("Namespace")["metadata"]["name"], document["kind"]
    selectors = [
        one("Deployment")["spec"]["selector"]["matchLabels"],
        one("Service")["spec"]["selector"],
        one("Service", f"{NAME}-internal")["spec"]["selector"],
        one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        *(spread["labelSelector"]["matchLabels"] for spread in pod()["topologySpreadConstraints"]),
    ]
    assert all(selector == labels for selector in selectors)
    target = one("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", NAME)
    assert "replicas" not in one("Deployment")["spec"]
    wanted = one("ServiceMonitor")["spec"]["selector"]["matchLabels"]
    monitored = [
        document["metadata"]["name"]
        for document in documents(*FILES)
        if document["kind"] == "Service" and wanted.items() <= document["metadata"]["labels"].items()
    ]
    assert monitored == [f"{NAME}-internal"]


def test_ports_are_those_of_the_image_and_the_settings(settings: Settings) -> None:
    """Every name of a port is one of the container's, which are the settings' and the image's."""
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    assert ports == {"http": settings.server.port, "internal": settings.server.internal_port}
    assert settings.server.host == settings.server.internal_host == "0.0.0.0"
    dockerfile = (SHIPPED.parents[1] / "Dockerfile").read_text("utf-8")
    assert f"EXPOSE {ports['http']} {ports['internal']}" in dockerfile
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container()[probe]["httpGet"]["port"] == "internal"
    public, internal = one("Service")["spec"], one("Service", f"{NAME}-internal")["spec"]
    assert [port["targetPort"] for port in public["ports"]] == ["http"]
    assert [port["targetPort"] for port in internal["ports"]] == ["internal"]
    assert internal["clusterIP"] == "None"
    assert {port["name"] for port in internal["ports"]} >= {
        endpoint["port"] for endpoint in one("ServiceMonitor")["spec"]["endpoints"]
    }
    opened = {rule["ports"][0]["port"]: rule["from"] for rule in one("NetworkPolicy")["spec"]["ingress"]}
    assert set(opened) == set(ports)
    assert opened["http"] != opened["internal"]


async def test_probes_ask_for_what_the_internal_port_answers(running: Running) -> None:
    """The paths of the probes and of the scrape are answered by the internal port, and by it alone."""
    paths = {container()[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    paths |= {endpoint["path"] for endpoint in one("ServiceMonitor")["spec"]["endpoints"]}
    async with ClientSession() as http:
        for path in paths:
            async with http.get(running.internal_url + path) as response:
                assert response.status == 200, path
            async with http.get(running.url + path) as response:
                assert response.status == 404, path


def test_metric_of_the_autoscaler_is_one_of_the_gateway() -> None:
    """Pods are counted by a metric that exists, under the name that the adapter's rule gives it."""
    pods = [metric["pods"] for metric in one("HorizontalPodAutoscaler")["spec"]["metrics"] if metric["type"] == "Pods"]
    (name,) = [metric["metric"]["name"] for metric in pods]
    assert f"| `{name}` | gauge |" in (SHIPPED.parents[1] / "gateway/docs/metrics.md").read_text("utf-8")
    assert f"seriesQuery: '{name}" in (SHIPPED / "autoscaling.yaml").read_text("utf-8")


def test_pod_has_time_to_drain(settings: Settings) -> None:
    """The kubelet kills nothing before the gateway would have ended itself, however long its answers take."""
    word, seconds = container()["lifecycle"]["preStop"]["exec"]["command"]
    assert word == "sleep"
    assert drain_longest_s(settings) == settings.server.drain_notice_s + settings.server.drain_s + HARD_DEADLINE_EXTRA_S
    assert pod()["terminationGracePeriodSeconds"] > float(seconds) + drain_longest_s(settings)
    probe = container()["readinessProbe"]
    assert probe["timeoutSeconds"] > settings.redis.timeout_s


def test_a_pod_starts_with_what_is_mounted(settings: Settings) -> None:
    """Settings, tenants and keys hold, and a worker is built of them; every key of the secret is one that is read."""
    keys = load_secrets(settings, embedded=False)
    assert keys.pepper != keys.signing_key
    assert set(settings.tenant_values()) == {"default"}
    assert settings.redis.url is not None
    build(settings, redis_url=settings.redis.url.reveal(), secrets=keys)
    config = tomllib.loads(one("ConfigMap")["data"]["gateway.toml"])
    files = [value for section in config.values() for key, value in section.items() if key.endswith("_file")]
    mount = "/run/secrets/hyperleap-gateway/"
    assert {file.removeprefix(mount) for file in files if file.startswith(mount)} == keys_told()


def test_every_volume_is_mounted_and_every_mount_is_a_volume() -> None:
    """Nothing is mounted twice, forgotten or by ``subPath``, and what the image calls volumes can be written."""
    mounts = container()["volumeMounts"]
    assert sorted(mount["name"] for mount in mounts) == sorted(volume["name"] for volume in pod()["volumes"])
    assert not any("subPath" in mount for mount in mounts)
    dockerfile = (SHIPPED.parents[1] / "Dockerfile").read_text("utf-8")
    found = re.search(r"^VOLUME (\[.*\])$", dockerfile, re.MULTILINE)
    assert found is not None
    assert {mount["mountPath"] for mount in mounts if not mount.get("readOnly")} == set(json.loads(found[1]))
    assert f"USER {pod()['securityContext']['runAsUser']}:{pod()['securityContext']['runAsGroup']}" in dockerfile
    assert container()["image"].rpartition(":")[2] == __version__


@pytest.mark.parametrize("path", REDIS, ids=lambda path: path.stem)
def test_each_store_is_the_secret_that_pods_read(path: Path) -> None:
    """Whichever is applied: the same name and key, a URL of that topology, to ports that the policy lets pass."""
    (document,) = documents(path)
    assert document["metadata"]["name"] == one("Secret", f"{NAME}-redis")["metadata"]["name"]
    url = StoreUrl.parse(document["stringData"]["url"])
    assert url.topology == path.stem
    passed = {port["port"] for rule in one("NetworkPolicy")["spec"]["egress"] for port in rule["ports"]}
    assert {host.port for host in url.hosts} <= passed
