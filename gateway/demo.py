"""The demo: a stand-in Hyperleap as a child process, a gateway in front of it, and lines to paste."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from gateway.core.conversation import Conversation
from gateway.core.errors import GatewayError
from gateway.lifecycle import Ready, env_facts, write_env_file
from gateway.simulator.server import DEFAULT_API_KEY

READY_TIMEOUT_S: Final = 15.0
STOP_TIMEOUT_S: Final = 5.0
PERSONA_ID: Final = str(uuid.uuid5(uuid.NAMESPACE_DNS, "demo.hyperleap-gateway"))
USER_ID: Final = "demo-user"
TOKEN_TTL_S: Final = 86_400
UNLIMITED: Final = {  # nobody is to be kept from trying; nothing here costs money
    f"default_tenant.limits.{scope}.{limit}": 0
    for scope in ("tenant", "user", "anonymous", "app", "address")
    for limit in ("requests_per_min", "concurrent_turns")
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulator:
    """The stand-in that runs for the demo."""

    url: str
    ca_file: Path
    api_key: str


@contextlib.asynccontextmanager
async def simulator(data_dir: Path, arguments: tuple[str, ...]) -> AsyncIterator[Simulator]:
    """Run ``hyperleap-gateway simulate`` as a child that ends with this context, and with this process.

    The child leads its own session, so Ctrl-C reaches only the gateway, which drains before it ends the child.
    Raises click.ClickException when it does not come up.
    """
    ca_file = data_dir / "simulator-ca.pem"
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "gateway", "simulate", "--port", "0", "--until-stdin-closes"),
        *("--data-dir", str(data_dir / "simulator"), "--ca-file", str(ca_file)),
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield Simulator(url=await _url(child), ca_file=ca_file, api_key=DEFAULT_API_KEY)
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(child.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            child.kill()
            await child.wait()


async def _url(child: asyncio.subprocess.Process) -> str:
    """Wait for the child's ``ready URL``; it says nothing after that."""
    assert child.stdout is not None
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            while line := await child.stdout.readline():
                word, _, url = line.decode().strip().partition(" ")
                if word == "ready":
                    return url
    except TimeoutError:
        raise click.ClickException("the simulator did not start in time") from None
    raise click.ClickException("the simulator did not start")


async def show(ready: Ready, stand_in: Simulator, env_file: Path | None) -> None:
    """Write the env file, then print where the page is and lines that work when they are pasted."""
    if env_file is not None:
        write_env_file(
            env_file,
            [*env_facts(ready), ("SIMULATOR_URL", stand_in.url), ("SIMULATOR_CA", str(stand_in.ca_file))],
        )
    token, conversation = await _conversation(ready)
    keys = ready.keys[0]
    url, ws_url = ready.url, ready.url.replace("http", "ws", 1)
    body = json.dumps({"message": "What can you do?"})
    command = json.dumps(
        {"type": "turn.start", "request_id": "r1", "conversation_id": conversation.id, "message": "Hello there!"}
    )
    click.echo(
        f"""
  hyperleap-gateway demo is running. Nothing leaves this machine; Ctrl-C stops it all.

  Chat page   {url}/#key={keys.publishable_key}

  Stream a turn (again and again; add --header 'Last-Event-ID: <id>' to GET …/events to resume one):

    curl -N {url}/v1/conversations/{conversation.id}/turns \\
      -H 'Authorization: Bearer {token}' \\
      -H 'Accept: text/event-stream' -H 'Content-Type: application/json' \\
      -d {shlex.quote(body)}

  The same over a WebSocket:

    echo {shlex.quote(command)} | websocat -n \\
      --protocol 'hyperleap.chat.v1, hgt.{token}' {ws_url}/v1/ws

  Mint a token as your backend would:

    curl {url}/v1/sessions -H 'Authorization: Bearer {keys.secret_key}' \\
      -H 'Content-Type: application/json' -d '{{"user_id":"u1"}}'

  Metrics     {ready.internal_url}/metrics
""",
        nl=True,
    )


async def _conversation(ready: Ready) -> tuple[str, Conversation]:
    """Open a session and a conversation for the pasted lines, through the same services as any client."""
    auth = ready.gateway.auth
    try:
        session = await ready.gateway.edge.sessions.open(
            ready.keys[0].secret_key,
            None,
            user_id=USER_ID,
            ttl_s=min(TOKEN_TTL_S, int(ready.gateway.settings.sessions.ttl_max_s)),
            personas=None,
            origins=None,
            visitor_id=None,
        )
        conversation = await ready.gateway.conversations.create(
            await auth.principal(session.token, None), alias="default", replacements={}, metadata={}, address="demo"
        )
    except GatewayError as error:
        raise click.ClickException(f"the demo's conversation could not be opened: {error}") from None
    return session.token, conversation
