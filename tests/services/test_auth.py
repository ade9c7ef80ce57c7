"""Credentials: only what the gateway signed opens anything, and a refusal tells nothing that the asker did not know."""

from __future__ import annotations

import base64
import hmac
import json
import time
from dataclasses import replace
from typing import Any

import jwt
import pytest

from gateway.core.errors import Code
from gateway.core.identity import Tenant, TenantId
from gateway.core.keys import KeyKind
from gateway.core.limits import LIMIT_MAX
from gateway.core.plan import ScopeLimits
from gateway.core.revocation import Revocation, Revoked
from gateway.services.auth import Auth
from gateway.services.keys import ApiKeys
from gateway.services.registry import Registry
from gateway.services.sessions import Sessions
from gateway.services.tokens import AUDIENCE, LEEWAY_S, Signer
from gateway.store.redis import Redis
from tests.services.access import (
    FOREIGN,
    KEY,
    OLD_KEY,
    ORIGIN,
    OTHER_KEY,
    CountedKeys,
    auth_of,
    claims_of,
    refusal,
    refused,
    session,
    signed,
    tenant_named,
    user_token,
)

# --- tokens -------------------------------------------------------------------------------------------------------


async def test_token_opens_what_it_was_minted_for(keys: CountedKeys, tenant: Tenant) -> None:
    """A session token proves its user in its tenant, with its personas, until its time is over."""
    auth = auth_of(keys, tenant)
    token = await user_token(auth, tenant, personas=["other"], ttl_s=60)
    principal = await auth.principal(token, ORIGIN)
    assert (principal.tenant.id, principal.user_id, principal.personas) == (tenant.id, "u1", frozenset({"other"}))
    assert principal.user_hash == auth.user_hash(tenant.id, "u1")
    assert not principal.anonymous
    assert 50 < principal.expires_at_s - time.time() <= 60
    assert token.startswith("hgt_")


async def test_token_is_proved_without_the_store(tenant: Tenant) -> None:
    """No request costs a round trip for its token: it is proved, and checked for revocation, with the store away."""
    away = Redis("redis://127.0.0.1:1", timeout_s=0.2, connections=1)
    auth = auth_of(CountedKeys(away), tenant)
    token = Sessions(auth).for_user(tenant.id, user_id="u1").token
    assert (await auth.principal(token, ORIGIN)).user_id == "u1"
    once = Sessions(auth).for_user(tenant.id, user_id="u1", single_use=True).token
    assert await refused(auth, once) is Code.STORE_UNAVAILABLE  # whether it was used nobody can say
    await away.aclose()


async def test_token_shown_again_names_the_same_user_as_its_tenant_is_now(keys: CountedKeys, tenant: Tenant) -> None:
    """A principal is made once a token, and anew when its tenant is another or another token has its id."""
    auth = auth_of(keys, tenant)
    token = await user_token(auth, tenant, personas=["other"], ttl_s=60)
    first = await auth.principal(token, ORIGIN)
    assert await auth.principal(token, ORIGIN) is first
    changed = replace(tenant, origins=frozenset({FOREIGN}))
    auth.tenants.replace({tenant.id: changed})
    assert await refused(auth, token, ORIGIN) is Code.ORIGIN_NOT_ALLOWED
    now = await auth.principal(token, FOREIGN)
    assert now == replace(first, tenant=changed)
    twin = signed(claims_of(token) | {"sub": "u2"})
    assert (await auth.principal(twin, None)).user_id == "u2"
    assert (await auth.principal(token, None)).user_id == "u1"
    assert (await auth.principal(twin, None)).user_hash == auth.user_hash(tenant.id, "u2")


async def test_user_hash_differs_between_users_tenants_and_peppers(keys: CountedKeys, tenant: Tenant) -> None:
    """The keyed hash tells nobody who a user is, and nobody's parts can be shifted into another's."""
    auth = auth_of(keys, tenant)
    other = Auth(
        Registry(),
        ApiKeys(keys, pepper=b"another"),
        auth.tokens,
        auth.tickets,
        auth._issuers,
        auth.revocations,
        pepper=b"another",
    )
    hashes = [
        auth.user_hash(TenantId("a"), "b"),
        auth.user_hash(TenantId("ab"), ""),
        auth.user_hash(TenantId("a"), "c"),
        other.user_hash(TenantId("a"), "b"),
    ]
    assert len(set(hashes)) == 4
    assert all(len(value) == 32 for value in hashes)


