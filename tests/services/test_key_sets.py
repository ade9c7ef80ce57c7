"""Issuers' keys in memory: asked for rarely, found again after a rotation, used on while the issuer is away."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from gateway.core.errors import Code, GatewayError
from gateway.core.issuers import KeySetUnavailable
from gateway.services.key_sets import KEYS_MAX, MISSING_MAX, KeySetRules, KeySets, read_keys
from tests.issuer import SigningKey

URL = "https://login.acme.example/keys"
RULES = KeySetRules(fresh_s=100, stale_s=1000, cooldown_s=10)


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Published:
    """A KeySetSource of what the test publishes."""

    def __init__(self, *keys: SigningKey) -> None:
        self.keys = list(keys)
        self.fetches = 0
        self.away = False
        self.gate: asyncio.Event | None = None

    async def fetch(self, url: str) -> bytes:
        assert url == URL
        self.fetches += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.away:
            raise KeySetUnavailable("away")
        return msgspec.json.encode({"keys": [key.jwk() for key in self.keys]})


async def refusal(key_sets: KeySets, kid: str | None, algorithm: str = "ES256") -> GatewayError:
    with pytest.raises(GatewayError) as refused:
        await key_sets.find(URL, kid, algorithm)
    return refused.value


async def read_anew(key_sets: KeySets) -> None:
    """Wait for the reading in the background."""
    fetching = key_sets._sets[URL].fetching
    assert fetching is not None
    await fetching


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def test_key_is_fetched_once_for_many_who_ask_at_once(clock: Clock) -> None:
    """A thousand requests after a start cost one fetch, and later ones none while the set is fresh."""
    source = Published(SigningKey())
    source.gate = asyncio.Event()
    key_sets = KeySets(source, RULES, clock=clock)
    asking = [asyncio.create_task(key_sets.find(URL, source.keys[0].kid, "ES256")) for _ in range(1000)]
    await asyncio.sleep(0)
    source.gate.set()
    assert {(await task).kid for task in asking} == {source.keys[0].kid}
    clock.now_s = 99
    await key_sets.find(URL, source.keys[0].kid, "ES256")
    assert source.fetches == 1


async def test_key_that_is_new_is_fetched_after_the_cooldown(clock: Clock) -> None:
    """An unknown key id leads to a new fetch, never to two within the cooldown; who came too early may try again."""
    old, new = SigningKey(), SigningKey()
    source = Published(old)
    key_sets = KeySets(source, RULES, clock=clock)
    await key_sets.find(URL, old.kid, "ES256")
    source.keys = [old, new]
    clock.now_s = 9
    early = await refusal(key_sets, new.kid)
    assert (early.code, early.retry_after_s) == (Code.ISSUER_UNAVAILABLE, 1.0)
    assert source.fetches == 1
    clock.now_s = 10
    assert (await key_sets.find(URL, new.kid, "ES256")).kid == new.kid
    assert source.fetches == 2


async def test_key_ids_that_strangers_make_up_cost_one_fetch_a_cooldown(clock: Clock) -> None:
    """A flood of made-up key ids reaches the issuer once, fills no memory, and one that was looked up is invalid."""
    source = Published(SigningKey())
    key_sets = KeySets(source, RULES, clock=clock)
    assert (await refusal(key_sets, "made-up")).code is Code.CREDENTIAL_INVALID
    assert (await refusal(key_sets, "made-up")).code is Code.CREDENTIAL_INVALID
    for number in range(MISSING_MAX + 100):
        assert (await refusal(key_sets, str(number))).code is Code.ISSUER_UNAVAILABLE
    assert source.fetches == 1
    assert (await key_sets.find(URL, source.keys[0].kid, "ES256")).kid == source.keys[0].kid
    assert (await refusal(key_sets, "x" * 257)).code is Code.CREDENTIAL_INVALID
    assert len(key_sets._sets[URL].missing) <= MISSING_MAX


async def test_key_is_used_on_while_the_issuer_is_away(clock: Clock) -> None:
    """A set that is not fresh is read anew beside the requests; while that fails the old one serves, to an end."""
    key = SigningKey()
    source = Published(key)
    key_sets = KeySets(source, RULES, clock=clock)
    await key_sets.find(URL, key.kid, "ES256")
    source.away = True
    for now_s in (100.0, 105.0, 500.0, 999.0):
        clock.now_s = now_s
        assert (await key_sets.find(URL, key.kid, "ES256")).kid == key.kid
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert source.fetches == 4  # not again within the cooldown
    clock.now_s = 1010
    assert (await refusal(key_sets, key.kid)).code is Code.ISSUER_UNAVAILABLE
    source.away = False
    clock.now_s = 1021
    assert (await key_sets.find(URL, key.kid, "ES256")).kid == key.kid


async def test_key_that_was_withdrawn_is_refused_once_the_set_is_read_again(clock: Clock) -> None:
    """A key that its issuer no longer publishes proves nothing from the next reading on."""
    old, new = SigningKey(), SigningKey()
    source = Published(old)
    key_sets = KeySets(source, RULES, clock=clock)
    await key_sets.find(URL, old.kid, "ES256")
    source.keys = [new]
    clock.now_s = 100
    await key_sets.find(URL, old.kid, "ES256")  # reads in the background
    await read_anew(key_sets)
    assert (await refusal(key_sets, old.kid)).code is Code.ISSUER_UNAVAILABLE  # was not asked for in that reading
    clock.now_s = 110
    assert (await refusal(key_sets, old.kid)).code is Code.CREDENTIAL_INVALID
    assert (await key_sets.find(URL, new.kid, "ES256")).kid == new.kid


async def test_key_set_that_never_came_is_asked_for_again_after_the_cooldown(clock: Clock) -> None:
    """An issuer that is away at the start is no reason to ask it for every request."""
    source = Published(SigningKey())
    source.away = True
    key_sets = KeySets(source, RULES, clock=clock)
    for _ in range(5):
        assert (await refusal(key_sets, "k")).code is Code.ISSUER_UNAVAILABLE
    assert source.fetches == 1
    source.away = False
    clock.now_s = 10
    assert (await key_sets.find(URL, source.keys[0].kid, "ES256")).kid == source.keys[0].kid


async def test_asker_who_leaves_does_not_take_the_fetch_with_him(clock: Clock) -> None:
    """A cancelled request leaves the fetch going for the others."""
    source = Published(SigningKey())
    source.gate = asyncio.Event()
    key_sets = KeySets(source, RULES, clock=clock)
    leaving, staying = (asyncio.create_task(key_sets.find(URL, source.keys[0].kid, "ES256")) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    source.gate.set()
    assert (await staying).kid == source.keys[0].kid


async def test_key_without_an_id_is_the_only_one_of_its_algorithm(clock: Clock) -> None:
    """A token that names no key is proved by the issuer's only fitting one; of two, nobody can know which."""
    source = Published(SigningKey("ES256"), SigningKey("EdDSA"))
    key_sets = KeySets(source, RULES, clock=clock)
    assert (await key_sets.find(URL, None, "EdDSA")).kid == source.keys[1].kid
    source.keys.append(SigningKey("ES256"))
    clock.now_s = 100
    await key_sets.find(URL, None, "ES256")
    await read_anew(key_sets)
    assert (await refusal(key_sets, None)).code is Code.ISSUER_UNAVAILABLE
    assert (await key_sets.find(URL, source.keys[2].kid, "ES256")).kid == source.keys[2].kid


