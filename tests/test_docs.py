"""What the documents say is so."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from gateway.core import errors
from gateway.transports.openapi import websocket_page
from tests.conftest import StartGateway

ROOT = Path(__file__).parent.parent


def test_errors_page_is_fresh() -> None:
    """``gateway/docs/errors.md`` is what the error table generates."""
    assert (ROOT / "gateway" / "docs" / "errors.md").read_text("utf-8") == errors.reference()


def test_readme_links_every_reference_page() -> None:
    """A page that ``/docs`` serves is found from the README too."""
    text = (ROOT / "README.md").read_text("utf-8")
    pages = sorted((ROOT / "gateway" / "docs").glob("*.md"))
    assert [page.name for page in pages if f"(gateway/docs/{page.name})" not in text] == []


async def test_every_reference_page_is_listed_and_served(start_gateway: StartGateway) -> None:
    """The running gateway shows each page to read, and its Markdown as it is in the repository."""
    gateway = await start_gateway()
    async with gateway.http.get(f"{gateway.url}/docs") as response:
        index = await response.text()
    for page in (ROOT / "gateway" / "docs").glob("*.md"):
        source = page.read_text("utf-8")
        title = source.partition("\n")[0].removeprefix("# ")
        assert f'<a href="/docs/{page.stem}">{title}</a>' in index
        async with gateway.http.get(f"{gateway.url}/docs/{page.stem}") as response:
            assert (response.status, response.content_type) == (200, "text/html")
            assert f">{title}</h1>" in await response.text()
        async with gateway.http.get(f"{gateway.url}/docs/{page.stem}.md") as response:
            assert (response.status, await response.text()) == (200, source)


def test_wheel_has_every_file_that_is_served_or_run() -> None:
    """What the package needs beside its modules is named in its package data, the reference pages among it."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["package-data"]["gateway"]
    package = ROOT / "gateway"
    packed = {path for pattern in data for path in package.glob(pattern) if path.is_file()}
    present = {path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert present == packed
    assert package / "docs" / "style.css" in packed


def test_websocket_page_is_fresh() -> None:
    """``gateway/docs/websocket.md`` is what the commands, the frames and the error table generate."""
    assert (ROOT / "gateway" / "docs" / "websocket.md").read_text("utf-8") == websocket_page.reference()


async def test_links_between_reference_pages_lead_somewhere(start_gateway: StartGateway) -> None:
    """Every link of a page to this gateway is answered, and what it points to on a page is there."""
    gateway = await start_gateway()
    pages: dict[str, str] = {}

    async def load(path: str) -> str:
        if path not in pages:
            async with gateway.http.get(gateway.url + path) as response:
                assert response.status == 200, path
                pages[path] = await response.text()
        return pages[path]

    names = [path.stem for path in (ROOT / "gateway" / "docs").glob("*.md")]
    for page in ("/docs", "/docs/http", *(f"/docs/{name}" for name in names)):
        for link in re.findall(r'href="([^"]+)"', await load(page)):
            if link.startswith(("http", "data:")):
                continue
            path, _, anchor = link.partition("#")
            assert not anchor or f'id="{anchor}"' in await load(path or page), (page, link)
            await load(path or page)


async def test_list_of_pages_is_found_with_a_slash_too(start_gateway: StartGateway) -> None:
    """``/docs/`` leads to ``/docs`` for good."""
    gateway = await start_gateway()
    async with gateway.http.get(f"{gateway.url}/docs/", allow_redirects=False) as response:
        assert (response.status, response.headers["Location"]) == (308, "/docs")
    async with gateway.http.get(f"{gateway.url}/docs/") as response:
        assert (response.status, response.url.path) == (200, "/docs")
        assert "<html" in await response.text()


async def test_reference_pages_run_nothing_and_load_nothing_from_elsewhere(start_gateway: StartGateway) -> None:
    """A page allows itself its own style and nothing else, whatever its Markdown holds."""
    gateway = await start_gateway()
    for path in ("/docs", "/docs/http", "/docs/errors"):
        async with gateway.http.get(gateway.url + path) as response:
            policy = response.headers["Content-Security-Policy"]
            text = await response.text()
        assert "default-src 'none'" in policy
        assert "script" not in policy
        assert "unsafe" not in policy
        assert not re.search(r"<script|<style|\sstyle=|\son\w+=|<img|src=", text)


def test_readme_names_only_tests_and_pages_that_exist() -> None:
    """Every path that the README points to is there."""
    text = (ROOT / "README.md").read_text("utf-8")
    named = re.findall(r"`(tests/[\w./]+)`", text) + re.findall(r"\]\((?!https?:)([\w./]+)\)", text)
    assert len(named) > 10
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_pages_name_only_tests_that_exist() -> None:
    """A page that says what proves it, by file and name, is believed because it can be looked up."""
    named: list[str] = []
    for page in (ROOT / "gateway" / "docs").glob("*.md"):
        named += re.findall(r"`(tests/[\w/]+\.py::\w+)`", page.read_text("utf-8"))
    assert named
    for path, _, name in (one.partition("::") for one in named):
        assert f"def {name}(" in (ROOT / path).read_text("utf-8"), f"{path}::{name}"