async def test_token_of_the_previous_key_is_read_until_that_key_is_gone(keys: CountedKeys, tenant: Tenant) -> None:
    """While a signing key is rotated out its tokens still work; afterwards they are invalid, not an accident."""
    token = await user_token(auth_of(keys, tenant, key=OLD_KEY), tenant)
    rotating = auth_of(keys, tenant, key=KEY, previous=OLD_KEY)
    assert (await rotating.principal(token, None)).user_id == "u1"
    assert claims_of(await user_token(rotating, tenant))
    assert await refused(auth_of(keys, tenant, key=KEY), token) is Code.CREDENTIAL_INVALID
    fresh = await user_token(rotating, tenant)
    assert (await auth_of(keys, tenant, key=KEY).principal(fresh, None)).user_id == "u1"


async def test_token_past_its_time_is_expired(keys: CountedKeys, tenant: Tenant) -> None:
    """An expired token has its own code, so that a client brings a new one; the clocks' leeway is small."""
    auth = auth_of(keys, tenant)
    claims = claims_of(await user_token(auth, tenant))
    now_s = int(time.time())
    late = claims | {"iat": now_s - 100, "exp": now_s - int(LEEWAY_S) - 1}
    assert await refused(auth, signed(late)) is Code.TOKEN_EXPIRED
    assert (await auth.principal(signed(claims), None)).user_id == "u1"


@pytest.mark.parametrize(
    "change",
    [
        {"aud": "another-service"},
        {"aud": "hyperleap-gateway-visitor"},
        {"aud": None},
        {"ten": None},
        {"ten": "t-unknown"},
        {"ten": 5},
        {"exp": None},
        {"iat": None},
        {"sub": None},
        {"sub": 5},
        {"exp": "soon"},
        {"nbf": 2**40},
        {"iat": 2**40},
    ],
)
async def test_token_with_wrong_claims_is_invalid(keys: CountedKeys, tenant: Tenant, change: dict[str, Any]) -> None:
    """A token that we signed for something else, or not whole, opens nothing (None leaves the claim out)."""
    auth = auth_of(keys, tenant)
    claims = claims_of(await user_token(auth, tenant)) | change
    claims = {name: value for name, value in claims.items() if value is not None}
    try:
        token = signed(claims)
    except TypeError:  # what cannot even be signed by the library is signed by hand
        token = forged(claims)
    assert await refused(auth, token) is Code.CREDENTIAL_INVALID


def forged(claims: dict[str, Any]) -> str:
    api = jwt.PyJWS()
    return "hgt_" + api.encode(json.dumps(claims).encode(), KEY, "HS256", headers={"kid": Signer(KEY, None)._kid})


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


async def test_token_without_a_signature_is_invalid(keys: CountedKeys, tenant: Tenant) -> None:
    """``alg: none``, another algorithm, another key or a changed body: none of them is a signature of ours."""
    auth = auth_of(keys, tenant)
    token = await user_token(auth, tenant)
    claims, kid = claims_of(token), Signer(KEY, None)._kid
    head, body, signature = token.removeprefix("hgt_").split(".")
    for forgery in (
        f"hgt_{part({'alg': 'none', 'kid': kid})}.{part(claims)}.",
        f"hgt_{part({'alg': 'None', 'kid': kid})}.{part(claims)}.{signature}",
        f"hgt_{head}.{body}.",
        f"hgt_{head}.{part(claims | {'sub': 'admin'})}.{signature}",
        f"hgt_{part({'alg': 'HS256', 'kid': [kid]})}.{body}.{signature}",
        f"hgt_{part({'alg': 'HS256'})}.{body}.{signature}",
        signed(claims, key=OTHER_KEY, kid=kid),
        signed(claims, key=OTHER_KEY),
        "hgt_" + jwt.encode(claims, KEY * 2, algorithm="HS512", headers={"kid": kid}),
    ):
        assert await refused(auth, forgery) is Code.CREDENTIAL_INVALID
    assert (await auth.principal(token, None)).user_id == "u1"


