"""Tokens of tenants' own issuers: only what the issuer signed, for this audience, by its algorithm, in its time."""

from __future__ import annotations

import base64
import hmac
import json
import time
from hashlib import sha256
from typing import Any

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gateway.core.errors import Code
from gateway.core.identity import Tenant
from gateway.core.issuers import Issuer, KeySetUnavailable
from gateway.core.revocation import Revoked
from gateway.services.auth import Auth
from tests.issuer import AUDIENCE, ISSUER, IssuerServer, SigningKey
from tests.services.access import FOREIGN, ORIGIN, CountedKeys, auth_of, refused, tenant_named

KEYS = {algorithm: SigningKey(algorithm) for algorithm in ("RS256", "ES256", "EdDSA")}
STRANGER = SigningKey("RS256")
NOW_S = int(time.time())


class Published:
    """A KeySetSource with one key of each algorithm."""

    async def fetch(self, url: str) -> bytes:
        if url.endswith("/away"):
            raise KeySetUnavailable("away")
        return msgspec.json.encode({"keys": [key.jwk() for key in KEYS.values()]})


def issuer_of(**fields: Any) -> Issuer:
    return Issuer(**{"issuer": ISSUER, "audience": AUDIENCE, "jwks_url": "https://login.acme.example/keys", **fields})


def sign(key: SigningKey = KEYS["ES256"], *, header: dict[str, Any] | None = None, **claims: Any) -> str:
    """Sign a token of the issuer's, sound but for what is given."""
    return IssuerServer().token(key, header=header, **claims)


@pytest.fixture
def acme(tenant: Tenant) -> Tenant:
    return tenant_named(tenant.id, issuers=(issuer_of(),))


@pytest.fixture
def auth(keys: CountedKeys, acme: Tenant) -> Auth:
    return auth_of(keys, acme, source=Published())


@pytest.mark.parametrize("key", KEYS.values(), ids=list(KEYS))
async def test_token_of_each_algorithm_opens_what_a_session_token_does(
    auth: Auth, acme: Tenant, key: SigningKey
) -> None:
    """A tenant's token proves its user, who is the same as by a session token, until the token's end."""
    principal = await auth.principal(sign(key, jti="j1"), ORIGIN)
    assert (principal.tenant.id, principal.user_id, principal.personas) == (acme.id, "ada", None)
    assert principal.user_hash == auth.user_hash(acme.id, "ada")
    assert (principal.token_id, principal.anonymous) == ("j1", False)
    assert principal.expires_at_s == pytest.approx(time.time() + 300, abs=3)


async def test_token_claims_are_mapped_by_the_settings(keys: CountedKeys, tenant: Tenant) -> None:
    """User and personas come from the claims that the tenant names; what it does not list is left out."""
    issuer = issuer_of(user_claim="https://acme.example/uid", personas_claim="scope")
    auth = auth_of(keys, tenant_named(tenant.id, issuers=(issuer,)), source=Published())
    uid: dict[str, Any] = {"https://acme.example/uid": "u-7"}
    for scope, personas in (
        ("openid other", {"other"}),
        (["default", "other", "nobody", 5], {"default", "other"}),
        ("nothing", set()),
        (None, set()),  # named in the settings and not in the token: none, not all
        (7, set()),
    ):
        principal = await auth.principal(sign(scope=scope, **uid), None)
        assert principal.user_id == "u-7"
        assert principal.personas == frozenset(personas)
    assert await refused(auth, sign(scope="other")) is Code.CREDENTIAL_INVALID  # no such user claim


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"exp": NOW_S - 10, "iat": NOW_S - 100}, Code.TOKEN_EXPIRED),
        ({"nbf": NOW_S + 1000}, Code.CREDENTIAL_INVALID),
        ({"iat": NOW_S + 1000, "exp": NOW_S + 1300}, Code.CREDENTIAL_INVALID),
        ({"aud": "another"}, Code.CREDENTIAL_INVALID),
        ({"aud": ["another"]}, Code.CREDENTIAL_INVALID),
        ({"aud": None}, Code.CREDENTIAL_INVALID),
        ({"aud": 5}, Code.CREDENTIAL_INVALID),
        ({"iss": "https://login.evil.example/"}, Code.CREDENTIAL_INVALID),
        ({"iss": ISSUER.rstrip("/")}, Code.CREDENTIAL_INVALID),
        ({"iss": None}, Code.CREDENTIAL_INVALID),
        ({"sub": None}, Code.CREDENTIAL_INVALID),
        ({"sub": ""}, Code.CREDENTIAL_INVALID),
        ({"sub": "x" * 257}, Code.CREDENTIAL_INVALID),
        ({"sub": "a\nb"}, Code.CREDENTIAL_INVALID),
        ({"exp": None}, Code.CREDENTIAL_INVALID),
        ({"iat": None}, Code.CREDENTIAL_INVALID),
        ({"exp": "soon"}, Code.CREDENTIAL_INVALID),
        ({"exp": float("inf")}, Code.CREDENTIAL_INVALID),
        ({"iat": float("nan")}, Code.CREDENTIAL_INVALID),
        ({"exp": NOW_S + 100_000}, Code.CREDENTIAL_INVALID),  # longer than a revocation is kept
        ({"note": "x" * 4000}, Code.CREDENTIAL_INVALID),  # above 4 KiB
    ],
)
async def test_token_with_wrong_claims_is_refused(auth: Auth, claims: dict[str, Any], code: Code) -> None:
    """Each claim that is not as it must be has its refusal, and the clocks' leeway is the tenant's."""
    assert await refused(auth, sign(**claims)) is code
    assert await auth.principal(sign(), None)


