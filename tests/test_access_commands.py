"""``keys``, ``tokens`` and ``tenants`` as an operator uses them, on the store of a gateway that runs meanwhile."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from click.testing import CliRunner, Result

from gateway.access import login
from gateway.cli import main
from gateway.core.identity import TenantId
from gateway.core.keys import KeyKind
from gateway.secret_files import PEPPER, SIGNING_KEY, read_or_make
from gateway.store.tenants import RedisTenants
from tests.conftest import PERSONA_ID, SECRETS, VENDOR_KEY, Running, StartGateway
from tests.test_commands import ports, run
from tests.transports.client import Client, Closed, eventually

Command = Callable[..., Awaitable[Result]]
FILES = {"GATEWAY_PEPPER_FILE": "pepper", "GATEWAY_SIGNING_KEY_FILE": "signing-key"}


@pytest.fixture
async def running(start_gateway: StartGateway) -> Running:
    return await start_gateway(simulator={"h2c": True})


@pytest.fixture
def command(running: Running, store_url: str, tmp_path: Path) -> Command:
    """Run ``hyperleap-gateway …`` with the settings of the gateway, without its vendor key."""
    (config,) = tmp_path.glob("*.toml")
    for name, secret in (("pepper", SECRETS.pepper), ("signing-key", SECRETS.signing_key)):
        (tmp_path / name).write_bytes(secret)
        (tmp_path / name).chmod(0o600)
    environ = {
        "GATEWAY_CONFIG": str(config),
        "GATEWAY_REDIS_URL": store_url,
        "GATEWAY_DATA_DIR": str(tmp_path / "data"),
        **{setting: str(tmp_path / name) for setting, name in FILES.items()},
    }

    async def invoke(*arguments: str, stdin: str | None = None, **changed: str | None) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, main, arguments, input=stdin, env={**environ, **changed})

    return invoke


async def done(command: Command, *arguments: str, **options: Any) -> Result:
    """Run a command that must work."""
    result = await command(*arguments, **options)
    assert result.exit_code == 0, result.output
    return result


async def facts(command: Command, *arguments: str, **options: Any) -> Any:
    return json.loads((await done(command, *arguments, "--json", **options)).stdout)


async def session(running: Running, key: str, **fields: Any) -> tuple[int, dict[str, Any]]:
    answer = await Client(running, {"Authorization": f"Bearer {key}"}).call("POST", "/v1/sessions", fields)
    return answer.status, answer.body


@pytest.mark.parametrize("kind", KeyKind)
async def test_key_created_works_and_is_listed(command: Command, running: Running, kind: KeyKind) -> None:
    """A key is alone on standard output, works at once, and is listed by what it begins with and never whole."""
    made = await done(command, "keys", "create", "--kind", kind.value, "--label", "mine", "--expires-in", "90d")
    key = made.stdout.strip()
    assert re.fullmatch(r"hg[sp]_\S+\.\w+\.\S+", key)
    fields = {"user_id": "ada"} if kind is KeyKind.SECRET else {}
    if kind is not KeyKind.PUBLISHABLE:  # which needs an origin
        assert (await session(running, key, **fields))[0] == 201
    listed = await done(command, "keys", "list")
    (line,) = [line for line in listed.stdout.splitlines() if "mine" in line]
    head, ending = key.rpartition(".")[0], key[-4:]
    assert line.split()[:3] == [f"{head}.…{ending}", kind.value, "mine"]
    assert line.endswith("active")
    assert key not in listed.output
    (fact,) = [each for each in await facts(command, "keys", "list") if each["label"] == "mine"]
    assert (fact["key"], fact["kind"], fact["state"], fact["tenant"]) == (head, kind, "active", running.tenant)
    assert fact["expires_at"] > fact["created_at"]


async def test_key_revoked_by_an_operator_ends_its_sessions(command: Command, running: Running) -> None:
    """Revoking reaches the running gateway: the sockets of the key's sessions close, and the key opens none."""
    client = Client(running, await running.user())
    prefix = running.secret_key.rpartition(".")[0]
    await eventually(lambda: running.gateway.inbox.hears, "the gateway to hear")
    async with client.socket() as socket:
        assert (await socket.reply("ping"))["event"] == "pong"
        assert prefix in (await done(command, "keys", "revoke", prefix)).stdout
        async with asyncio.timeout(2):
            assert await socket.closed() == Closed(4503, "revoked")

    async def refused() -> bool:
        return (await session(running, running.secret_key, user_id="u1"))[0] == 401

    await eventually(refused, "the key to be refused", within_s=2)
    assert prefix not in (await done(command, "keys", "list")).stdout
    assert "revoked" in (await done(command, "keys", "list", "--all")).stdout