@pytest.mark.parametrize(
    "credential",
    ["", "hgt_", "hgt_x", "hgt_a.b.c", "hgt_\udcff", "hgt_é.é.é", "Bearer x", "hgv_x", "hgt_" + "a" * 5000, "x" * 9],
)
async def test_credential_that_is_no_token_is_invalid(keys: CountedKeys, tenant: Tenant, credential: str) -> None:
    """Nothing that a stranger sends in a token's place is anything but invalid."""
    assert await refused(auth_of(keys, tenant), credential) is Code.CREDENTIAL_INVALID


async def test_key_in_a_tokens_place_is_told_apart(keys: CountedKeys, tenant: Tenant) -> None:
    """A key sent where a token belongs is forbidden in words, since its owner's developer made a mistake."""
    auth = auth_of(keys, tenant)
    for kind in KeyKind:
        key = (await auth.keys.mint(tenant.id, kind, "tests")).key
        assert await refused(auth, key) is Code.FORBIDDEN


async def test_token_of_a_removed_tenant_is_invalid(keys: CountedKeys, tenant: Tenant) -> None:
    """A tenant that is no longer configured has no users either."""
    token = await user_token(auth_of(keys, tenant), tenant)
    assert await refused(auth_of(keys, tenant_named("t-other")), token) is Code.CREDENTIAL_INVALID


async def test_token_from_a_foreign_origin_is_refused(keys: CountedKeys, tenant: Tenant) -> None:
    """A browser's origin must be the tenant's, and the token's where it names any; no origin is no browser."""
    auth = auth_of(keys, tenant)
    token = await user_token(auth, tenant)
    assert await refused(auth, token, FOREIGN) is Code.ORIGIN_NOT_ALLOWED
    assert await auth.principal(token, ORIGIN)
    assert await auth.principal(token, None)
    auth.allow_origins(frozenset({"http://127.0.0.1:8080"}))
    assert await auth.principal(token, "http://127.0.0.1:8080")
    narrow = await user_token(auth, tenant, origins=["https://narrow.example"])
    assert await refused(auth, narrow, ORIGIN) is Code.ORIGIN_NOT_ALLOWED


# --- tokens shown again -------------------------------------------------------------------------------------------


