"""Rules and alerts: what promtool says of them, and what each alert must bring along."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from gateway.telemetry.turns import GENAI_SECONDS
from tests.monitoring.files import (
    DASHBOARDS,
    PROMETHEUS,
    ROOT,
    RULE_FILES,
    RUNBOOK,
    alerts,
    dashboard,
    described,
    load_yaml,
    metrics_of,
    needs_promtool,
    panels,
    rules,
)
from tests.monitoring.prometheus import faster_query

OF_PROMETHEUS = {"up", "ALERTS"}
OF_PROCESSES = {  # prometheus-client's own, on Linux
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
}


def promtool(*arguments: str | Path) -> str:
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_promtool_takes_the_configuration_and_its_rules() -> None:
    """Prometheus would start with these files as they lie in the repository, without a warning."""
    told = promtool("check", "config", PROMETHEUS / "scrape.yaml")
    assert "valid prometheus config file syntax" in told
    assert f"{len(rules())} rules found" not in told  # each file by itself:
    for path in RULE_FILES:
        count = sum(len(group["rules"]) for group in load_yaml(path)["groups"])
        assert f"{count} rules found" in promtool("check", "rules", "--lint=all", "--lint-fatal", path)


@needs_promtool
def test_burn_rates_page_when_they_should_and_not_before() -> None:
    """The objectives at their real windows: see the cases in ``rules_test.yaml``."""
    assert "SUCCESS" in promtool("test", "rules", Path(__file__).with_name("rules_test.yaml"))


def test_every_metric_that_is_asked_for_exists() -> None:
    """Rules and panels ask for what ``metrics.md``, the rules, the process and Prometheus itself have, nothing else."""
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    known = described().keys() | OF_PROMETHEUS | OF_PROCESSES | recorded
    asked = {name: str(rule.get("alert") or rule["record"]) for rule in rules() for name in metrics_of(rule["expr"])}
    asked |= {name: str(panel) for panel in panels() for query in panel.queries for name in metrics_of(query)}
    assert {name: where for name, where in asked.items() if name not in known} == {}
    assert recorded - asked.keys() == set()  # nothing is recorded for nobody
    assert len(asked) > 60


def test_every_alert_says_how_urgent_it_is_and_where_to_go_on() -> None:
    """An alert is a page or a ticket, and has a summary, a description, a dashboard that exists and its runbook."""
    uids = {dashboard(path)["uid"] for path in DASHBOARDS}
    assert len(alerts()) > 25
    for name, rule in alerts().items():
        assert rule["labels"] in ({"severity": "page"}, {"severity": "ticket"}), name
        notes = rule["annotations"]
        assert set(notes) == {"summary", "description", "dashboard", "runbook_url"}, name
        assert notes["dashboard"].removeprefix("/d/") in uids, name
        assert notes["runbook_url"] == f"{{{{ $externalLabels.gateway_url }}}}/docs/runbook#{name.lower()}"
        assert notes["summary"][0] in "{ABCDEFGHIJKLMNOPQRSTUVWXYZ", name
        assert len(notes["summary"]) < 100, name
        told = set(re.findall(r"\$labels\.(\w+)", notes["summary"] + notes["description"]))
        assert told <= _labels_of(rule["expr"]), name
    assert load_yaml(PROMETHEUS / "scrape.yaml")["global"]["external_labels"]["gateway_url"] == "${GATEWAY_URL}"


def _labels_of(query: str) -> set[str]:
    """Labels that an alert's series can have: those that it groups by, or the objectives' own."""
    found = {"job", "instance"} if query.startswith("up{") else set()
    for names in re.findall(r"\bby\s*\(([^()]*)\)", query):
        found |= {name.strip() for name in names.split(",")}
    if "gateway:slo_" in query:
        found |= {"job", "slo"}
    if "gateway:redis_call_seconds_bucket" in query:
        found |= {"job", "instance"}
    return found


def test_every_alert_has_its_section_in_the_runbook_and_none_is_left_over() -> None:
    """Each section says how urgent its alert is, who is hurt, what to look at and what to do."""
    sections = dict(re.findall(r"^## (\w+)\n\n(.*?)(?=^## |\Z)", RUNBOOK.read_text("utf-8"), re.MULTILINE | re.DOTALL))
    assert list(sections) == list(alerts())  # and in their order
    for name, text in sections.items():
        assert text.startswith(f"*{alerts()[name]['labels']['severity']}.* "), name
        assert re.findall(r"^- \*\*(.+?)\*\*: \S", text, re.MULTILINE) == ["Hurt", "Look at", "Do"], name


def test_runbook_names_panels_and_events_that_exist() -> None:
    """What somebody is sent to in the night is there: panels by their title, settings and log events by their name."""
    text = RUNBOOK.read_text("utf-8")
    titles = {panel.title for panel in panels()}
    named = set(re.findall(r"“([^”]+)”", text))
    assert named - titles == set()
    assert len(named) > 15
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "gateway").rglob("*.py"))
    settings = (ROOT / "gateway" / "docs" / "settings.md").read_text("utf-8")
    for name in set(re.findall(r"`([a-z_]+\.[a-z_]+)`", text)):
        assert f'"{name}"' in sources or f"`{name}`" in settings or name in ("rules.yaml",), name
    for name in set(re.findall(r"`((?:GATEWAY|HYPERLEAP)_[A-Z_]+)`", text)):
        assert f"`{name}`" in settings, name


def test_first_token_objective_lies_on_a_bucket() -> None:
    """The share of answers that begin in time can be told only at a bound of the histogram."""
    (late,) = {
        bound for rule in rules() for bound in re.findall(r'first_chunk_seconds_bucket\{le="([\d.]+)"', rule["expr"])
    }
    assert float(late) in GENAI_SECONDS.bounds


@pytest.mark.parametrize(
    ("query", "names"),
    [
        (
            'sum by (job) (rate(a_total{x="b_total"}[5m])) / on (slo) group_left () (1 - c:d:ratio)',
            {"a_total", "c:d:ratio"},
        ),
        ("histogram_quantile(0.99, e_bucket) > 5 / 3600 and f offset 1h", {"e_bucket", "f"}),
    ],
)
def test_metrics_of_a_query_are_found(query: str, names: set[str]) -> None:
    """Labels, strings, functions and durations are no metrics."""
    assert metrics_of(query) == names


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("gateway:slo_burn:rate5m > 2", "gateway:slo_burn:rate5m > 2"),
        ("avg_over_time(x:rate5m[1h]) > 5 / 3600", "avg_over_time(x:rate5m[60000ms]) > 5 / 3600"),
        (
            "max_over_time(x[10m:1m]) or y[3d] offset 30s",
            "max_over_time(x[10000ms:1000ms]) or y[4320000ms] offset 500ms",
        ),
    ],
)
def test_only_times_of_a_query_are_made_faster(query: str, told: str) -> None:
    """The live test changes windows and offsets, so that what it fires is the alerts themselves."""
    assert faster_query(query) == told