async def test_key_rotated_by_an_operator_hands_over(command: Command, running: Running) -> None:
    """Both keys work in the overlap; the old one has an end then. A key is found by id, prefix or all of it."""
    for named in (
        running.secret_key.split(".")[1],
        running.publishable_key.rpartition(".")[0],
    ):
        made = await facts(command, "keys", "rotate", named, "--overlap", "1h")
        assert made["label"] == "tests"
        assert made["id"] != named
        (old,) = [each for each in await facts(command, "keys", "list") if named in (each["id"], each["key"])]
        assert old["expires_at"] is not None
        if made["kind"] == "secret":
            for key in (running.secret_key, made["secret"]):
                assert (await session(running, key, user_id="ada"))[0] == 201
    assert (await done(command, "keys", "rotate", running.secret_key, "--overlap", "0s")).stdout.startswith("hgs_")

    async def refused() -> bool:
        return (await session(running, running.secret_key, user_id="u1"))[0] == 401

    await eventually(refused, "the old key to be refused", within_s=2)


async def test_token_minted_by_an_operator_works_until_it_is_revoked(
    command: Command, running: Running, tmp_path: Path
) -> None:
    """A token is alone on standard output; it is taken back by itself, by its id, or with its user."""
    await eventually(lambda: running.gateway.inbox.hears, "the gateway to hear")

    async def works(token: str) -> bool:
        answer = await Client(running, {"Authorization": f"Bearer {token}"}).call("GET", "/v1/conversations")
        assert answer.status == 200 or answer.body["code"] == "revoked"
        return answer.status == 200

    async def gone(token: str) -> bool:
        return not await works(token)

    plain = (await done(command, "tokens", "mint", "--user", "ada", "--ttl", "15m")).stdout.strip()
    first, second = [await facts(command, "tokens", "mint", "--user", "ada") for _ in range(2)]
    assert all([await works(token) for token in (plain, first["token"], second["token"])])
    await done(command, "tokens", "revoke", "--token", "-", stdin=plain + "\n")
    await eventually(lambda: gone(plain), "the token to be refused", within_s=2)
    await done(command, "tokens", "revoke", "--id", first["token_id"])
    await eventually(lambda: gone(first["token"]), "the token to be refused", within_s=2)
    assert await works(second["token"])
    await done(command, "tokens", "revoke", "--user", "ada")
    await eventually(lambda: gone(second["token"]), "the user to be refused", within_s=2)
    assert await works((await facts(command, "tokens", "mint", "--user", "ada"))["token"])


async def test_token_minted_with_bounds_keeps_to_them(command: Command, running: Running) -> None:
    """The options are the fields of POST /v1/sessions, checked as there."""
    arguments = ("tokens", "mint", "--user", "ada", "--persona", "other", "--origin", "https://app.example")
    token = (await facts(command, *arguments, "--single-use", "--requests-per-min", "2"))["token"]
    client = Client(running, {"Authorization": f"Bearer {token}"})
    answer = await client.call("POST", "/v1/conversations", {"persona": "default"})
    assert (answer.status, answer.body["code"]) == (422, "persona_unknown")
    assert (await client.call("GET", "/v1/conversations")).body["code"] == "credential_used"
    for wrong, code in (
        (("--ttl", "5s"), "invalid_value"),
        (("--persona", "nobody"), "persona_unknown"),
        (("--origin", "app.example"), "invalid_value"),
        (("--requests-per-min", "0"), "invalid_value"),
        (("--tokens-per-min", "-1"), "invalid_value"),
        (("--concurrent-turns", "0"), "invalid_value"),
    ):
        result = await command("tokens", "mint", "--user", "ada", *wrong)
        assert result.exit_code == 1
        assert result.stderr.startswith(f"Error: {code}: ")
        assert result.stdout == ""


