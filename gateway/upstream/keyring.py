"""The keys that Hyperleap is asked with: what they are just now, and which of them it takes.

A key that is refused (401, 403) rests, and what can be asked with another key of the same ring is. After the rest one
call tries it again; an answer restores it, a refusal doubles the rest. Where all keys of a ring rest, the one that has
rested longest is asked with all the same: with one wrong key the vendor's own refusal is what is told.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gateway.core.errors import Code, GatewayError
from gateway.core.identity import Tenant, TenantId
from gateway.core.vendor_keys import KeyLabel
from gateway.sections import Secret, SettingsError
from gateway.telemetry import audit
from gateway.telemetry.logging import conceal, throttled
from gateway.telemetry.logging import event as log_event
from gateway.upstream.key_files import KeyFiles, Stamp
from gateway.upstream.observer import KeyObserver, SilentKeyObserver

logger = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 1.0
GONE_EVERY_S: Final = 300.0  # between two warnings that a file is no longer there
REST_MIN_S: Final = 10.0
REST_MAX_S: Final = 300.0


@dataclass(frozen=True, slots=True, eq=False)
class Credential:
    """One state of one key; a rotation makes another. Its identity tells whose answer an answer is."""

    label: KeyLabel
    secret: Secret


class _Key:
    """What is known of one label."""

    __slots__ = ("credential", "label", "looked_s", "offered", "refused_s", "rest_s", "rests_until_s", "stamp")

    def __init__(self, label: KeyLabel) -> None:
        self.label = label
        self.credential: Credential | None = None
        self.stamp: Stamp | None = None
        self.looked_s = float("-inf")
        self.offered = 0  # when it was last the first candidate, in offers
        self.rest_s = 0.0  # how long it rests after a refusal; 0: it works, as far as is known
        self.rests_until_s = 0.0
        self.refused_s = 0.0

    @property
    def works(self) -> bool:
        return self.credential is not None and not self.rest_s


class KeyRing:
    """All keys of this worker by their labels, read when they are first needed; the port VendorKeys.

    A file that changes is read again within about a second of being asked for; what is under way goes on with the key
    that it began with. A file that cannot be read (any more) leaves the key that was known. Each look is a ``stat`` on
    the event loop, so the files belong on a local or memory file system, where secrets are mounted.
    """

    def __init__(
        self, files: KeyFiles, *, observer: KeyObserver | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._files = files
        self._observer = observer or SilentKeyObserver()
        self._now = clock
        self._keys: dict[KeyLabel, _Key] = {}
        self._offers = 0

    def __repr__(self) -> str:
        states = (key.label if key.works else f"{key.label} (rests)" for key in self._keys.values())
        return f"<KeyRing {' '.join(states)}>"

    def require(self, tenants: Mapping[TenantId, Tenant]) -> None:
        """Read the keys of these tenants; raises SettingsError, which names the tenant and the field."""
        self._files.require(tenants)
        for tenant in tenants.values():
            for label in tenant.vendor_keys:
                self._look(label, self._now())

    def candidates(self, ring: Sequence[KeyLabel], /) -> Sequence[KeyLabel]:
        """Return the ring's keys, best first; one whose rest is over comes before those that work, to be tried once."""
        if len(ring) == 1:
            return ring
        now_s = self._now()
        keys = sorted((self._look(label, now_s) for label in ring), key=lambda key: _order(key, now_s))
        self._offers += 1
        keys[0].offered = self._offers
        return [key.label for key in keys]

    def works(self, label: KeyLabel, /) -> bool:
        """Return whether a key is there and takes calls, as far as is known."""
        return self._look(label, self._now()).works

    def spare(self, ring: Sequence[KeyLabel], /) -> KeyLabel | None:
        """Return the best key of the ring that works, or None; one that was refused works again once it is rotated."""
        return next((label for label in self.candidates(ring) if self._look(label, self._now()).works), None)

    def take(self, label: KeyLabel) -> Credential:
        """Return the key to ask with now; say by ``answered`` what came of it.

        Raises GatewayError(upstream_unavailable) when there is none.
        """
        now_s = self._now()
        key = self._look(label, now_s)
        if key.credential is None:
            raise GatewayError(Code.UPSTREAM_UNAVAILABLE, "The gateway has no key for Hyperleap just now.")
        if key.rest_s and now_s >= key.rests_until_s:
            key.rests_until_s = now_s + key.rest_s  # this call tries it, the others wait for what comes of that
        return key.credential

    def answered(self, credential: Credential, status: int | None) -> None:
        """Note what Hyperleap answered; None: nothing. What it says of a key that was replaced does not count."""
        self._observer.key_answered(credential.label, _outcome(status))
        key = self._keys[credential.label]
        if status is None or key.credential is not credential:
            return
        if status in (401, 403):
            self._refused(key, status)
        elif key.rest_s and 200 <= status < 300:
            self._restore(key)

    # --- health --------------------------------------------------------------------------------------------------

    def _refused(self, key: _Key, status: int) -> None:
        now_s = self._now()
        if not key.rest_s:
            before = key.credential
            key.looked_s = now_s
            self._read(key, self._files.stamp(key.label))
            if key.credential is not before:
                return  # it has been rotated already
            key.rest_s, key.refused_s = REST_MIN_S, now_s
            self._observer.key_health_changed(key.label, healthy=False)
            log_event(logger, logging.WARNING, "vendor_key.refused", key=key.label, status=status, rest_s=key.rest_s)
        elif now_s - key.refused_s >= key.rest_s:
            key.rest_s, key.refused_s = min(2 * key.rest_s, REST_MAX_S), now_s
        else:
            return  # sent before it began to rest
        key.rests_until_s = now_s + key.rest_s

    def _restore(self, key: _Key) -> None:
        key.rest_s = key.rests_until_s = 0.0
        self._observer.key_health_changed(key.label, healthy=True)
        log_event(logger, logging.INFO, "vendor_key.restored", key=key.label)

    # --- files ---------------------------------------------------------------------------------------------------

    def _look(self, label: KeyLabel, now_s: float) -> _Key:
        """Return what is known of a label, after a look at its file where the last one is a second ago."""
        key = self._keys.get(label)
        if key is None:
            key = self._keys[label] = _Key(label)
        if now_s - key.looked_s < LOOK_EVERY_S:
            return key
        key.looked_s = now_s
        stamp = self._files.stamp(label)  # before the content: what changes between the two is seen the next time
        if key.credential is None or (stamp is not None and stamp != key.stamp):
            self._read(key, stamp)
        elif stamp is None and key.stamp is not None:
            throttled(logger, f"vendor_key.gone:{label}", "vendor_key.gone", every_s=GONE_EVERY_S, key=label)
        return key

    def _read(self, key: _Key, stamp: Stamp | None) -> None:
        try:
            secret = self._files.read(key.label)
        except SettingsError as error:
            throttled(
                logger, f"vendor_key.unreadable:{key.label}", "vendor_key.unreadable", key=key.label, why=str(error)
            )
            return
        key.stamp = stamp
        if key.credential is None:
            self._observer.key_found(key.label)
        elif key.credential.secret == secret:
            return
        else:
            with audit.acting("file"):
                audit.record("vendor_key.rotated", key=key.label)
        conceal(secret)
        key.credential = Credential(key.label, secret)
        if key.rest_s:
            self._restore(key)


def _order(key: _Key, now_s: float) -> tuple[int, float]:
    if key.credential is None:
        return 3, 0.0
    if not key.rest_s:
        return 1, key.offered
    return (0 if now_s >= key.rests_until_s else 2), key.refused_s


def _outcome(status: int | None) -> str:
    match status:
        case None:
            return "unanswered"
        case 401 | 403:
            return "refused"
        case 429:
            return "limited"
        case _ if status < 400:
            return "answered"
        case _ if status < 500:
            return "rejected"
        case _:
            return "failed"
