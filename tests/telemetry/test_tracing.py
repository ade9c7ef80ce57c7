"""Whether there is tracing, and what is said where there cannot be; places in traces."""

from __future__ import annotations

import ast
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gateway
from gateway.options import TracingSettings
from gateway.sections import SettingsError
from gateway.telemetry.otel import FACTS, GEN_AI, attributes
from gateway.telemetry.spans import NOWHERE, parse, parse_state
from gateway.telemetry.tracing import FRESH_CHARS, OFF, open_tracing

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
FRESH = "a" * 32 + "b" * 16
PLACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    ("environ", "key"),
    [
        ({"OTEL_TRACES_EXPORTER": "console"}, "OTEL_TRACES_EXPORTER"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL"),
        ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"}, "OTEL_EXPORTER_OTLP_PROTOCOL"),
    ],
)
def test_what_cannot_be_had_stops_the_start_only_where_our_own_setting_asks(
    environ: dict[str, str], key: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Asked for by ``GATEWAY_TRACING`` it is an error that names the variable; by a host's variables, a warning."""
    caplog.set_level(logging.INFO)
    with pytest.raises(SettingsError) as raised:
        open_tracing(TracingSettings(export="otlp"), instance="w", environ={**ENDPOINT, **environ})
    assert raised.value.key == key
    assert open_tracing(TracingSettings(), instance="w", environ={**ENDPOINT, **environ}) is OFF
    assert [record.getMessage() for record in caplog.records] == ["tracing.off"]


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Without OpenTelemetry the error says what to install; a host's variables alone stop nothing."""
    caplog.set_level(logging.INFO)
    monkeypatch.delitem(sys.modules, "gateway.telemetry.otel")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(SettingsError, match=r"pip install 'hyperleap-gateway\[otel\]'"):
        open_tracing(TracingSettings(export="otlp"), instance="w", environ={})
    assert open_tracing(TracingSettings(), instance="w", environ=ENDPOINT) is OFF
    assert [record.getMessage() for record in caplog.records] == ["tracing.off"]


def test_gateway_that_is_not_traced_imports_no_opentelemetry() -> None:
    """A worker without tracing neither needs OpenTelemetry nor waits for it."""
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"  # as where the extra is not installed
        "import gateway.app, gateway.lifecycle; sys.exit('gateway.telemetry.otel' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("shown", "read"),
    [
        (PLACE, True),
        (PLACE.replace("00-4", "cc-4", 1) + "-what-comes-later", True),
        (PLACE + "-more", False),
        (PLACE.replace("00-4", "ff-4", 1), False),
        (PLACE.upper(), False),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", False),
        (f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01", False),
        (PLACE + "\n", False),
        ("", False),
    ],
)
def test_traceparent_is_read_as_the_standard_says(shown: str, read: bool) -> None:
    """Later versions are read as far as they are known; what breaks the form is ignored (W3C Trace Context, 3.2)."""
    assert (parse(shown) is not None) is read
    assert (OFF.request(shown, "", FRESH).trace_id == PLACE[3:35]) is read


@pytest.mark.parametrize(
    ("shown", "read"),
    [
        ("congo=t61rcWkgMzE, ,rojo=00f067aa0ba902b7", [("congo", "t61rcWkgMzE"), ("rojo", "00f067aa0ba902b7")]),
        ("tenant@vendor=a b", [("tenant@vendor", "a b")]),
        ("", []),
        ("congo=1,congo=2", []),
        ("Congo=1", []),
        ("congo=1,no member", []),
        ("congo=a=b", []),
        (",".join(f"k{n}=v" for n in range(33)), []),
        ("k=" + "v" * 511, []),
        ("k=v\u00e9", []),
    ],
)
def test_tracestate_is_read_whole_or_not_at_all(shown: str, read: list[tuple[str, str]]) -> None:
    """One member that breaks the form, or one too many, and none is passed on (W3C Trace Context, 3.3)."""
    assert parse_state(shown) == read


def test_place_outside_of_any_trace_has_no_id() -> None:
    """What is done for nobody's request tells no trace."""
    assert (NOWHERE.trace_id, NOWHERE.sampled, list(NOWHERE.outgoing)) == ("", False, [])
    assert len(FRESH) == FRESH_CHARS


def test_facts_without_a_name_in_spans_cannot_be_told() -> None:
    """Nothing gets into a span but what the table of facts lists: no prompt, no answer, no key has a name there."""
    assert attributes({"message": "Hi", "tenant": "t", "status": None}) == {"gateway.tenant": "t"}
    assert not {"message", "text", "token", "secret", "user_id", "comments"} & FACTS.keys()


def test_page_names_every_attribute() -> None:
    """``gateway/docs/tracing.md`` lists all that a span may tell."""
    page = (Path(gateway.__file__).parent / "docs" / "tracing.md").read_text("utf-8")
    wanted = {*FACTS.values(), *GEN_AI, "error.type"}
    assert sorted(name for name in wanted if f"`{name}`" not in page) == []


def test_every_fact_that_is_told_has_a_name_in_spans() -> None:
    """No call tells a span what would be lost on the way out."""
    told: dict[str, str] = {}
    for path in sorted(Path(gateway.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner = ast.unparse(node.func.value)
            verb = node.func.attr
            if (verb in ("begin", "tell", "end") and re.search(r"span|_call|CURRENT|outer", owner)) or (
                verb in ("request", "command", "rescue") and owner.endswith("tracing")
            ):
                told |= {word.arg: f"{path.name}:{node.lineno}" for word in node.keywords if word.arg is not None}
    assert len(told) > 20
    assert {fact: where for fact, where in told.items() if fact not in FACTS} == {}
    assert FACTS.keys() - told.keys() == set()
