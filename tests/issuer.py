"""An issuer of a tenant's own tokens: a real server of its key set, with keys that rotate, and faults on demand."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

ISSUER, AUDIENCE = "https://login.acme.example/", "chat"


class SigningKey:
    """One key pair of the issuer's."""

    def __init__(self, algorithm: str = "ES256", kid: str | None = None) -> None:
        self.algorithm = algorithm
        self.kid = kid or uuid.uuid4().hex[:8]
        self.private: Any
        if algorithm == "RS256":
            self.private = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
        elif algorithm == "ES256":
            self.private = ec.generate_private_key(ec.SECP256R1())
        else:
            self.private = ed25519.Ed25519PrivateKey.generate()

    def jwk(self, **fields: Any) -> dict[str, Any]:
        """Return the public key as it is published."""
        public = self.private.public_key()
        form: Any = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}[self.algorithm]
        published: dict[str, Any] = json.loads(form.to_jwk(public))
        published.pop("key_ops", None)
        return {**published, "kid": self.kid, "use": "sig", "alg": self.algorithm, **fields}


class IssuerServer:
    """Publishes ``keys``; ``fault`` says how it misbehaves, ``gate`` holds answers back."""

    def __init__(self) -> None:
        self.keys = [SigningKey()]
        self.url = ""
        self.fetches = 0
        self.fault = ""
        self.gate: asyncio.Event | None = None

    @property
    def current(self) -> SigningKey:
        """The key that new tokens are signed with."""
        return self.keys[-1]

    def token(self, key: SigningKey | None = None, *, header: dict[str, Any] | None = None, **claims: Any) -> str:
        """Sign a token; a claim of None is left out."""
        key = key or self.current
        now_s = int(time.time())
        said = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "iat": now_s, "exp": now_s + 300, **claims}
        said = {name: value for name, value in said.items() if value is not None}
        return jwt.encode(said, key.private, algorithm=key.algorithm, headers={"kid": key.kid, **(header or {})})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.fetches += 1
        if self.gate is not None:
            await self.gate.wait()
        match self.fault:
            case "500":
                return web.Response(status=500, text="no")
            case "redirect":
                raise web.HTTPFound("/keys-elsewhere")
            case "large":
                return web.Response(body=b" " * 100_000)
            case "garbage":
                return web.Response(text="<html>")
        return web.json_response({"keys": [key.jwk() for key in self.keys]})


@asynccontextmanager
async def serve() -> AsyncIterator[IssuerServer]:
    """Run an issuer on loopback."""
    issuer = IssuerServer()
    app = web.Application()
    app.router.add_get("/keys", issuer.answer)
    app.router.add_get("/keys-elsewhere", issuer.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        issuer.url = f"http://127.0.0.1:{runner.addresses[0][1]}/keys"
        yield issuer
    finally:
        if issuer.gate is not None:
            issuer.gate.set()
        await runner.cleanup()