async def test_token_of_exactly_the_largest_size_is_taken_and_one_byte_more_is_not(auth: Auth) -> None:
    """4 KiB is the most that a token may have."""
    sizes = {}
    for padding in range(2800, 2880):
        for more in range(3):  # base64 skips some lengths
            token = sign(header={"note": "x" * more}, note="x" * padding)
            sizes[len(token)] = token
    assert await auth.principal(sizes[4096], None)
    assert await refused(auth, sizes[4097]) is Code.CREDENTIAL_INVALID


async def test_token_within_the_leeway_is_taken(keys: CountedKeys, tenant: Tenant) -> None:
    """An issuer's clock may be off by what the tenant's settings say."""
    generous = auth_of(keys, tenant_named(tenant.id, issuers=(issuer_of(leeway_s=60),)), source=Published())
    now_s = int(time.time())
    allowed: list[dict[str, Any]] = [{"exp": now_s - 30, "iat": now_s - 100}, {"nbf": now_s + 30}, {"iat": now_s + 30}]
    for claims in allowed:
        assert await generous.principal(sign(**claims), None)


def segment(value: object) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


async def test_token_forged_with_the_public_key_is_refused(auth: Auth) -> None:
    """HS256 under a key that everybody knows, the oldest trick: the algorithm is the issuer's, not the token's."""
    key = KEYS["RS256"]
    head, body, _ = sign(key).split(".")
    public = key.private.public_key()
    for form in (PublicFormat.SubjectPublicKeyInfo, PublicFormat.PKCS1):
        for encoding in (Encoding.PEM, Encoding.DER):
            secret = public.public_bytes(encoding, form)
            for algorithm in ("HS256", "RS256"):
                head = segment({"alg": algorithm, "typ": "JWT", "kid": key.kid})
                signature = hmac.digest(secret, f"{head}.{body}".encode(), sha256)
                assert await refused(auth, f"{head}.{body}.{segment(signature)}") is Code.CREDENTIAL_INVALID


