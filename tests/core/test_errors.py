"""One table says how every error looks outside, and no code is missing from it."""

from __future__ import annotations

import pytest

from gateway.core.errors import WIRE, Code, GatewayError

RECONNECT = {1012, 1013, 4401, 4429}  # come back: after a restart, with a new token, a little later
TERMINAL = {4503, 4504}  # do not come back: the credential or the access is refused
REGISTERED = {1009, 1011, 1012, 1013}  # of RFC 6455, section 7.4.1, and the IANA registry, those in use here


def test_wire_table_covers_exactly_the_codes() -> None:
    """Every code has its line in the table, and the table has no other lines."""
    assert set(WIRE) == set(Code)


def test_code_name_and_value_agree() -> None:
    """A code is called in Python what it is called on the wire."""
    assert all(code.value == code.name.lower() for code in Code)


@pytest.mark.parametrize("code", Code)
def test_wire_of_every_code_is_a_valid_answer(code: Code) -> None:
    """Each status is an error status of HTTP, each close code one that an endpoint may send."""
    wire = WIRE[code]
    assert 400 <= wire.http <= 599
    assert wire.ws_close in REGISTERED or 4000 <= wire.ws_close <= 4999
    assert wire.title
    assert not wire.title.endswith(".")


@pytest.mark.parametrize("code", Code)
def test_wire_close_code_agrees_with_retryable(code: Code) -> None:
    """A close code that says 'come back' belongs to an error that may be retried, a terminal one never does."""
    wire = WIRE[code]
    if wire.ws_close in RECONNECT:
        assert wire.retryable
    if 4500 <= wire.ws_close <= 4999:
        assert wire.ws_close in TERMINAL
        assert not wire.retryable


@pytest.mark.parametrize(
    ("code", "close"),
    [
        (Code.DRAINING, 1012),
        (Code.TOKEN_EXPIRED, 4401),
        (Code.RATE_LIMITED, 4429),
        (Code.COMMANDS_TOO_FAST, 4429),
        (Code.FRAME_BINARY, 4400),
        (Code.CREDENTIAL_INVALID, 4503),
        (Code.ORIGIN_NOT_ALLOWED, 4504),
        (Code.FORBIDDEN, 4504),
    ],
)
def test_wire_close_codes_are_those_of_the_design(code: Code, close: int) -> None:
    """The documented close codes mean what clients were told they mean."""
    assert WIRE[code].ws_close == close


@pytest.mark.parametrize("code", [code for code in Code if code.value.startswith("upstream_")])
def test_wire_of_a_vendor_fault_blames_no_client(code: Code) -> None:
    """What the vendor did wrong is a 5xx, never a 4xx that a client would try to mend."""
    assert WIRE[code].http >= 500


def test_gateway_error_without_words_says_its_title() -> None:
    """An error raised with its code alone still tells a sentence, and carries no other members."""
    error = GatewayError(Code.NOT_FOUND)
    assert error.detail == "Not found."
    assert error.extra == {}
    assert error.wire is WIRE[Code.NOT_FOUND]
    assert (error.field, error.retry_after_s, error.vendor_status) == (None, None, None)
