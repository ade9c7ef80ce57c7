"""The key ring: which key is asked with next, what a refusal does to it, and how a rotation reaches it."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from gateway.core.errors import Code, GatewayError
from gateway.core.identity import Tenant, TenantId
from gateway.core.vendor_keys import KeyLabel
from gateway.options import UpstreamSettings
from gateway.sections import SettingsError
from gateway.upstream.key_files import KeyFiles
from gateway.upstream.keyring import LOOK_EVERY_S, REST_MAX_S, REST_MIN_S, Credential, KeyRing

ONE, TWO, THREE = (KeyLabel(label) for label in ("one", "two", "three"))
RING = (ONE, TWO, THREE)


class Watcher:
    """Writes down what the ring tells."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.health: list[tuple[str, bool]] = []
        self.outcomes: Counter[tuple[str, str]] = Counter()

    def key_found(self, label: str) -> None:
        self.found.append(label)

    def key_health_changed(self, label: str, *, healthy: bool) -> None:
        self.health.append((label, healthy))

    def key_answered(self, label: str, outcome: str) -> None:
        self.outcomes[label, outcome] += 1


class Mount:
    """A directory of keys, a ring over it, and a clock that the test turns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now_s = 100.0
        self.watcher = Watcher()
        for label in RING:
            self.write(label, f"key-{label}")
        self.ring = KeyRing(KeyFiles(UpstreamSettings(keys_dir=path)), observer=self.watcher, clock=lambda: self.now_s)

    def write(self, label: KeyLabel, key: str) -> None:
        (self.path / label).write_text(key)

    def secret(self, label: KeyLabel) -> str:
        return self.ring.take(label).secret.reveal()

    def refuse(self, label: KeyLabel, status: int = 401) -> Credential:
        credential = self.ring.take(label)
        self.ring.answered(credential, status)
        return credential


@pytest.fixture
def mount(tmp_path: Path) -> Mount:
    return Mount(tmp_path)


# --- order --------------------------------------------------------------------------------------------------------


def test_candidates_are_all_keys_and_take_turns(mount: Mount) -> None:
    """Each key of a ring is the first candidate equally often, and every candidate is there each time."""
    firsts = Counter(mount.ring.candidates(RING)[0] for _ in range(300))
    assert firsts == dict.fromkeys(RING, 100)
    assert all(sorted(mount.ring.candidates(RING)) == sorted(RING) for _ in range(10))


def test_candidates_of_rings_that_share_a_key_take_turns_all_the_same(mount: Mount) -> None:
    """A key that two rings have is asked for about as often as the others."""
    firsts = Counter(mount.ring.candidates(ring)[0] for _ in range(300) for ring in ((ONE, TWO), (TWO, THREE)))
    assert sum(firsts.values()) == 600
    assert min(firsts.values()) >= 150


def test_candidates_of_one_key_are_that_key_whatever_its_state(mount: Mount) -> None:
    """Who has one key asks with it, refused or not: the vendor's own refusal is what there is to tell."""
    assert list(mount.ring.candidates((ONE,))) == [ONE]
    mount.refuse(ONE)
    assert list(mount.ring.candidates((ONE,))) == [ONE]
    assert mount.secret(ONE) == "key-one"


# --- health -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403])
def test_refused_key_rests_while_the_others_are_used(mount: Mount, status: int) -> None:
    """A 401 or 403 puts a key behind those that work, until its rest is over."""
    mount.refuse(TWO, status)
    assert mount.watcher.health == [("two", False)]
    assert {mount.ring.candidates(RING)[0] for _ in range(20)} == {ONE, THREE}
    assert mount.ring.candidates(RING)[-1] == TWO
    assert {mount.ring.spare(RING) for _ in range(20)} == {ONE, THREE}


def test_refused_key_is_tried_once_after_its_rest_and_restored_by_an_answer(mount: Mount) -> None:
    """One call tries a rested key; the others go on with those that work until its answer is there."""
    mount.refuse(TWO)
    mount.now_s += REST_MIN_S
    assert mount.ring.candidates(RING)[0] == TWO
    trial = mount.ring.take(TWO)
    assert {mount.ring.candidates(RING)[0] for _ in range(20)} == {ONE, THREE}
    mount.ring.answered(trial, 200)
    assert mount.watcher.health == [("two", False), ("two", True)]
    assert {mount.ring.candidates(RING)[0] for _ in range(20)} == set(RING)


def test_rest_doubles_with_every_refused_trial_up_to_its_bound(mount: Mount) -> None:
    """A key that stays refused is tried ever more rarely, every five minutes in the end; it is told once."""
    mount.refuse(TWO)
    rest_s = REST_MIN_S
    for _ in range(8):
        mount.now_s += rest_s - 0.01
        assert mount.ring.candidates(RING)[0] != TWO
        mount.now_s += 0.01
        assert mount.ring.candidates(RING)[0] == TWO
        mount.refuse(TWO)
        rest_s = min(2 * rest_s, REST_MAX_S)
    assert rest_s == REST_MAX_S
    assert mount.watcher.health == [("two", False)]


def test_refusals_of_calls_that_were_under_way_do_not_prolong_the_rest(mount: Mount) -> None:
    """A hundred calls that are refused at once are one refusal."""
    calls = [mount.ring.take(TWO) for _ in range(100)]
    for call in calls:
        mount.ring.answered(call, 401)
    mount.now_s += REST_MIN_S
    assert mount.ring.candidates(RING)[0] == TWO


