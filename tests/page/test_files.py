"""The page's files themselves; no browser needed."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from gateway.core.errors import Code

LINES_MAX = 255


def test_every_error_code_has_words(page_folder: Path) -> None:
    """Whatever code the gateway answers with, the page has a sentence for it, not a shrug."""
    source = (page_folder / "problems.js").read_text()
    table = set(re.findall(r"^  (\w+): \[\"", source, re.MULTILINE))
    out_of_step = set(re.findall(r"\"(\w+)\"", source.split("OUT_OF_STEP = new Set([")[1].split("]);")[0]))
    assert {str(code) for code in Code} - table - out_of_step == set()
    assert not table & out_of_step


def test_vendored_files_are_the_published_ones(page_folder: Path) -> None:
    """Each vendored script has the hash that is written beside it, and every script is listed."""
    folder = page_folder / "vendor"
    listed = sorted(line.split() for line in (folder / "SHA256SUMS").read_text().splitlines())
    found = sorted([hashlib.sha256(path.read_bytes()).hexdigest(), path.name] for path in folder.glob("*.js"))
    assert listed == found
    assert listed


def test_page_asks_nobody_else(page_folder: Path) -> None:
    """Nothing that the page loads names another host, and its markup holds neither inline script nor inline style."""
    markup = (page_folder / "index.html").read_text()
    assert not re.search(r"(?:src|href)=\"(?!/page/|#)", markup)
    assert not re.search(r"\sstyle=|<style|\son\w+=|<script(?![^>]*\ssrc=)", markup)
    assert 'url("http' not in (page_folder / "style.css").read_text()
    for script in page_folder.glob("*.js"):
        for source in re.findall(r"(?:from|import) \"([^\"]+)\"", script.read_text()):
            assert source.startswith("./"), f"{script.name} imports {source}"


def test_modules_stay_small(page_folder: Path) -> None:
    """One noun a module, a screen or three."""
    lines = {path.name: len(path.read_text().splitlines()) for path in page_folder.glob("*.js")}
    assert [name for name, count in lines.items() if count > LINES_MAX] == []
