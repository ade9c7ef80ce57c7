"""Keys are taken apart only when they look exactly like ours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.keys import KEY_PREFIX, KeyKind, parse_key

SECRET = "A" * 43
TENANTS = st.from_regex(r"[a-z0-9-]{1,32}", fullmatch=True)
IDS = st.from_regex(r"[a-z0-9]{8,32}", fullmatch=True)
SECRETS = st.from_regex(r"[A-Za-z0-9_-]{32,64}", fullmatch=True)


@given(st.sampled_from(KeyKind), TENANTS, IDS, SECRETS)
def test_parse_key_takes_apart_what_was_put_together(kind: KeyKind, tenant: str, key_id: str, secret: str) -> None:
    """Every key of the documented form comes apart into its prefix, tenant, id and secret."""
    parsed = parse_key(f"{KEY_PREFIX[kind]}{tenant}.{key_id}.{secret}")
    assert parsed == (KEY_PREFIX[kind], tenant, key_id, secret)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "hgs_",
        f"hgt_acme.k1234567.{SECRET}",
        f"hgx_acme.k1234567.{SECRET}",
        f"hgs_ACME.k1234567.{SECRET}",
        f"hgs_acme:.k1234567.{SECRET}",
        f"hgs_a}}b.k1234567.{SECRET}",
        f"hgs_acme.short.{SECRET}",
        f"hgs_acme.k1234567.{'A' * 31}",
        f"hgs_acme.k1234567.{'A' * 65}",
        f"hgs_acme.k1234567.{SECRET}\n",
        f" hgs_acme.k1234567.{SECRET}",
        f"hgs_acme.k1234567.{SECRET}.x",
        f"hgs_{'a' * 33}.k1234567.{SECRET}",
        f"hgs_acme.k123456\u0661.{SECRET}",
        f"hgs_acme.k1234567.{SECRET[:-1]}\udcff",
    ],
)
def test_parse_key_of_another_form_is_none(value: str) -> None:
    """A key that is not ours to the last character is no key, whatever it holds."""
    assert parse_key(value) is None


@given(st.text(max_size=120))
def test_parse_key_of_any_text_never_raises(value: str) -> None:
    """A stranger's text is a key or is not; it is never an exception."""
    assert parse_key(value) is None or value.startswith(("hgs_", "hgp_"))
