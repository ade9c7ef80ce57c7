"""What the documents say is so."""

from __future__ import annotations

import re
from pathlib import Path

from gateway.core import errors
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
    """The running gateway shows each page as it is in the repository."""
    gateway = await start_gateway()
    async with gateway.http.get(f"{gateway.url}/docs") as response:
        index = await response.text()
    for page in (ROOT / "gateway" / "docs").glob("*.md"):
        assert f"(/docs/{page.stem})" in index
        async with gateway.http.get(f"{gateway.url}/docs/{page.stem}") as response:
            assert (response.status, await response.text()) == (200, page.read_text("utf-8"))


def test_readme_names_only_tests_and_pages_that_exist() -> None:
    """Every path that the README points to is there."""
    text = (ROOT / "README.md").read_text("utf-8")
    named = re.findall(r"`(tests/[\w./]+)`", text) + re.findall(r"\]\((?!https?:)([\w./]+)\)", text)
    assert len(named) > 10
    assert [path for path in named if not (ROOT / path).exists()] == []
