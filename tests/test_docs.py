"""What the documents say is so."""

from __future__ import annotations

import re
from pathlib import Path

from gateway.core import errors

ROOT = Path(__file__).parent.parent


def test_errors_page_is_fresh() -> None:
    """``gateway/docs/errors.md`` is what the error table generates."""
    assert (ROOT / "gateway" / "docs" / "errors.md").read_text("utf-8") == errors.reference()


def test_readme_names_only_tests_and_pages_that_exist() -> None:
    """Every path that the README points to is there."""
    text = (ROOT / "README.md").read_text("utf-8")
    named = re.findall(r"`(tests/[\w./]+)`", text) + re.findall(r"\]\((?!https?:)([\w./]+)\)", text)
    assert len(named) > 10
    assert [path for path in named if not (ROOT / path).exists()] == []