async def test_tenant_shut_out_and_let_in_by_an_operator(command: Command, running: Running) -> None:
    """A tenant's state is shown; shut out it is refused everywhere, let in again everything works as before."""
    await eventually(lambda: running.gateway.inbox.hears, "the gateway to hear")
    client = Client(running, await running.user())
    (listed,) = await facts(command, "tenants", "list")
    assert (listed["tenant"], listed["state"], listed["personas"]) == (running.tenant, "active", ["default", "other"])
    assert listed["keys"] == 2
    await done(command, "tenants", "revoke", running.tenant)

    async def status() -> int:
        return (await client.call("GET", "/v1/conversations")).status

    async def shut_out() -> bool:
        return await status() == 401

    async def let_in() -> bool:
        return await status() == 200

    await eventually(shut_out, "the tenant to be shut out", within_s=2)
    assert (await facts(command, "tenants", "show"))["state"] == "revoked"
    assert "revoked" in (await done(command, "tenants", "list")).stdout
    await done(command, "tenants", "restore", running.tenant)
    await eventually(let_in, "the tenant to be let in", within_s=2)
    shown = (await done(command, "tenants", "show", running.tenant)).stdout
    assert re.search(r"^state +active$", shown, re.MULTILINE)
    assert re.search(r"^origins +https://app.example$", shown, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("keys", "list", "--tenant", "nobody"), 1, "not_found: There is no tenant nobody"),
        (("keys", "revoke", "hgs_nobody.000000000000"), 1, "not_found: There is no such key"),
        (("keys", "rotate", "000000000000"), 1, "not_found"),
        (("keys", "create"), 2, "--label"),
        (("keys", "create", "--label", "x", "--kind", "root"), 2, "'secret', 'publishable', 'app'"),
        (("keys", "create", "--label", "x", "--expires-in", "soon"), 2, "90d"),
        (("keys", "create", "--label", "x", "--expires-in", "0s"), 1, "invalid_value"),
        (("tokens", "revoke"), 2, "one of --id, --user and --token"),
        (("tokens", "revoke", "--id", "a", "--user", "b"), 2, "one of --id, --user and --token"),
        (("tokens", "mint", "--user", ""), 1, "invalid_value: A user id"),
        (("tenants", "show", "nobody"), 1, "not_found"),
        (("tenants", "revoke"), 2, "TENANT"),
    ],
)
async def test_command_that_cannot_be_done_says_why_in_one_line(
    command: Command, arguments: tuple[str, ...], status: int, words: str
) -> None:
    """Errors go to standard error with their own exit status: 1 not done, 2 called wrongly."""
    result = await command(*arguments)
    assert result.exit_code == status
    assert words in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.output


async def test_token_from_a_stranger_is_not_revoked(command: Command) -> None:
    """What is no token of this gateway's is refused, and not repeated."""
    result = await command("tokens", "revoke", "--token", "-", stdin="hgt_not.a.token")
    assert result.exit_code == 1
    assert "credential_invalid" in result.stderr
    assert "hgt_not" not in result.output


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"GATEWAY_REDIS_URL": None}, "GATEWAY_REDIS_URL: is not set, and no gateway keeps a store in"),
        ({"GATEWAY_REDIS_URL": "redis://127.0.0.1:1"}, "store_unavailable"),
        ({"GATEWAY_PEPPER_FILE": "/nonexistent"}, "GATEWAY_PEPPER_FILE: cannot read /nonexistent"),
    ],
)
async def test_command_without_a_store_or_its_secrets_says_what_is_missing(
    command: Command, changed: dict[str, str | None], words: str
) -> None:
    """Nothing is started, made or guessed: a key hashed with another pepper would open nothing."""
    result = await command("keys", "list", **changed)
    assert (result.exit_code, result.stdout) == (1, "")
    assert words in result.stderr


