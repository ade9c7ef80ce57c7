"""The checks of a whole run: they find what is planted, and say where."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.conftest import SECRETS, VENDOR_KEY
from tests.spills import Spills

PLANTED = Path(__file__).parent / "planted.py"
SECRET = VENDOR_KEY.encode()


@pytest.mark.parametrize("processes", ["0", "1"])
async def test_run_that_spills_and_strays_fails_and_names_the_test(processes: str) -> None:
    """In the one process or in others, though every test passes."""
    with tempfile.TemporaryDirectory() as directory:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pytest", "-q", "-n", processes, "-p", "no:cacheprovider"),
            *("--basetemp", f"{directory}/run", "--rootdir", str(PLANTED.parent.parent), str(PLANTED)),
            stdout=asyncio.subprocess.PIPE,
            cwd=PLANTED.parent.parent,
        )
        output = (await process.communicate())[0].decode()
    assert (process.returncode, "2 passed" in output) == (1, True), output
    found = [line for line in output.splitlines() if line.startswith("FOUND ")]
    assert [line.partition("/run/")[0].removesuffix(directory) for line in found] == [
        "FOUND the vendor key in an answer, during tests/planted.py::test_key_in_an_answer (call)",
        "FOUND the vendor key in what a client received, during tests/planted.py::test_key_in_an_answer (call)",
        "FOUND the pepper in ",
        "FOUND the stray key b'nobody:1' in ",
    ]


@pytest.mark.parametrize(
    "spilled",
    [
        SECRET,
        SECRET.hex().encode(),
        base64.b64encode(SECRET),
        base64.b64encode(b"x-hl-api-key: " + SECRET + b"\r\n"),
        base64.urlsafe_b64encode(b"\xff\xff" + SECRET + b"?"),
        base64.b64encode(b"k" + SECRET),
        quote(SECRET).encode(),
        "".join(f"%{byte:02X}" for byte in SECRET).encode(),
        json.dumps({"error": f'"{VENDOR_KEY}"'}).encode(),
        repr(SECRETS.pepper).encode(),
    ],
)
def test_secret_is_found_in_any_form_and_cut_anywhere(spilled: bytes) -> None:
    """Whole, or in two pieces as connections carry them."""
    data = b"before " + spilled + b" after"
    for cut in range(len(data)):
        spills = Spills({"it": SECRET, "pepper": SECRETS.pepper})
        piece = spills.follow("an answer")
        piece(data[:cut])
        piece(data[cut:])
        assert len(spills.found) == 1, cut


def test_nothing_is_found_where_nothing_is() -> None:
    """What only begins like a secret is none."""
    spills = Spills({"it": SECRET})
    spills.search(SECRET[:-1] + b" " + base64.b64encode(SECRET[:-5]), "an answer")
    assert spills.found == []
