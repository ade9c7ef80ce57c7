"""``chat``: the conversation in a terminal."""

from __future__ import annotations

import asyncio
import getpass
import os
import signal
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import click

from gateway.commands import perform

if TYPE_CHECKING:
    from gateway.chat.remote import Remote
    from gateway.chat.screen import Show

CREDENTIALS: Final = ("GATEWAY_TOKEN", "GATEWAY_SECRET_KEY", "GATEWAY_PUBLISHABLE_KEY")  # the first that is set


@click.command()
@click.option(
    "--url", envvar="GATEWAY_URL", default="http://127.0.0.1:8080", show_default=True, help="The gateway (GATEWAY_URL)."
)
@click.option(
    "--credential",
    help="A token (hgt_…), secret key (hgs_…) or publishable key (hgp_…). Others can see it on a command line: better"
    " set GATEWAY_TOKEN, GATEWAY_SECRET_KEY or GATEWAY_PUBLISHABLE_KEY.",
)
@click.option("--user", help="Whom a secret key speaks for; your login name unless given.")
@click.option("--origin", help="The page that a publishable key belongs to, such as https://app.example.")
@click.option("--persona", default="default", show_default=True, help="Whom to talk to.")
@click.option("--conversation", help="Go on with a conversation, by its id.")
@click.option(
    "--json/--text", "as_json", default=None, help="Lines of JSON, or text; JSON unless standard output is a terminal."
)
def chat(
    url: str,
    credential: str | None,
    user: str | None,
    origin: str | None,
    persona: str,
    conversation: str | None,
    as_json: bool | None,
) -> None:
    """Talk to a persona through a running gateway.

    A line is a message. /stop ends the answer, /rate 8 nice rates it, /quit leaves; Ctrl-C stops the answer first and
    leaves second. Ends with 0, with 1 where something could not be done, with 130 after Ctrl-C.
    """
    from gateway.chat.remote import Refused, Remote, Unreachable
    from gateway.chat.screen import Lines, Terminal

    credential = credential or _from_environment(os.environ)
    if not credential:
        raise click.UsageError(f"Give --credential, or set one of {', '.join(CREDENTIALS)}.")
    if not url.startswith(("http://", "https://")):
        raise click.BadParameter("must begin with http:// or https://", param_hint="--url")
    out, live = sys.stdout, sys.stdin.isatty()
    if as_json is None:
        as_json = not out.isatty()
    dim = out.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM", "") != "dumb"
    show = Lines(out) if as_json else Terminal(out, prompts=live, dim=dim)
    remote = Remote(url, credential, user=user or _login_name(), origin=origin, on_cut=show.cut)
    try:
        code = perform(_hold(remote, show, persona, conversation, live=live))
    except Refused as error:
        raise click.ClickException(str(error)) from None
    except Unreachable as error:
        raise click.ClickException(f"{error} ({url})") from None
    sys.exit(code)


async def _hold(remote: Remote, show: Show, persona: str, conversation: str | None, *, live: bool) -> int:
    from gateway.chat.keyboard import Keyboard
    from gateway.chat.talk import INTERRUPTED, Talk

    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    talk: Talk | None = None

    def interrupted() -> None:
        if talk is not None:
            talk.interrupted()
        else:
            task.cancel()

    loop.add_signal_handler(signal.SIGINT, interrupted)
    try:
        async with remote:
            found = await (remote.open(persona) if conversation is None else remote.conversation(conversation))
            show.opened(found)
            talk = Talk(remote, show, found["id"], live=live)
            Keyboard(sys.stdin.fileno(), talk.typed).open()
            return await talk.hold()
    except asyncio.CancelledError:
        return INTERRUPTED
    except BrokenPipeError:  # nobody reads any more: not even the interpreter may write at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def _from_environment(environ: Mapping[str, str]) -> str | None:
    return next((value.strip() for name in CREDENTIALS if (value := environ.get(name, "")).strip()), None)


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user without a name, as in many containers
        return "terminal"