async def test_token_shown_again_expires_on_time(
    keys: CountedKeys, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that was proved before is refused from the same moment on as one that is shown for the first time."""
    auth = auth_of(keys, tenant)
    token = await user_token(auth, tenant, ttl_s=60)
    ends_s = (await auth.principal(token, ORIGIN)).expires_at_s
    monkeypatch.setattr(time, "time", lambda: ends_s + LEEWAY_S - 0.01)
    assert await auth.principal(token, ORIGIN)
    monkeypatch.setattr(time, "time", lambda: ends_s + LEEWAY_S)
    assert await refused(auth, token, ORIGIN) is Code.TOKEN_EXPIRED
    assert auth.tokens._proved == {}


async def test_token_shown_again_is_held_to_what_is_allowed_now(keys: CountedKeys, tenant: Tenant) -> None:
    """Origin, tenant and revocation are looked at whenever a token is shown, as they are at that time."""
    auth = auth_of(keys, tenant)
    token = await user_token(auth, tenant)
    assert (await auth.principal(token, ORIGIN)).tenant is tenant
    assert await refused(auth, token, FOREIGN) is Code.ORIGIN_NOT_ALLOWED

    moved = tenant_named(tenant.id, origins=frozenset({FOREIGN}))
    auth.tenants.replace({tenant.id: moved})
    assert (await auth.principal(token, FOREIGN)).tenant == moved
    assert await refused(auth, token, ORIGIN) is Code.ORIGIN_NOT_ALLOWED

    auth.tenants.replace({})
    assert await refused(auth, token) is Code.CREDENTIAL_INVALID
    auth.tenants.replace({tenant.id: tenant})
    assert await auth.principal(token, ORIGIN)

    now_s = time.time()
    user = auth.user_hash(tenant.id, "u1")
    auth.revocations.revoked(Revocation(Revoked.USER, tenant.id, user, at_s=now_s, until_s=now_s + 900))
    assert await refused(auth, token, ORIGIN) is Code.REVOKED


async def test_token_for_one_use_is_not_good_for_another(keys: CountedKeys, tenant: Tenant) -> None:
    """A single-use token is used up by its first use, however it was proved."""
    auth = auth_of(keys, tenant)
    token = await user_token(auth, tenant, single_use=True)
    assert await auth.principal(token, ORIGIN)
    assert await refused(auth, token, ORIGIN) is Code.CREDENTIAL_USED
    assert auth.tokens._proved == {}


async def test_proved_tokens_are_kept_by_digest_the_latest_used_and_a_bounded_number(
    keys: CountedKeys, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither tokens nor their signatures stay in memory, and however many are shown, the memory has an end."""
    monkeypatch.setattr("gateway.services.tokens.PROVED_MAX", 3)
    auth = auth_of(keys, tenant)
    sessions = Sessions(auth)
    tokens = [sessions.for_user(tenant.id, user_id=f"u{n}").token for n in range(4)]
    for shown in (0, 1, 2, 0, 3):
        assert (await auth.principal(tokens[shown], ORIGIN)).user_id == f"u{shown}"
    kept = auth.tokens._proved
    assert [claims["sub"] for claims in kept.values()] == ["u2", "u0", "u3"]
    assert all(token.rpartition(".")[2] not in repr(kept) for token in tokens)
    for forgery in (tokens[0][:-4] + "AAAA", tokens[0].removeprefix("hgt_")):
        assert await refused(auth, forgery) is Code.CREDENTIAL_INVALID
    assert len(kept) == 3


# --- opening sessions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"user_id": None}, Code.MISSING_FIELD, "user_id"),
        ({"user_id": ""}, Code.INVALID_VALUE, "user_id"),
        ({"user_id": "x" * 257}, Code.INVALID_VALUE, "user_id"),
        ({"user_id": "a\nb"}, Code.INVALID_VALUE, "user_id"),
        ({"ttl_s": 29}, Code.INVALID_VALUE, "ttl_s"),
        ({"ttl_s": 86_401}, Code.INVALID_VALUE, "ttl_s"),
        ({"personas": ["default", "nobody"]}, Code.PERSONA_UNKNOWN, "personas"),
        ({"visitor_id": "hgv_x"}, Code.FORBIDDEN, "visitor_id"),
        ({"personas": []}, Code.INVALID_VALUE, "personas"),
        ({"personas": ["default"] * 65}, Code.INVALID_VALUE, "personas"),
        ({"origins": ["https://a.example"] * 33}, Code.INVALID_VALUE, "origins"),
        ({"origins": [f"https://{'x' * 60}.{'x' * 60}.example"] * 32}, Code.INVALID_VALUE, None),
        ({"limits": {"requests_per_min": 0}}, Code.INVALID_VALUE, "limits.requests_per_min"),
        ({"limits": {"requests_per_min": 61}}, Code.INVALID_VALUE, "limits.requests_per_min"),
        ({"limits": {"concurrent_turns": 21}}, Code.INVALID_VALUE, "limits.concurrent_turns"),
        ({"limits": {"tokens_per_min": LIMIT_MAX + 1}}, Code.INVALID_VALUE, "limits.tokens_per_min"),
    ],
)
async def test_session_with_bad_fields_is_refused_by_field(
    keys: CountedKeys, tenant: Tenant, fields: dict[str, Any], code: Code, field: str | None
) -> None:
    """Each bound of a session has its code and its field."""
    auth = auth_of(keys, tenant)
    key = (await auth.keys.mint(tenant.id, KeyKind.SECRET, "tests")).key
    error = await refusal(session(auth, key, **({"user_id": "u1"} | fields)))
    assert (error.code, error.field) == (code, field)


