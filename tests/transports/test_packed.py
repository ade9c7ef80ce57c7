"""Files and pages as they are sent: compressed where that is taken, and not again where they are known."""

from __future__ import annotations

import asyncio
import gzip
import os
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from aiohttp import ClientSession
from multidict import CIMultiDictProxy

from gateway.transports import console, page
from gateway.transports.packed import PackedFiles, takes_gzip
from tests.conftest import Running, StartGateway

TOKEN = "0123456789abcdef0123456789abcdef-of-an-operator"
BROWSER = "gzip, deflate, br, zstd"
DOCS = ("/docs", "/docs/http", "/docs/limits", "/docs/limits.md", "/docs/style.css", "/openapi.json")


@pytest.fixture
async def running(start_gateway: StartGateway, tmp_path: Path) -> Running:
    path = tmp_path / "admin-token"
    path.write_text(TOKEN, "utf-8")
    path.chmod(0o600)
    return await start_gateway(environ={"GATEWAY_ADMIN_TOKEN_FILE": str(path)})


async def get(url: str, method: str = "GET", **headers: str) -> tuple[int, CIMultiDictProxy[str], bytes]:
    """Send a request that says nothing of itself, and return status, headers and the bytes that were sent."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with (
        ClientSession(auto_decompress=False, skip_auto_headers=("Accept-Encoding",)) as http,
        http.request(method, url, headers=named) as response,
    ):
        return response.status, response.headers, await response.read()


def served(running: Running) -> list[str]:
    """Return the addresses of all that is kept, on both ports."""
    public = ["/", *page.EMBEDDED, *(f"/page/{name}" for name in page.FILES), *DOCS]
    internal = ["/admin", *(f"/admin/page/{name}" for name in console.FILES)]
    return [running.url + path for path in public] + [running.internal_url + path for path in internal]


async def test_kept_bytes_are_sent_compressed_to_who_takes_that(running: Running) -> None:
    """Every file and page, in both forms: the length is told, the content is the same, and caches keep them apart."""
    spared = 0
    for url in served(running):
        status, plain, body = await get(url)
        assert (status, plain.get("Content-Encoding"), plain["Content-Length"]) == (200, None, str(len(body))), url
        status, headers, sent = await get(url, Accept_Encoding=BROWSER)
        assert (status, headers["Content-Encoding"], headers["Content-Length"]) == (200, "gzip", str(len(sent))), url
        assert gzip.decompress(sent) == body
        assert headers["Content-Type"] == plain["Content-Type"]
        assert headers["ETag"] != plain["ETag"]
        assert not headers["ETag"].startswith("W/")
        for each in (plain, headers):
            assert "Accept-Encoding" in each.getall("Vary"), url
        assert "gzip" not in (await get(url, Accept_Encoding="gzip;q=0, *"))[1].getall("Content-Encoding", [])
        spared += len(body) - len(sent)
    assert spared > 200_000


async def test_kept_bytes_that_are_known_are_not_sent_again(running: Running) -> None:
    """A form's own tag, asked with alone or among others, is answered with 304 and the headers that a cache renews."""
    for path in ("/", "/client.js", "/page/style.css", "/docs/limits", "/openapi.json"):
        url = running.url + path
        for encoding in ("identity", BROWSER):
            _, headers, _ = await get(url, Accept_Encoding=encoding)
            for known in (headers["ETag"], f'"other", {headers["ETag"]}', f"W/{headers['ETag']}", "*"):
                status, again, body = await get(url, Accept_Encoding=encoding, If_None_Match=known)
                assert (status, body) == (304, b""), (path, known)
                assert again.get("Content-Length") in (None, headers["Content-Length"])
                for name in ("ETag", "Vary", "Cache-Control"):
                    assert again.getall(name) == headers.getall(name), (path, name)
        plain, packed = [(await get(url, Accept_Encoding=one))[1]["ETag"] for one in ("identity", "gzip")]
        assert (await get(url, Accept_Encoding="gzip", If_None_Match=plain))[0] == 200
        assert (await get(url, Accept_Encoding="identity", If_None_Match=packed))[0] == 200


async def test_head_tells_what_get_would_send(running: Running) -> None:
    """The same headers, and no body: seen on the wire, where a body would be the next answer's beginning."""
    for encoding in ("identity", "gzip"):
        _, headers, sent = await get(f"{running.url}/client.js", Accept_Encoding=encoding)
        address = urlsplit(running.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        request = f"HEAD /client.js HTTP/1.1\r\nHost: x\r\nAccept-Encoding: {encoding}\r\nConnection: close\r\n\r\n"
        writer.write(request.encode())
        head, end, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()
        assert (head[:12], end, body) == (b"HTTP/1.1 200", b"\r\n\r\n", b"")
        told = {name.lower(): value for name, value in re.findall(r"^([\w-]+): (.*?)\r?$", head.decode(), re.MULTILINE)}
        assert told["content-length"] == str(len(sent))
        for name in ("ETag", "Content-Type", "Content-Encoding"):
            assert told.get(name.lower()) == headers.get(name)


@pytest.mark.parametrize(
    ("accepted", "taken"),
    [
        ("", False),
        ("gzip", True),
        ("GZIP", True),
        ("br, gzip;q=0.1", True),
        ("gzip;q=0", False),
        ("gzip; q = 0.000", False),
        ("br;q=1.0, gzip;q=0.001", True),
        ("*", True),
        ("*;q=0", False),
        ("gzip, *;q=0", True),
        ("gzip;q=0, *", False),
        ("identity", False),
        ("xgzip, gzipped", False),
    ],
)
def test_gzip_is_taken_where_it_is_accepted(accepted: str, taken: bool) -> None:
    """The coding's own weight goes before that of any other, and a weight of 0 forbids it (RFC 9110, 12.5.3)."""
    assert takes_gzip(accepted) is taken


async def test_file_that_changes_is_packed_anew(tmp_path: Path) -> None:
    """A file is read and compressed once, until it is another one; one that gains nothing is kept as it is."""
    path = tmp_path / "a.js"
    path.write_bytes(b"a" * 1000)
    files = PackedFiles({"a.js": path})
    first = await files.get("a.js")
    assert first is not None
    assert first is await files.get("a.js")
    assert gzip.decompress(first.gzipped or b"") == b"a" * 1000
    path.write_bytes(b"b")
    os.utime(path, ns=(1, 1))
    second = await files.get("a.js")
    assert second is not None
    assert (second.body, second.gzipped) == (b"b", None)
    assert second.tag != first.tag
    assert await files.get("b.js") is None
