"""The files themselves: how large they are, what they promise in types, how they are served and shipped."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

import gateway
from gateway.core.errors import WIRE
from tests.client.conftest import NPM, npm
from tests.conftest import Running

EMBED = Path(gateway.__file__).parent / "page" / "embed"
SIZE_MAX_BYTES = 8 * 1024
WIRE_MAX_BYTES = 10_500  # as it is served, with its comments


def minified() -> bytes:
    """Return the client as a build would ship it; without esbuild, without its comments and indents at least."""
    esbuild = NPM / "node_modules" / ".bin" / "esbuild"
    if esbuild.exists():
        command = [str(esbuild), str(EMBED / "client.js"), "--minify", "--format=esm", "--log-level=error"]
        return subprocess.run(command, check=True, capture_output=True).stdout
    source = re.sub(r"^\s*/\*\*.*?\*/\n", "", (EMBED / "client.js").read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"^\s+", "", source, flags=re.MULTILINE).encode()


def test_client_is_small() -> None:
    """At most 8 KB, minified and gzipped."""
    assert len(gzip.compress(minified(), 9)) <= SIZE_MAX_BYTES


async def test_client_is_small_as_it_is_served(running: Running) -> None:
    """A page that loads it from the gateway is sent at most 10.5 KB, and what arrives is the file."""
    headers = {"Accept-Encoding": "gzip, deflate, br"}
    async with running.http.get(f"{running.url}/client.js", headers=headers, auto_decompress=False) as response:
        sent = await response.read()
        assert response.headers["Content-Encoding"] == "gzip"
    assert len(sent) <= WIRE_MAX_BYTES
    assert gzip.decompress(sent) == (EMBED / "client.js").read_bytes()


def test_client_imports_nothing() -> None:
    """One file: a project may copy it."""
    assert not re.search(r"^import\b|[^.\w]import\(", (EMBED / "client.js").read_text(), re.MULTILINE)


def test_types_hold(node: str, tmp_path: Path) -> None:
    """The client and its use are sound by the declared types, and what the types forbid is refused."""
    compiler = npm("typescript") / "bin" / "tsc"
    for name in ("client.js", "client.d.ts"):
        (tmp_path / name).write_bytes((EMBED / name).read_bytes())
    (tmp_path / "usage.ts").write_bytes((Path(__file__).parent / "usage.ts").read_bytes())
    (tmp_path / "package.json").write_text('{"type": "module"}')
    options = ["--noEmit", "--strict", "--exactOptionalPropertyTypes", "--target", "es2022", "--module", "nodenext"]
    command = [node, str(compiler), *options, "--lib", "es2023,dom,dom.iterable", "--types", "", "usage.ts"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def evaluate(node: str, expression: str) -> Any:
    """Evaluate an expression in Node, where ``all`` is what the module exports."""
    module = "data:text/javascript," + quote((EMBED / "client.js").read_text())
    script = f"import * as all from {json.dumps(module)}; console.log(JSON.stringify({expression}));"
    command = [node, "--input-type=module", "-e", script]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_types_and_module_name_the_same(node: str) -> None:
    """What is declared is there, and nothing else: every exported class and every method and getter of it."""
    declared = (EMBED / "client.d.ts").read_text()
    members = "Object.entries(all).map(([name, {prototype}]) => [name, Object.getOwnPropertyNames(prototype)])"
    found = dict(evaluate(node, members))
    assert set(found) == set(re.findall(r"^export class (\w+)", declared, re.MULTILINE))
    for name, there in found.items():
        body = declared.split(f"export class {name} ")[1].split("\n}\n")[0]
        methods = set(re.findall(r"^  (?:private )?(\w+)\(", body, re.MULTILINE))
        fields = set(re.findall(r"^  readonly (\w+):", body, re.MULTILINE))
        assert methods - set(there) == set(), name
        assert set(there) - methods - fields == set(), name


def test_client_tries_again_what_the_table_says(node: str) -> None:
    """``retryable`` is what the error table says, but for credentials, which the client renews by itself."""
    codes = {str(code): wire for code, wire in WIRE.items() if wire.http != 401}
    asked = json.dumps([[code, wire.http] for code, wire in codes.items()])
    told = evaluate(node, f"{asked}.map(([code, status]) => [code, new all.GatewayError({{code, status}}).retryable])")
    assert dict(told) == {code: wire.retryable for code, wire in codes.items()}


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/client.js", "text/javascript"),
        ("/client.d.ts", "text/plain"),
        ("/widget.js", "text/javascript"),
        ("/page/embed/bubble.js", "text/javascript"),
        ("/page/problems.js", "text/javascript"),
    ],
)
async def test_any_page_may_load_them(running: Running, path: str, content_type: str) -> None:
    """Scripts are public: any origin may import them, also under COEP; what is known is not sent again."""
    async with running.http.get(running.url + path, headers={"Origin": "https://anyone.example"}) as response:
        assert (response.status, response.content_type) == (200, content_type)
        assert response.headers.getall("Access-Control-Allow-Origin") == ["*"]
        assert response.headers["Cross-Origin-Resource-Policy"] == "cross-origin"
        assert response.headers["Cache-Control"] == "no-cache"
        tag = response.headers["ETag"]
    async with running.http.get(running.url + path, headers={"If-None-Match": tag}) as response:
        assert (response.status, await response.read()) == (304, b"")
    async with running.http.get(running.url, headers={"Origin": "https://anyone.example"}) as response:
        assert "Access-Control-Allow-Origin" not in response.headers  # the page itself is nobody's to read


@pytest.mark.timeout(180)
def test_wheel_holds_them(tmp_path: Path) -> None:
    """An installed gateway serves what a clone does."""
    root, source = EMBED.parents[2], tmp_path / "source"
    shutil.copytree(root / "gateway", source / "gateway", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(tmp_path), str(source)]
    built = subprocess.run(command, capture_output=True, text=True)
    if "Could not find a version" in built.stderr:
        pytest.skip("no setuptools to build with: a package index is needed")
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert {f"gateway/page/embed/{path.name}" for path in EMBED.iterdir()} - packed == set()
