"""The console's files on the internal port: there where an admin token is, and nothing in them that needs one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.telemetry.metrics import Metrics
from gateway.transports.console import FILES, ROOT
from tests.conftest import Running, StartGateway

TOKEN = "0123456789abcdef0123456789abcdef-of-an-operator"
LINES_MAX = 255
CSP = "Content-Security-Policy"


@pytest.fixture
async def running(start_gateway: StartGateway, tmp_path: Path) -> Running:
    path = tmp_path / "admin-token"
    path.write_text(TOKEN, "utf-8")
    path.chmod(0o600)
    return await start_gateway(environ={"GATEWAY_ADMIN_TOKEN_FILE": str(path)})


async def test_console_is_served_without_a_token_and_holds_nothing(running: Running) -> None:
    """The page itself asks for the token; what is served before is the same for everybody, under a strict policy."""
    for path in ("/admin", "/admin/", "/admin/page/app.js", "/admin/page/dom.js", "/admin/page/style.css"):
        async with running.http.get(running.internal_url + path) as response:
            assert response.status == 200, path
            text = await response.text()
            policy = dict(part.split(" ", 1) for part in response.headers[CSP].split("; "))
            assert response.headers["Cache-Control"] == "no-cache"
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.headers["Referrer-Policy"] == "no-referrer"
            assert "Access-Control-Allow-Origin" not in response.headers
            assert "Set-Cookie" not in response.headers
        assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["require-trusted-types-for"] == "'script'"
        assert "unsafe" not in response.headers[CSP]
        assert running.tenant not in text


async def test_console_is_on_no_public_port_and_nowhere_without_an_admin_token(
    running: Running, start_gateway: StartGateway
) -> None:
    """Who cannot use it does not find it, and a name that is no file of its opens none."""
    bare = await start_gateway()
    addresses = [f"{running.url}{path}" for path in ("/admin", "/admin/page/app.js", "/page/session.js/../../console")]
    addresses += [f"{bare.internal_url}{path}" for path in ("/admin", "/admin/", "/admin/page/app.js")]
    addresses += [f"{running.internal_url}/admin/page/{name}" for name in ("..%2f__init__.py", "chat.js", "index.htm")]
    for address in addresses:
        async with running.http.get(address) as response:
            assert response.status == 404, address
    async with running.http.get(f"{running.internal_url}/admin/page/nothing.js") as response:
        assert (await response.json())["code"] == "not_found"


def test_console_asks_nobody_else_and_has_nothing_inline() -> None:
    """Every file that is named is served, nothing is from another host, and no script or style stands in the markup."""
    markup = (ROOT / "index.html").read_text("utf-8")
    assert not re.search(r"\sstyle=|<style|\son\w+=|<script(?![^>]*\ssrc=)", markup)
    for named in re.findall(r'(?:src|href)="([^"#][^"]*)"', markup):
        assert named.removeprefix("/admin/page/") in FILES, named
    for name, path in FILES.items():
        text = path.read_text("utf-8")
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), name
        for source in re.findall(r'(?:from|import) "([^"]+)"', text) if name.endswith(".js") else ():
            assert source.startswith("./"), f"{name} imports {source}"
            assert source[2:] in FILES, f"{name} imports {source}"


def test_console_makes_no_markup_of_words() -> None:
    """Names and labels reach the page as text nodes only: nothing in it parses a string as markup, or runs one."""
    dangerous = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|srcdoc|localStorage"
    )
    for name, path in FILES.items():
        if name.endswith(".js"):
            assert not re.search(dangerous, path.read_text("utf-8")), name


def test_console_modules_stay_small() -> None:
    """One noun a module, a screen or three."""
    lines = {path.name: len(path.read_text("utf-8").splitlines()) for path in ROOT.glob("*.js")}
    assert [name for name, count in lines.items() if count > LINES_MAX] == []


def test_console_reads_metrics_that_there_are() -> None:
    """Every metric that the console shows is one of the gateway's, by its name and with the labels it is read by."""
    source = (ROOT / "figures.js").read_text("utf-8")
    known = {family.name for family in Metrics({}).families()}
    named = set(re.findall(r'"((?:gateway|gen_ai)_\w+)"', source))
    assert named <= known
    assert "gateway_turns_total" in named
