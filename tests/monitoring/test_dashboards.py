"""Dashboards: what Grafana would show, as far as that can be told without it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from tests.monitoring.files import (
    ALL,
    DASHBOARDS,
    GRAFANA,
    dashboard,
    described,
    filled,
    load_yaml,
    needs_promtool,
    panels,
)
from tests.monitoring.test_rules import promtool

UNITS = {"bytes", "none", "ops", "percentunit", "reqps", "s", "short"}
KINDS = {"timeseries", "stat", "bargauge"}
WIDTH = 24

each_dashboard = pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)


def test_there_is_a_dashboard_of_each_kind() -> None:
    """Service, tenants, upstream and Redis, each with an address of its own that stays."""
    assert [path.stem for path in DASHBOARDS] == ["redis", "service", "tenants", "upstream"]
    assert [dashboard(path)["uid"] for path in DASHBOARDS] == [f"hyperleap-gateway-{path.stem}" for path in DASHBOARDS]


@each_dashboard
def test_panels_have_ids_of_their_own_and_lie_beside_each_other(path: Path) -> None:
    """No two panels share an id or a place, and none hangs over the edge."""
    found = dashboard(path)["panels"]
    ids = [panel["id"] for panel in found]
    assert len(ids) == len(set(ids))
    titles = [panel["title"] for panel in found]
    assert len(titles) == len(set(titles))
    taken: set[tuple[int, int]] = set()
    for panel in found:
        place = panel["gridPos"]
        assert 0 <= place["x"] < place["x"] + place["w"] <= WIDTH, panel["title"]
        cells = set(
            itertools.product(range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"]))
        )
        assert not cells & taken, panel["title"]
        taken |= cells


@each_dashboard
def test_every_panel_says_what_it_shows_and_in_what_unit(path: Path) -> None:
    """A description, a unit, names for its lines, and the data source that was chosen, for every query."""
    for panel in dashboard(path)["panels"]:
        if panel["type"] == "row":
            continue
        assert panel["type"] in KINDS, panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert panel["targets"], panel["title"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(references) == len(set(references)), panel["title"]
        for target in panel["targets"]:
            assert target["legendFormat"], panel["title"]
            assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        steps = panel["fieldConfig"]["defaults"].get("thresholds", {"steps": [{"value": None}]})["steps"]
        values = [step["value"] for step in steps]
        assert values[0] is None
        assert values[1:] == sorted(values[1:]), panel["title"]


@each_dashboard
def test_variables_are_declared_and_used(path: Path) -> None:
    """Each dashboard chooses its data source; what its queries name, and nothing else, can be chosen there."""
    found = dashboard(path)
    variables = {variable["name"]: variable for variable in found["templating"]["list"]}
    assert next(iter(variables)) == "datasource"
    assert variables["datasource"]["type"] == "datasource"
    queries = [query for panel in panels() if panel.dashboard == path.stem for query in panel.queries]
    for name in variables.keys() - {"datasource"}:
        assert any(f'=~"${name}"' in query for query in queries), name
        assert variables[name]["allValue"] == ".*"
        asked = variables[name]["definition"].removeprefix("label_values(").partition("{")[0].partition(",")[0]
        assert asked in described(), name
    for query in queries:
        filled(
            query, {name: ALL[name] for name in (*(variables.keys() - {"datasource"}), "__rate_interval", "__range")}
        )
    assert found["schemaVersion"] >= 39


@needs_promtool
def test_every_query_can_be_read_by_prometheus(tmp_path: Path) -> None:
    """promtool takes every panel's queries as rules."""
    recorded: list[dict[str, Any]] = [
        {"record": f"panel:{number}:{index}", "expr": filled(query, ALL), "labels": {"of": str(panel)}}
        for number, panel in enumerate(panels())
        for index, query in enumerate(panel.queries)
    ]
    path = tmp_path / "panels.yaml"
    path.write_text(json.dumps({"groups": [{"name": "panels", "rules": recorded}]}), "utf-8")  # JSON is YAML
    assert f"{len(recorded)} rules found" in promtool("check", "rules", path)


def test_provisioning_points_to_the_dashboards_and_to_prometheus() -> None:
    """Grafana's own files: one data source, and one folder of dashboards that are not changed in the browser."""
    (source,) = load_yaml(GRAFANA / "provisioning" / "datasources" / "prometheus.yaml")["datasources"]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    assert source["jsonData"]["timeInterval"] == "15s"
    (provider,) = load_yaml(GRAFANA / "provisioning" / "dashboards" / "gateway.yaml")["providers"]
    assert (provider["type"], provider["allowUiUpdates"]) == ("file", False)
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
