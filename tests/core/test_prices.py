"""Prices: exact from the written decimal to the millionth of the currency's unit, rounded once."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.prices import COST_MAX_MICROS, PRICE_MAX, Price, PriceTable, parse_price

PRICES = st.decimals(0, PRICE_MAX, places=6, allow_nan=False)
TOKENS = st.integers(0, 2_000_000)


def price(prompt: str, completion: str, turn: str = "0") -> Price:
    return Price(
        currency="USD",
        prompt_micros=parse_price(prompt),
        completion_micros=parse_price(completion),
        turn_micros=parse_price(turn),
    )


@pytest.mark.parametrize(
    ("tokens", "prices", "micros"),
    [
        ((1_000_000, 0), ("2.50", "10"), 2_500_000),
        ((12, 34), ("2.50", "10"), 370),
        ((1, 0), ("0.5", "0"), 1),  # half a millionth goes up …
        ((1, 1), ("0.5", "0.5"), 1),  # … and two halves make one, not two
        ((1, 0), ("0.499999", "0"), 0),
        ((3, 0), ("0.5", "0"), 2),
        ((10, 0), ("0", "0", "0.01"), 10_000),
        ((0, 0), ("2.50", "10", "0.01"), 0),  # nothing was taken, so there was no turn to pay for
        ((10**12, 10**12), ("1000000", "1000000"), COST_MAX_MICROS),
    ],
)
def test_cost_is_exact_and_rounded_once(tokens: tuple[int, int], prices: tuple[str, ...], micros: int) -> None:
    """Prompt and completion are added before they are rounded, a half upwards; no tokens cost nothing."""
    assert price(*prices).cost_micros(*tokens) == micros


@given(prompt=PRICES, completion=PRICES, turn=PRICES, tokens=st.tuples(TOKENS, TOKENS))
def test_cost_is_what_decimal_arithmetic_says(
    prompt: Decimal, completion: Decimal, turn: Decimal, tokens: tuple[int, int]
) -> None:
    """For any prices and tokens the cost is the exact one, rounded half up, and nothing is lost to floats."""
    exact = Fraction(prompt) * tokens[0] + Fraction(completion) * tokens[1]  # millionths: prices are a million tokens
    rounded = int(Decimal(exact.numerator * 10**6 // exact.denominator).scaleb(-6).quantize(Decimal(1), ROUND_HALF_UP))
    wanted = min(rounded + int(turn * 10**6), COST_MAX_MICROS) if any(tokens) else 0
    assert price(f"{prompt:f}", f"{completion:f}", f"{turn:f}").cost_micros(*tokens) == wanted


@given(prices=st.tuples(PRICES, PRICES, PRICES), tokens=st.tuples(TOKENS, TOKENS), more=st.tuples(TOKENS, TOKENS))
def test_cost_never_falls_with_more_tokens(
    prices: tuple[Decimal, ...], tokens: tuple[int, int], more: tuple[int, int]
) -> None:
    """Whoever uses more pays at least as much."""
    one = price(*(f"{each:f}" for each in prices))
    assert one.cost_micros(*tokens) <= one.cost_micros(tokens[0] + more[0], tokens[1] + more[1])


def test_cost_of_what_is_no_turn_is_that_of_its_tokens() -> None:
    """A moderation is charged for its tokens, not once more for the turn that it belongs to."""
    assert price("2", "8", "0.01").cost_micros(10, 0, turns=0) == 20


@given(PRICES)
def test_price_is_read_to_the_last_decimal(written: Decimal) -> None:
    """What is written is what counts, also with zeros at its end."""
    micros = int(written * 10**6)
    assert parse_price(f"{written:f}") == parse_price(f" {written:.6f}000 ") == micros


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("-1", "negative"),
        ("-0.000001", "negative"),
        ("", "no price"),
        ("cheap", "no price"),
        ("1,5", "no price"),
        ("1e3", "no price"),
        ("nan", "no price"),
        ("--1", "no price"),
        ("$2", "no price"),
        (".5", "no price"),
        ("1.", "no price"),
        ("٢", "no price"),
        ("0.0000001", "6 decimals"),
        ("1000000.000001", "at most"),
        ("9" * 400, "no price"),
    ],
)
def test_price_that_is_none_is_refused(text: str, words: str) -> None:
    """Nothing but a decimal number that is not negative is a price, and the error says what is wrong."""
    with pytest.raises(ValueError, match=words) as caught:
        parse_price(text)
    assert len(str(caught.value)) < 120


def test_price_table_prefers_the_personas_own() -> None:
    """A persona that is not in the table has the general price, and without that none."""
    general, own = price("1", "1"), price("2", "2")
    table = PriceTable(general=general, personas={"support": own})
    assert (table.of("support"), table.of("sales"), table.of("")) == (own, general, general)
    assert PriceTable(personas={"support": own}).of("sales") is None
