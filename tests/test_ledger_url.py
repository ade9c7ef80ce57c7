"""URLs of the ledger's database: what each form means, what is refused, and that no secret is ever shown."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.ledger_url import LedgerUrl

SECRET = "Zq7#/@:?&%x"


@pytest.mark.parametrize(
    ("text", "hosts", "address"),
    [
        ("postgresql://u:p@db/usage", [("db", 5432)], "postgresql://db:5432/usage"),
        ("postgres://u@db:6000/usage", [("db", 6000)], "postgresql://db:6000/usage"),
        ("postgresql://u@[::1]:6000/usage", [("::1", 6000)], "postgresql://[::1]:6000/usage"),
        ("postgresql://u@a,b:2/usage", [("a", 5432), ("b", 2)], "postgresql://a:5432,b:2/usage"),
        ("postgresql://u@a,b/usage?port=7", [("a", 7), ("b", 7)], "postgresql://a:7,b:7/usage"),
        ("postgresql:///usage?user=u&host=/run/pg", [("/run/pg", 5432)], "postgresql:///usage in /run/pg"),
    ],
)
def test_parse_of_each_form(text: str, hosts: list[tuple[str, int]], address: str) -> None:
    """Each form says where the server is, or several of which one is the primary."""
    url = LedgerUrl.parse(text)
    assert (list(url.hosts), url.address, url.user, url.database) == (hosts, address, "u", "usage")


def test_parse_reads_login_and_options() -> None:
    """A login may hold anything once it is percent-encoded; TLS is set as everywhere with PostgreSQL."""
    word = quote(SECRET, safe="")
    url = LedgerUrl.parse(f"postgresql://{word}:{word}@db/{quote('a b')}?sslmode=verify-full&sslrootcert=/ca.pem")
    assert (url.user, url.password, url.database) == (SECRET, SECRET, "a b")
    assert url.tls_options == {"sslmode": "verify-full", "sslrootcert": "/ca.pem"}
    url = LedgerUrl.parse(f"postgresql://db/x?user={word}&password={word}&target_session_attrs=primary")
    assert (url.user, url.password, url.target_session_attrs) == (SECRET, SECRET, "primary")


@pytest.mark.parametrize(
    "text",
    [
        *("", "db/usage", "mysql://u@db/usage", "postgresql://", "postgresql://u@db", "postgresql://u@db/"),
        *("postgresql://db/usage", "postgresql://u@/usage", "postgresql://u@db:x/usage", "postgresql://u@db:0/usage"),
        *(
            "postgresql://u@db:70000/usage",
            "postgresql://u@a,,b/usage",
            "postgresql://u@db/a/b",
            "postgresql://u@db/a#b",
        ),
        *("postgresql://u@db/a?sslmode=on", "postgresql://u@db/a?statement_timeout=1", "postgresql://u@db/a?port=x"),
        *("postgresql://u@db/a?host=/run", "postgresql://u@/a?host=db", "postgresql://u:a@b@c:d@/a"),
        *("postgresql://u@db/a?target_session_attrs=any-at-all",),
    ],
)
def test_parse_refuses_what_it_cannot_mean(text: str) -> None:
    """What has no meaning is refused before anything is connected to."""
    with pytest.raises(ValueError):
        LedgerUrl.parse(text)


@given(st.text(st.characters(exclude_characters="/"), min_size=8), st.sampled_from("@:?#/&%,="))
def test_words_of_a_refusal_hold_no_secret(word: str, sign: str) -> None:
    """A password that was not encoded breaks the URL; neither the refusal nor the address repeats it."""
    secret = f"{sign}Zq7Zq7{word}{sign}"
    for text in (f"postgresql://u:{secret}@db/usage", f"postgresql://u@db/usage?password={secret}"):
        try:
            url = LedgerUrl.parse(text)
            told = f"{url!r} {url.address}".replace(url.database, "")  # what stands behind the slash is the database
        except ValueError as error:
            told = str(error)
        assert "Zq7Zq7" not in told
