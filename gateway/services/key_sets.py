"""Issuers' public keys: cached, looked up again when an unknown one is named, and used on while they cannot be read."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from gateway.core.errors import Code, GatewayError
from gateway.core.issuers import KeySetSource, KeySetUnavailable
from gateway.telemetry.logging import event as log_event
from gateway.telemetry.logging import throttled

logger = logging.getLogger(__name__)

KEYS_MAX: Final = 64  # of one set
KID_MAX_CHARS: Final = 256
MISSING_MAX: Final = 256  # key ids that are known not to be in a set
RSA_MIN_BITS: Final = 2048  # RFC 7518 section 3.3

_algorithms: Final = {("RSA", None): "RS256", ("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA"}
_document: Final = msgspec.json.Decoder(dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySetRules:
    """How long keys are used, in seconds.

    A set is read anew, in the background, when it is older than ``fresh_s``; one that cannot be is used up to
    ``stale_s``. No set is fetched twice within ``cooldown_s``, whatever key ids strangers make up.
    """

    fresh_s: float = 300.0
    stale_s: float = 86_400.0
    cooldown_s: float = 10.0


class PublicKey:
    """One key that verifies signatures of one algorithm."""

    __slots__ = ("algorithm", "key", "kid")

    def __init__(self, kid: str | None, algorithm: str, key: Any) -> None:
        self.kid = kid
        self.algorithm = algorithm
        self.key = key


class _KeySet:
    """What is known of one address."""

    def __init__(self) -> None:
        self.keys: list[PublicKey] = []
        self.read_at_s: float | None = None
        self.tried_at_s = float("-inf")
        self.missing: set[str | None] = set()  # asked for, and not in the set as it was read last
        self.fetching: asyncio.Task[None] | None = None

    def find(self, kid: str | None, algorithm: str) -> PublicKey | None:
        """Return the key of an id; without one, the only key of the algorithm."""
        fitting = [key for key in self.keys if key.algorithm == algorithm and (kid is None or key.kid == kid)]
        return fitting[0] if len(fitting) == 1 or (fitting and kid is not None) else None


class KeySets:
    """The key sets of all issuers. Addresses come from tenants' settings, so there are no more than those."""

    def __init__(
        self, source: KeySetSource, rules: KeySetRules | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._source = source
        self._rules = rules or KeySetRules()
        self._clock = clock
        self._sets: dict[str, _KeySet] = {}

    async def aclose(self) -> None:
        tasks = [known.fetching for known in self._sets.values() if known.fetching is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def keep(self, urls: Iterable[str]) -> None:
        """Forget all sets but these; what is being fetched is let go when it is there."""
        wanted = frozenset(urls)
        for url in self._sets.keys() - wanted:
            if self._sets[url].fetching is None:
                del self._sets[url]

    async def find(self, url: str, kid: str | None, algorithm: str) -> PublicKey:
        """Return the key that a token names. Safe to cancel.

        Raises GatewayError: credential_invalid when the issuer has no such key; issuer_unavailable when that cannot
        be known now, because its keys cannot be read or were read a moment ago.
        """
        if kid is not None and len(kid) > KID_MAX_CHARS:
            raise GatewayError(Code.CREDENTIAL_INVALID)
        rules = self._rules
        known = self._sets.setdefault(url, _KeySet())
        age_s = self._clock() - known.read_at_s if known.read_at_s is not None else float("inf")
        found = known.find(kid, algorithm) if age_s < rules.stale_s else None
        if found is not None:
            if age_s >= rules.fresh_s and self._may_fetch(known):
                self._fetch(url, known)
            return found
        if age_s < rules.fresh_s and kid is not None and any(key.kid == kid for key in known.keys):
            raise GatewayError(Code.CREDENTIAL_INVALID)  # a key of another algorithm: the token chooses none
        if known.fetching is None:
            if kid in known.missing and age_s < rules.cooldown_s:
                raise GatewayError(Code.CREDENTIAL_INVALID)
            if not self._may_fetch(known):
                raise self._unavailable(known)
            self._fetch(url, known)
        assert known.fetching is not None
        await asyncio.shield(known.fetching)
        if known.read_at_s is None or known.read_at_s < known.tried_at_s:  # in vain
            raise self._unavailable(known)
        found = known.find(kid, algorithm)
        if found is None:
            if len(known.missing) < MISSING_MAX:
                known.missing.add(kid)
            raise GatewayError(Code.CREDENTIAL_INVALID)
        return found

    def _may_fetch(self, known: _KeySet) -> bool:
        return known.fetching is None and self._clock() - known.tried_at_s >= self._rules.cooldown_s

    def _unavailable(self, known: _KeySet) -> GatewayError:
        wait_s = known.tried_at_s + self._rules.cooldown_s - self._clock()
        return GatewayError(
            Code.ISSUER_UNAVAILABLE, "The issuer's keys cannot be read now; try again.", retry_after_s=max(1.0, wait_s)
        )

    def _fetch(self, url: str, known: _KeySet) -> None:
        known.tried_at_s = self._clock()
        known.fetching = asyncio.get_running_loop().create_task(self._read(url, known))

    async def _read(self, url: str, known: _KeySet) -> None:
        try:
            keys = read_keys(await self._source.fetch(url))
        except KeySetUnavailable as error:
            throttled(logger, url, "key_set.unavailable", url=url, reason=str(error), keys=len(known.keys))
        except Exception:
            logger.exception("key_set.crashed")
        else:
            before = {key.kid for key in known.keys}
            known.keys = keys
            known.read_at_s = known.tried_at_s
            known.missing.clear()
            if before != {key.kid for key in keys}:
                log_event(logger, logging.INFO, "key_set.changed", url=url, keys=len(keys))
        finally:
            known.fetching = None


def read_keys(document: bytes) -> list[PublicKey]:
    """Read the signature keys of a key set; those that are of no use here are left out.

    Raises KeySetUnavailable when it is no key set, or has no key of use.
    """
    try:
        entries = _document.decode(document).get("keys")
    except (msgspec.DecodeError, UnicodeDecodeError):
        entries = None
    if not isinstance(entries, list):
        raise KeySetUnavailable("the answer is no key set")
    keys = [key for entry in entries[:KEYS_MAX] if isinstance(entry, dict) and (key := _read_key(entry)) is not None]
    if not keys:
        raise KeySetUnavailable("the key set holds no key of use")
    return keys


def _read_key(entry: dict[str, Any]) -> PublicKey | None:
    kid, kind = entry.get("kid"), entry.get("kty")
    algorithm = _algorithms.get((str(kind), None if kind == "RSA" else str(entry.get("crv"))))
    if algorithm is None or entry.get("alg", algorithm) not in (algorithm, "Ed25519"):
        return None
    if entry.get("use", "sig") != "sig" or "verify" not in entry.get("key_ops", ["verify"]):
        return None
    if "d" in entry or not isinstance(kid, str | None):  # a private key: its owner has other worries
        return None
    try:
        key = jwt.PyJWK(entry, algorithm=algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    if isinstance(key, RSAPublicKey) and key.key_size < RSA_MIN_BITS:
        return None
    return PublicKey(kid, algorithm, key)
