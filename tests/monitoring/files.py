"""The files below ``deploy/`` for Prometheus and Grafana, as their tests read them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

ROOT: Final = Path(__file__).parent.parent.parent
PROMETHEUS: Final = ROOT / "deploy" / "prometheus"
GRAFANA: Final = ROOT / "deploy" / "grafana"
DASHBOARDS: Final = sorted(GRAFANA.glob("*.json"))
RUNBOOK: Final = ROOT / "gateway" / "docs" / "runbook.md"
RULE_FILES: Final = (PROMETHEUS / "rules.yaml", PROMETHEUS / "alerts.yaml")

needs_promtool: Final = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: apt install prometheus)"
)
needs_prometheus: Final = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="Prometheus is not installed (Debian: apt install prometheus)"
)


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel of a dashboard, with the queries that it asks."""

    dashboard: str
    title: str
    queries: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.dashboard}: {self.title}"


def load_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


def rules() -> list[dict[str, Any]]:
    """Every rule, recorded ones first."""
    return [rule for path in RULE_FILES for group in load_yaml(path)["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    """The alerts by name."""
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def dashboard(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return loaded


def panels() -> Iterator[Panel]:
    """Every panel of every dashboard that asks something."""
    for path in DASHBOARDS:
        for panel in dashboard(path)["panels"]:
            if panel["type"] != "row":
                queries = tuple(target["expr"] for target in panel["targets"])
                yield Panel(path.stem, panel["title"], queries)


def filled(query: str, values: Mapping[str, str]) -> str:
    """Put values in the place of a query's variables, as Grafana does; raises KeyError for one that nobody declares."""
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda found: values[found[1] or found[2]], query)


ALL: Final = {  # every variable as it is when a dashboard is opened, and what Grafana has of its own
    **dict.fromkeys(("job", "instance", "tenant", "persona", "key"), ".*"),
    "__rate_interval": "5m",
    "__range": "1h",
}

_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"')
_MATCHERS = re.compile(r"\{[^{}]*\}")
_WINDOWS = re.compile(r"\[[^\[\]]*\]")
_LABELS = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^()]*\)")
_NAMES = re.compile(r"(?<![\w:.])[a-zA-Z_:][\w:]*(?!\s*\()(?![\w:])")
_WORDS = frozenset({"and", "or", "unless", "bool", "offset", "by", "on", "without"})


def metrics_of(query: str) -> set[str]:
    """Return the names of the metrics that a query asks for."""
    for part in (_STRINGS, _MATCHERS, _WINDOWS, _LABELS):
        query = part.sub(" ", query)
    return set(_NAMES.findall(query)) - _WORDS


def described() -> dict[str, str]:
    """The metrics of ``metrics.md``: their type by name, where histograms are their three series each."""
    found: dict[str, str] = {}
    page = (ROOT / "gateway" / "docs" / "metrics.md").read_text("utf-8")
    for name, kind in re.findall(r"^\| `(\w+)` \| (\w+) \|", page, re.MULTILINE):
        for series in [f"{name}_{end}" for end in ("bucket", "count", "sum")] if kind == "histogram" else [name]:
            found[series] = kind
    return found