async def test_token_with_a_forged_header_is_refused(auth: Auth) -> None:
    """No algorithm, another one, another key, a demand that we do not know: none of it is proved."""
    ec, rsa = KEYS["ES256"], KEYS["RS256"]
    head, body, signature = sign(ec).split(".")
    changed = segment({"iss": ISSUER, "aud": AUDIENCE, "sub": "eve", "iat": NOW_S, "exp": NOW_S + 300})
    forgeries = [
        f"{segment({'alg': 'none', 'kid': ec.kid})}.{body}.",
        f"{segment({'alg': 'None', 'kid': ec.kid})}.{body}.{signature}",
        f"{segment({'alg': ['ES256'], 'kid': ec.kid})}.{body}.{signature}",
        f"{segment({'kid': ec.kid})}.{body}.{signature}",
        f"{segment([])}.{body}.{signature}",
        f"{head}.{body}.",
        f"{head}.{changed}.{signature}",
        f"{head}.{body}.{signature[:-6]}AAAAAA",
        sign(STRANGER, header={"kid": rsa.kid}),
        sign(rsa, header={"kid": ec.kid}),
        f"{segment({'alg': 'ES256', 'kid': 5})}.{body}.{signature}",
        f"{segment({'alg': 'ES256', 'kid': ['x']})}.{body}.{signature}",
        sign(ec, header={"kid": "../../etc/passwd"}),
        sign(ec, header={"kid": "x" * 300}),
        sign(ec, header={"crit": ["exp"]}),
        sign(STRANGER, header={"kid": "unknown", "jku": "https://evil.example/keys"}),
        sign(STRANGER, header={"kid": "unknown", "jwk": STRANGER.jwk()}),
        "a.b.c",
        "..",
        f"{head}.{segment(b'[' * 3000)}.{signature}",
    ]
    for forgery in forgeries:
        code = await refused(auth, forgery)
        assert code in (Code.CREDENTIAL_INVALID, Code.ISSUER_UNAVAILABLE), forgery[:60]
        if "unknown" not in str(_header(forgery)) and "passwd" not in str(_header(forgery)):
            assert code is Code.CREDENTIAL_INVALID, forgery[:60]
    assert await auth.principal(sign(ec), None)


def _header(token: str) -> object:
    try:
        return jwt.get_unverified_header(token)
    except jwt.PyJWTError:
        return None


async def test_token_of_an_algorithm_that_the_tenant_left_out_is_refused(keys: CountedKeys, tenant: Tenant) -> None:
    """A tenant may narrow the algorithms."""
    issuer = issuer_of(algorithms=frozenset({"EdDSA"}))
    auth = auth_of(keys, tenant_named(tenant.id, issuers=(issuer,)), source=Published())
    assert await auth.principal(sign(KEYS["EdDSA"]), None)
    assert await refused(auth, sign(KEYS["ES256"])) is Code.CREDENTIAL_INVALID


async def test_token_belongs_to_the_tenant_of_its_audience(keys: CountedKeys, tenant: Tenant) -> None:
    """Two tenants may share an issuer; the audience says whose user it is, and a user of one is nobody in the other."""
    one = tenant_named(f"{tenant.id}-1", issuers=(issuer_of(audience="one"),))
    two = tenant_named(f"{tenant.id}-2", issuers=(issuer_of(audience="two"),))
    auth = auth_of(keys, one, two, source=Published())
    first, second = [await auth.principal(sign(aud=audience), None) for audience in ("one", ["x", "two"])]
    assert (first.tenant.id, second.tenant.id) == (one.id, two.id)
    assert first.user_hash != second.user_hash
    assert await refused(auth, sign(aud="three")) is Code.CREDENTIAL_INVALID


async def test_token_whose_issuer_is_away_is_not_called_invalid(keys: CountedKeys, tenant: Tenant) -> None:
    """What cannot be checked now can be tried again."""
    issuer = issuer_of(jwks_url="https://login.acme.example/away")
    auth = auth_of(keys, tenant_named(tenant.id, issuers=(issuer,)), source=Published())
    assert await refused(auth, sign()) is Code.ISSUER_UNAVAILABLE


async def test_token_of_an_issuer_is_held_to_origin_and_revocation(auth: Auth, acme: Tenant) -> None:
    """A tenant's own token is a credential like any other: its origins are checked, and it can be taken back."""
    token, other = sign(jti="j1"), sign(jti="j2", sub="bob")
    assert await refused(auth, token, FOREIGN) is Code.ORIGIN_NOT_ALLOWED
    await auth.revocations.revoke(Revoked.TOKEN, acme.id, "j1")
    assert await refused(auth, token) is Code.REVOKED
    assert await auth.principal(other, None)
    await auth.revocations.revoke(Revoked.USER, acme.id, auth.user_hash(acme.id, "bob"))
    assert await refused(auth, other) is Code.REVOKED
    await auth.revocations.aclose()


async def test_token_without_any_issuer_configured_asks_nobody(keys: CountedKeys, tenant: Tenant) -> None:
    """Where no tenant has an issuer a foreign token costs nothing but its refusal."""
    assert await refused(auth_of(keys, tenant), sign()) is Code.CREDENTIAL_INVALID