async def test_session_of_a_wrong_key_is_invalid_and_looks_like_an_unknown_one(
    keys: CountedKeys, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong secret and an unknown id get the same words, and the secret is hashed and compared for both."""
    auth = auth_of(keys, tenant)
    key = (await auth.keys.mint(tenant.id, KeyKind.SECRET, "tests")).key
    head, key_id, _ = key.split(".")
    compared: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def counted(left: str, right: str) -> bool:
        compared.append((len(left), len(right)))
        return bool(compare(left, right))

    monkeypatch.setattr(hmac, "compare_digest", counted)
    told = set()
    for wrong in (f"{head}.{key_id}.{'A' * 43}", f"{head}.ffffffffffff.{'A' * 43}"):
        compared.clear()
        error = await refusal(session(auth, wrong, user_id="u1"))
        told.add((error.code, error.detail, error.field))
        assert compared == [(64, 64)]
    assert told == {(Code.CREDENTIAL_INVALID, told.copy().pop()[1], None)}


async def test_session_of_a_key_under_another_kind_or_tenant_is_invalid(keys: CountedKeys, tenant: Tenant) -> None:
    """A publishable key does not become a secret one by its prefix, nor a tenant's key another tenant's."""
    other = tenant_named(f"{tenant.id}-2")
    auth = auth_of(keys, tenant, other)
    publishable = (await auth.keys.mint(tenant.id, KeyKind.PUBLISHABLE, "tests")).key
    secret = (await auth.keys.mint(tenant.id, KeyKind.SECRET, "tests")).key
    for wrong in (
        publishable.replace("hgp_", "hgs_"),
        secret.replace(f"_{tenant.id}.", f"_{other.id}."),
        secret.replace(f"_{tenant.id}.", "_t-unknown."),
        "hgs_nonsense",
        "",
    ):
        assert (await refusal(session(auth, wrong, user_id="u1"))).code is Code.CREDENTIAL_INVALID


async def test_session_by_a_token_is_forbidden(keys: CountedKeys, tenant: Tenant) -> None:
    """A session does not prolong itself."""
    auth = auth_of(keys, tenant)
    token = await user_token(auth, tenant)
    assert (await refusal(session(auth, token, user_id="u1"))).code is Code.FORBIDDEN


# --- visitors -----------------------------------------------------------------------------------------------------


@pytest.fixture
async def door(keys: CountedKeys, tenant: Tenant) -> tuple[Auth, str]:
    """A gateway and its publishable key."""
    auth = auth_of(keys, tenant)
    return auth, (await auth.keys.mint(tenant.id, KeyKind.PUBLISHABLE, "tests", replace=False)).key


async def test_visitor_who_comes_back_is_the_same_user(door: tuple[Auth, str]) -> None:
    """An anonymous session gives a visitor id, which next time leads back to the same user, and to no other."""
    auth, key = door
    first = await session(auth, key, ORIGIN)
    assert first.visitor_id is not None
    again = await session(auth, key, ORIGIN, visitor_id=first.visitor_id)
    assert again.user_id == first.user_id
    assert (await session(auth, key, ORIGIN)).user_id != first.user_id
    principal = await auth.principal(first.token, ORIGIN)
    assert principal.anonymous
    assert principal.user_id == first.user_id


async def test_visitor_id_opens_nothing_by_itself(door: tuple[Auth, str]) -> None:
    """A visitor id is no token, under either prefix, and a token is no visitor id."""
    auth, key = door
    first = await session(auth, key, ORIGIN)
    assert first.visitor_id is not None
    for credential in (first.visitor_id, first.visitor_id.replace("hgv_", "hgt_")):
        assert await refused(auth, credential) is Code.CREDENTIAL_INVALID
    for visitor_id in (first.token, first.token.replace("hgt_", "hgv_")):
        error = await refusal(session(auth, key, ORIGIN, visitor_id=visitor_id))
        assert (error.code, error.field) == (Code.INVALID_VALUE, "visitor_id")


async def test_visitor_id_of_another_tenant_starts_anew_and_a_forged_one_fails(
    door: tuple[Auth, str], keys: CountedKeys, tenant: Tenant
) -> None:
    """A visitor's id says nothing in another tenant; one that was tampered with is refused by field."""
    auth, key = door
    other = tenant_named(f"{tenant.id}-2")
    elsewhere = auth_of(keys, other)
    key_elsewhere = (await elsewhere.keys.mint(other.id, KeyKind.PUBLISHABLE, "tests")).key
    stranger = await session(elsewhere, key_elsewhere, ORIGIN)
    assert (await session(auth, key, ORIGIN, visitor_id=stranger.visitor_id)).user_id != stranger.user_id
    first = await session(auth, key, ORIGIN)
    assert first.visitor_id is not None
    head, body, signature = first.visitor_id.split(".")
    for forgery in (
        f"{head}.{body}.{signature[:-6]}AAAAAA",
        "hgv_x",
        "u1",
        "",
        "hgv_" + "a" * 5000,
    ):
        error = await refusal(session(auth, key, ORIGIN, visitor_id=forgery))
        assert (error.code, error.field) == (Code.INVALID_VALUE, "visitor_id")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"user_id": "u1"}, "user_id"),
        ({"personas": ["default"]}, "personas"),
        ({"origins": ["https://a.example"]}, "origins"),
        ({"limits": {"requests_per_min": 1}}, "limits.requests_per_min"),
        ({"single_use": False}, "single_use"),
    ],
)
async def test_publishable_key_may_not_name_its_user(door: tuple[Auth, str], fields: Any, field: str) -> None:
    """A key that is public decides neither who somebody is nor what they may reach."""
    auth, key = door
    error = await refusal(session(auth, key, ORIGIN, **fields))
    assert (error.code, error.field) == (Code.FORBIDDEN, field)