def test_trial_without_an_answer_leaves_the_next_one_to_a_later_call(mount: Mount) -> None:
    """A trial that gets no answer says nothing of the key; it is tried again after another rest."""
    mount.refuse(TWO)
    mount.now_s += REST_MIN_S
    mount.ring.answered(mount.ring.take(TWO), None)
    assert mount.ring.candidates(RING)[0] != TWO
    mount.now_s += REST_MIN_S
    assert mount.ring.candidates(RING)[0] == TWO


def test_ring_that_rests_as_a_whole_is_asked_by_the_key_that_rested_longest(mount: Mount) -> None:
    """Where no key works nothing is invented: a key is asked with, and there is none to ask once more with."""
    for label in (TWO, THREE, ONE):
        mount.refuse(label)
        mount.now_s += 1
    assert list(mount.ring.candidates(RING)) == [TWO, THREE, ONE]
    assert mount.ring.spare(RING) is None


def test_outcomes_are_told_by_label_and_class(mount: Mount) -> None:
    """Every answer counts once, under a class of a closed set."""
    for status in (200, 201, 401, 403, 404, 429, 500, 503, None):
        mount.ring.answered(mount.ring.take(ONE), status)
    assert mount.watcher.found == ["one"]
    assert mount.watcher.outcomes == {
        ("one", "answered"): 2,
        ("one", "refused"): 2,
        ("one", "rejected"): 1,
        ("one", "limited"): 1,
        ("one", "failed"): 2,
        ("one", "unanswered"): 1,
    }


# --- files --------------------------------------------------------------------------------------------------------


def test_rotated_file_is_read_within_a_second_of_use(mount: Mount) -> None:
    """A new key is used once the next look is due; what was handed out before stays what it was."""
    before = mount.ring.take(ONE)
    mount.write(ONE, "key-rotated")
    assert mount.secret(ONE) == "key-one"
    mount.now_s += LOOK_EVERY_S
    assert mount.secret(ONE) == "key-rotated"
    assert before.secret.reveal() == "key-one"


def test_rotated_key_is_read_at_once_when_the_old_one_is_refused(mount: Mount) -> None:
    """A rotation that ends the old key at once costs no rest, and the same key is there to ask once more with."""
    old = mount.ring.take(ONE)
    mount.write(ONE, "key-rotated")
    mount.ring.answered(old, 401)
    assert mount.watcher.health == []
    assert mount.ring.spare((ONE,)) == ONE
    assert mount.secret(ONE) == "key-rotated"


def test_refusal_of_a_replaced_key_says_nothing_of_the_new_one(mount: Mount) -> None:
    """An answer that was under way over a rotation does not put the new key to rest."""
    old = mount.ring.take(ONE)
    mount.write(ONE, "key-rotated")
    mount.now_s += LOOK_EVERY_S
    mount.ring.take(ONE)
    mount.ring.answered(old, 401)
    assert mount.watcher.health == []


def test_rotation_ends_the_rest_of_a_refused_key(mount: Mount) -> None:
    """A wrong key that is replaced is used at the next look, not after minutes of rest."""
    mount.refuse(ONE)
    mount.now_s += LOOK_EVERY_S
    mount.write(ONE, "key-that-is-right")
    assert mount.ring.candidates(RING)
    assert mount.watcher.health == [("one", False), ("one", True)]
    assert mount.secret(ONE) == "key-that-is-right"


@pytest.mark.parametrize("state", ["empty", "gone", "garbage", "link"])
def test_file_that_cannot_be_read_leaves_the_key_that_was_known(mount: Mount, state: str) -> None:
    """A file that is being written, or is gone, takes nothing away; the next good state is taken."""
    assert mount.secret(ONE) == "key-one"
    path = mount.path / ONE
    match state:
        case "empty":
            path.write_text("")
        case "garbage":
            path.write_bytes(b"\xff\n\xff")
        case _:
            path.unlink()
            if state == "link":
                path.symlink_to("/proc/self/environ")
    mount.now_s += LOOK_EVERY_S
    assert mount.secret(ONE) == "key-one"
    fresh = mount.path / ".fresh"
    fresh.write_text("key-again")
    os.replace(fresh, path)
    mount.now_s += LOOK_EVERY_S
    assert mount.secret(ONE) == "key-again"


def test_label_that_was_unknown_at_the_start_is_read_on_first_use(mount: Mount) -> None:
    """A tenant that comes later may bring a key; until its file is there the call is refused as unavailable."""
    late = KeyLabel("late")
    with pytest.raises(GatewayError) as refused:
        mount.ring.take(late)
    assert refused.value.code is Code.UPSTREAM_UNAVAILABLE
    assert "late" not in refused.value.detail
    assert list(mount.ring.candidates((late, ONE))) == [ONE, late]
    mount.write(late, "key-late")
    mount.now_s += LOOK_EVERY_S
    assert mount.secret(late) == "key-late"
    assert mount.watcher.found == ["one", "late"]


def test_require_names_the_tenant_whose_key_is_missing(mount: Mount) -> None:
    """At the start a key that is not there stops it, by tenant and field."""
    tenant = Tenant(id=TenantId("acme"), personas={}, vendor_keys=(ONE, KeyLabel("four")))
    with pytest.raises(SettingsError, match=r"tenants\.acme\.vendor_keys: key four"):
        mount.ring.require({tenant.id: tenant})
    (mount.path / "four").write_text("key-four")
    mount.ring.require({tenant.id: tenant})
    assert mount.watcher.found == ["one", "four"]


def test_key_is_in_no_repr(mount: Mount) -> None:
    """Ring and credentials show labels and states, never a key."""
    credential = mount.refuse(ONE)
    mount.ring.take(TWO)
    assert repr(mount.ring) == "<KeyRing one (rests) two>"
    assert "key-" not in f"{mount.ring!r} {credential!r} {credential}"