@pytest.mark.parametrize(
    ("missing", "given"),
    [("GATEWAY_PEPPER_FILE", "GATEWAY_SIGNING_KEY_FILE"), ("GATEWAY_SIGNING_KEY_FILE", "GATEWAY_PEPPER_FILE")],
)
async def test_command_on_a_redis_of_ones_own_refuses_what_serve_refuses(
    command: Command, running: Running, store_url: str, tmp_path: Path, missing: str, given: str
) -> None:
    """Secrets that another gateway has made in the data directory are not taken for those of the gateways there."""
    for name in (PEPPER, SIGNING_KEY):
        read_or_make(tmp_path / "data" / name)
    keys = await running.gateway.auth.keys.list(TenantId(running.tenant))
    known = {"GATEWAY_DATA_DIR": str(tmp_path / "data"), given: str(tmp_path / FILES[given])}
    vendor = {"HYPERLEAP_API_KEY": VENDOR_KEY, "HYPERLEAP_PERSONA_ID": PERSONA_ID}
    async with run(tmp_path, "serve", "--redis-url", store_url, **known, **vendor) as serve:
        _, refusal = await serve.finish()
    assert refusal.startswith(f"Error: {missing}: must name a file when the gateway has a Redis of your own")
    for arguments in (
        ("keys", "create", "--label", "mine"),
        ("tokens", "mint", "--user", "ada"),
        ("tenants", "list"),
    ):
        result = await command(*arguments, "--redis-url", store_url, **{missing: None, "GATEWAY_REDIS_URL": None})
        assert (result.exit_code, result.stdout, result.stderr) == (serve.process.returncode, "", refusal)
    assert await running.gateway.auth.keys.list(TenantId(running.tenant)) == keys


@pytest.mark.parametrize("told", [False, True], ids=["found", "told"])
async def test_command_finds_the_embedded_store_of_a_running_gateway(tmp_path: Path, told: bool) -> None:
    """With nothing set but the data directory the store, the secrets and the default tenant are found.

    The same where the store's address was read from the gateway's env file.
    """
    async with run(tmp_path, "demo", *ports(tmp_path)) as demo, ClientSession() as http:
        known = await demo.facts()
        url = known["GATEWAY_REDIS_URL"] if told else None
        result = await asyncio.to_thread(
            CliRunner().invoke,
            main,
            ("keys", "create", "--label", "mine"),
            env={"GATEWAY_DATA_DIR": str(tmp_path / "data" / "demo"), "GATEWAY_REDIS_URL": url},
        )
        assert result.exit_code == 0, result.output
        headers = {"Authorization": f"Bearer {result.stdout.strip()}"}
        async with http.post(f"{known['GATEWAY_URL']}/v1/sessions", json={"user_id": "u"}, headers=headers) as answer:
            assert answer.status == 201
        await demo.end()


TABLE = """
origins = ["https://new.example"]
[personas.default]
persona_id = "6f1c8f0e-4f3e-4a9e-9d2c-0d4b1f0a2b3c"
"""