@pytest.mark.parametrize("origin", [None, FOREIGN, "null", ORIGIN + ".evil.example", ORIGIN.upper()])
async def test_publishable_key_works_from_a_listed_origin_only(door: tuple[Auth, str], origin: str | None) -> None:
    """Without an origin of the tenant's a publishable key opens nothing."""
    auth, key = door
    assert (await refusal(session(auth, key, origin))).code is Code.ORIGIN_NOT_ALLOWED


async def test_publishable_key_of_a_tenant_without_anonymous_sessions_opens_none(
    keys: CountedKeys, tenant: Tenant
) -> None:
    """Anonymous sessions are off unless the tenant switched them on."""
    quiet = tenant_named(tenant.id, anonymous=False)
    auth = auth_of(keys, quiet)
    key = (await auth.keys.mint(quiet.id, KeyKind.PUBLISHABLE, "tests")).key
    assert (await refusal(session(auth, key, ORIGIN))).code is Code.ANONYMOUS_DISABLED


async def test_app_key_needs_no_origin_and_is_refused_from_a_foreign_page(keys: CountedKeys, tenant: Tenant) -> None:
    """A native app has no origin to check; a page that shows one must be the tenant's all the same."""
    auth = auth_of(keys, tenant)
    key = (await auth.keys.mint(tenant.id, KeyKind.APP, "tests")).key
    opened = await session(auth, key, None)
    assert (await auth.principal(opened.token, None)).anonymous
    assert (await session(auth, key, None, visitor_id=opened.visitor_id)).user_id == opened.user_id
    assert await session(auth, key, ORIGIN)
    assert (await refusal(session(auth, key, FOREIGN))).code is Code.ORIGIN_NOT_ALLOWED
    assert (await refusal(session(auth, key, None, user_id="u1"))).code is Code.FORBIDDEN


async def test_token_and_ticket_tell_which_limits_hold(keys: CountedKeys, tenant: Tenant) -> None:
    """Who came in by which key, and a session's own limits, are in the token and in the tickets got with it.

    The tenant stays the one that is set: its plan is no principal's own.
    """
    auth = auth_of(keys, tenant)
    own = {"requests_per_min": 2, "tokens_per_min": 1000, "concurrent_turns": 1}
    tokens = [await user_token(auth, tenant), await user_token(auth, tenant, limits=own)]
    visitors = [await auth.keys.mint(tenant.id, kind, "tests") for kind in (KeyKind.PUBLISHABLE, KeyKind.APP)]
    tokens += [(await session(auth, minted.key, ORIGIN)).token for minted in visitors]
    wanted = [
        (False, False, None),
        (False, False, ScopeLimits(requests_per_min=2, tokens_per_min=1000, concurrent_turns=1)),
        (True, False, None),
        (True, True, None),
    ]
    for token, facts in zip(tokens, wanted, strict=True):
        principal = await auth.principal(token, None)
        holder = await auth.ticket_holder(auth.tickets.mint(principal, "/v1/ws").ticket, "/v1/ws", None)
        for one in (principal, holder):
            assert (one.anonymous, one.app, one.limits) == facts
            assert one.tenant is tenant


async def test_origin_known_is_the_union_of_all_tenants(keys: CountedKeys) -> None:
    """A preflight knows no tenant, so it goes by all of them; nothing else is let in."""
    auth = auth_of(keys, tenant_named("a"), tenant_named("b", origins=frozenset({"https://b.example"})))
    assert auth.origin_known(ORIGIN)
    assert auth.origin_known("https://b.example")
    assert not auth.origin_known(FOREIGN)
    assert AUDIENCE in claims_of(Signer(KEY, None).sign({"aud": AUDIENCE}))["aud"]