def document(*entries: Any) -> bytes:
    return msgspec.json.encode({"keys": list(entries)})


EC, RSA, ED = SigningKey("ES256"), SigningKey("RS256"), SigningKey("EdDSA")


@pytest.mark.parametrize("key", [EC, RSA, ED])
def test_key_of_each_algorithm_is_read(key: SigningKey) -> None:
    """The three algorithms, with or without the optional members."""
    bare = {name: value for name, value in key.jwk().items() if name not in ("use", "alg")}
    for entry in (key.jwk(), bare, key.jwk(key_ops=["verify"])):
        (read,) = read_keys(document(entry))
        assert (read.kid, read.algorithm) == (key.kid, key.algorithm)


@pytest.mark.parametrize(
    "entry",
    [
        EC.jwk(use="enc"),
        EC.jwk(key_ops=["sign"]),
        EC.jwk(alg="ES384"),
        EC.jwk(crv="P-384"),
        EC.jwk(kid=5),
        EC.jwk(x="AAAA"),
        EC.jwk(d="AAAA"),
        RSA.jwk(alg="HS256"),
        RSA.jwk(n="AQAB"),
        RSA.jwk(kty=None),
        {"kty": "oct", "k": "c2VjcmV0", "kid": "x", "alg": "HS256"},
        {"kty": ["RSA"]},
        {},
        "key",
        None,
    ],
)
def test_key_of_no_use_is_left_out(entry: Any) -> None:
    """A key for something else, of another algorithm, too short, private, symmetric or broken proves nothing here."""
    assert [key.kid for key in read_keys(document(entry, ED.jwk()))] == [ED.kid]
    with pytest.raises(KeySetUnavailable):
        read_keys(document(entry))


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b'{"keys":{}}', b'{"keys":[]}', b"\xff", b"<html>", b'{"keys":5}'])
def test_document_that_is_no_key_set_is_unavailable(raw: bytes) -> None:
    """Whatever a server says, it is a key set or it is not."""
    with pytest.raises(KeySetUnavailable):
        read_keys(raw)


def test_key_set_is_read_up_to_a_bound() -> None:
    """A set of thousands of keys costs no more than its first ones."""
    entries = [EC.jwk(kid=str(number)) for number in range(KEYS_MAX + 50)]
    assert len(read_keys(document(*entries))) == KEYS_MAX