async def test_tenant_put_and_deleted_by_an_operator_holds_in_a_running_gateway(
    command: Command, running: Running, stored_tenants: RedisTenants, tmp_path: Path
) -> None:
    """A tenant is made from a file or standard input, changed, listed with where it is from, and deleted."""
    await eventually(lambda: running.gateway.inbox.hears, "the gateway to hear")
    known = running.gateway.auth.tenants
    (tmp_path / "new.tenant").write_text(TABLE)
    assert "new is made" in (await done(command, "tenants", "put", "new", str(tmp_path / "new.tenant"))).stdout
    await eventually(lambda: "new" in known, "the tenant", within_s=2)
    key = (await done(command, "keys", "create", "--tenant", "new", "--label", "backend")).stdout.strip()
    status, body = await session(running, key, user_id="ada")
    assert status == 201
    assert {each["tenant"]: each["source"] for each in await facts(command, "tenants", "list")} == {
        running.tenant: "settings",
        "new": "store",
    }
    changed = await done(command, "tenants", "put", "new", "-", stdin="anonymous = true\n" + TABLE)
    assert "new is changed" in changed.stdout
    await eventually(lambda: known[TenantId("new")].anonymous, "the change", within_s=2)
    assert re.search(r"^source +store$", (await done(command, "tenants", "show", "new")).stdout, re.MULTILINE)
    await done(command, "tenants", "delete", "new")
    await eventually(lambda: "new" not in known, "the end", within_s=2)
    token = Client(running, {"Authorization": f"Bearer {body['token']}"})
    assert (await token.call("GET", "/v1/conversations")).status == 401
    assert (await session(running, key, user_id="ada"))[0] == 401


@pytest.mark.parametrize(
    ("arguments", "stdin", "words"),
    [
        (("put", "{}", "-"), TABLE, "is written in the settings"),
        (("delete", "{}"), None, "is written in the settings"),
        (("delete", "nobody"), None, "no such tenant"),
        (("put", "new", "-"), "origins = [", "not valid TOML"),
        (("put", "new", "-"), "", "new: personas: "),
        (("put", "new", "-"), TABLE + "persona_version_id = 'x'", "new: personas.default.persona_version_id: "),
        (("put", "New", "-"), TABLE, "New: tenant: "),
    ],
)
async def test_tenant_that_cannot_be_put_is_told_in_one_line(
    command: Command,
    running: Running,
    stored_tenants: RedisTenants,
    arguments: tuple[str, ...],
    stdin: str | None,
    words: str,
) -> None:
    """The command ends with 1, names the tenant and the field, and changes nothing."""
    result = await command("tenants", *(part.replace("{}", running.tenant) for part in arguments), stdin=stdin)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr
    assert await stored_tenants.load() == {}


async def test_changes_by_commands_are_audited_by_who_makes_them(
    command: Command, running: Running, tmp_path: Path
) -> None:
    """A command appends to the audit file that gateways have, with the operator's login; listing appends nothing."""
    path = tmp_path / "audit.jsonl"
    made = await facts(command, "keys", "create", "--label", "mine", GATEWAY_AUDIT_LOG=str(path))
    await done(command, "keys", "list", GATEWAY_AUDIT_LOG=str(path))
    await done(command, "tokens", "revoke", "--user", "ada@example.com", GATEWAY_AUDIT_LOG=str(path))
    created, revoked = (json.loads(line) for line in path.read_text("utf-8").splitlines())
    for line in (created, revoked):
        assert (line["logger"], line["outcome"], line["actor"]) == ("gateway.audit", "done", "cli")
        assert (line["actor_name"], line["tenant"]) == (login(), running.tenant)
    assert (created["event"], created["key_id"], created["label"]) == ("key.created", made["id"], "mine")
    assert (revoked["event"], revoked["what"]) == ("access.revoked", "user")
    assert "ada@example.com" not in path.read_text("utf-8")
    assert made["secret"].rpartition(".")[2] not in path.read_text("utf-8")


async def test_audit_file_that_cannot_be_opened_changes_nothing(command: Command, running: Running) -> None:
    """A change that could not be told is not made: the command says which variable is wrong."""
    keys = await running.gateway.auth.keys.list(TenantId(running.tenant))
    result = await command("keys", "create", "--label", "mine", GATEWAY_AUDIT_LOG="/nowhere/at/all")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: GATEWAY_AUDIT_LOG: cannot be opened")
    assert await running.gateway.auth.keys.list(TenantId(running.tenant)) == keys
