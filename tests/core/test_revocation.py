"""What a revocation covers, and what it leaves alone."""

from __future__ import annotations

import pytest

from gateway.core.identity import TenantId, UserHash
from gateway.core.revocation import NEVER, Holder, Revocation, Revoked, RevokedSet

ACME, OTHER = TenantId("acme"), TenantId("other")
ADA = UserHash("hash-of-ada")
HOLDER = Holder(ACME, ADA, "token-1", "key-1", 100.0)


def revoked(*revocations: Revocation) -> RevokedSet:
    known = RevokedSet()
    for revocation in revocations:
        known.add(revocation)
    return known


def of(what: Revoked, id_: str = "", tenant: TenantId = ACME, at_s: float = 100.0) -> Revocation:
    return Revocation(what, tenant, id_, at_s, NEVER if what is Revoked.TENANT else 1000.0)


@pytest.mark.parametrize(
    ("revocation", "covered"),
    [
        (of(Revoked.TENANT), True),
        (of(Revoked.TENANT, tenant=OTHER), False),
        (of(Revoked.TOKEN, "token-1"), True),
        (of(Revoked.TOKEN, "token-2"), False),
        (of(Revoked.TOKEN, "key-1"), False),
        (of(Revoked.TOKEN, "token-1", OTHER), False),
        (of(Revoked.KEY, "key-1"), True),
        (of(Revoked.KEY, "key-2"), False),
        (of(Revoked.KEY, "key-1", OTHER), False),
        (of(Revoked.USER, ADA), True),
        (of(Revoked.USER, ADA, at_s=99.9), False),  # issued after
        (of(Revoked.USER, "hash-of-bob"), False),
        (of(Revoked.USER, ADA, OTHER), False),
        (of(Revoked.SESSIONS), True),
        (of(Revoked.SESSIONS, at_s=99.9), False),  # of a tenant that was made again since
        (of(Revoked.SESSIONS, tenant=OTHER), False),
    ],
)
def test_revocation_covers_what_it_is_of_and_nothing_else(revocation: Revocation, covered: bool) -> None:
    """A token, a key's sessions, what a user was given so far, or all of a tenant: never another's, never more."""
    assert revoked(revocation).cover(HOLDER) is covered
    assert not RevokedSet().cover(HOLDER)


def test_revocation_of_a_user_covers_a_holder_of_unknown_origin() -> None:
    """Of a turn that was taken over nobody knows the token: it goes with its user and its tenant."""
    unknown = Holder(ACME, ADA)
    assert revoked(of(Revoked.USER, ADA)).cover(unknown)
    assert revoked(of(Revoked.TENANT)).cover(unknown)
    assert revoked(of(Revoked.SESSIONS)).cover(unknown)
    assert not revoked(of(Revoked.TOKEN, "token-1"), of(Revoked.KEY, "key-1")).cover(unknown)


def test_revocation_that_is_later_stands() -> None:
    """Of two revocations of one user the later counts, in whichever order they arrive; a repeat is no news."""
    for times_s in ((100.0, 200.0), (200.0, 100.0)):
        known = RevokedSet()
        news = [known.add(of(Revoked.USER, ADA, at_s=at_s)) for at_s in times_s]
        assert news == ([True, True] if times_s[0] < times_s[1] else [True, False])
        assert known.cover(HOLDER._replace(issued_at_s=150.0))
        assert not known.cover(HOLDER._replace(issued_at_s=250.0))
        assert len(known) == 1


def test_revocation_of_a_tenant_lasts_until_it_is_lifted() -> None:
    """Time lets go of tokens, keys and users, whose tokens are over by then; of a tenant only an operator does."""
    known = revoked(of(Revoked.TENANT), of(Revoked.TOKEN, "token-1"))
    known.prune(1000.1)
    assert [revocation.what for revocation in known] == [Revoked.TENANT]
    assert known.lift(ACME)
    assert not known.lift(ACME)
    assert not known.cover(HOLDER)
