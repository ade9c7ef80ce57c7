"""Every event that the gateway logs, with its fields and what it means; generates the page ``docs/logs.md``."""

from __future__ import annotations

import sys
from typing import Final, NamedTuple


class Told(NamedTuple):
    """One event. ``fields`` beside those that any line may have; a level of two words depends on what happened."""

    level: str
    fields: str
    when: str


Table = dict[str, Told]

AUDIT_TABLE: Final[Table] = {
    "session.opened": Told(
        "info",
        "tenant user key_id token_id anonymous expires_at",
        "A session token was minted, with a key or from the command line. Those of anonymous visitors are counted when"
        " they come fast",
    ),
    "access.refused": Told(
        "info", "tenant user code route", "Somebody was turned away; `code` says why. Counted when they come fast"
    ),
    "access.ended": Told(
        "info", "tenant user code", "An open stream or socket was ended, for its user lost access. Counted when many"
    ),
    "access.revoked": Told(
        "info",
        "tenant what id",
        "Something was taken back: `what` is `tenant`, `sessions`, `user` (`id`: the user's hash), `key` or `token`"
        " (`id`: its id)",
    ),
    "access.restored": Told("info", "tenant lifted", "A tenant that was shut out is let in; `lifted`: it was out"),
    "key.created": Told("info", "tenant key_id kind label expires_at_s", "A tenant's key was made"),
    "key.rotated": Told(
        "info", "tenant key_id new_key_id overlap_s", "A key was replaced by another; it works on for the overlap"
    ),
    "key.revoked": Told("info", "tenant key_id", "A key was ended"),
    "key.removed": Told("info", "tenant key_id kind label", "A start with `--env-file` replaced a key of its own"),
    "tenant.put": Told("info", "tenant added", "A tenant was made in the store, or changed"),
    "tenant.removed": Told("info", "tenant", "A tenant was deleted from the store"),
    "turn.stop_asked": Told(
        "info",
        "tenant turn_id state",
        "An operator had a turn stopped; `state`: `stopping`, or how it had ended before",
    ),
    "tenants_file.taken": Told(
        "info",
        "tenants added changed removed plans_changed",
        "A new version of the tenants file is in force on this worker, and which tenants differ from the one before",
    ),
    "tenants_file.refused": Told(
        "error info",
        "field",
        "A new version of the tenants file cannot be used: once in the audit stream, and in the log for as long as it"
        " stands",
    ),
    "vendor_key.rotated": Told("info", "key", "A worker has read another vendor key from its file"),
}

LIFE: Final[Table] = {
    "request.started": Told("info", "method route", "A request's headers were read"),
    "request.ended": Told(
        "info",
        "method route status code vendor_status duration_s turn_id tenant user",
        "Its answer is over; a stream's with its last event. 499: the client left. `code` where it was an error."
        " `tenant`: whose token or key was proved, or whom the admin API's path names",
    ),
    "socket.opened": Told("info", "tenant user", "A WebSocket's user is known"),
    "socket.closed": Told(
        "info", "tenant user close_code commands turns duration_s", "A WebSocket is over; `turns` began over it"
    ),
    "turn.started": Told("info", "turn_id tenant conversation_id persona user", "A turn is claimed and charged"),
    "turn.ended": Told(
        "info",
        "turn_id tenant conversation_id persona user state reason prompt_tokens completion_tokens usage_source"
        " queued_s first_token_s duration_s",
        "Its ending is stored and shown: `state` is `completed`, `stopped` or `failed`, `reason` the finish reason, the"
        " stop's reason or the error's code. `queued_s`: its wait for room at Hyperleap, where it had to",
    ),
    "turn.taken_over": Told(
        "warning", "turn_id tenant epoch", "A turn whose worker is gone begins again here; `turn.ended` follows"
    ),
    "turn.abandoned": Told(
        "info",
        "turn_id tenant conversation_id persona user handed_over duration_s",
        "A turn is another worker's from now on: handed over in a drain, or lost to it",
    ),
}

TROUBLE: Final[Table] = {
    "request.unreadable": Told("warning", "code reason request_id", "What came is no HTTP that can be read; at times"),
    "request.crashed": Told("error", "status", "A mistake of ours, answered as `internal`"),
    "socket.crashed": Told("error", "", "The same over a WebSocket"),
    "stream.crashed": Told("error", "", "The same within a stream"),
    "delivery.crashed": Told("error", "", "The same while events went to a socket"),
    "reader.crashed": Told("error", "", "The same while events went to a reader"),
    "reader.lagged": Told("info", "transport", "A reader took nothing for too long, or too little, and was let go"),
    "turn.crashed": Told("error", "", "A mistake of ours in a turn, which fails"),
    "turn.unsaved": Told("error", "turn_id tenant", "An ending is shown that the store could not take so far"),
    "turn.left": Told("warning", "turn_id", "A turn could not be handed over: its lease runs out"),
    "thread.unsaved": Told("warning", "tenant", "Where a list of messages goes on could not be kept"),
    "message.flagged": Told("info", "tenant user", "Moderation flagged a message, which was not sent"),
    "message.unjudged": Told("warning", "tenant sent", "Moderation could not judge a message"),
    "moderation.unsettled": Told("error", "tenant", "What a moderation cost could not be stored"),
    "creation.unsaved": Told("error", "tenant conversation_id", "Hyperleap made a conversation that was not stored"),
    "creation.unfreed": Told("warning", "tenant", "The key of a creation that failed could not be freed"),
    "charges.undone": Told("warning", "tenant charges", "What was charged for turns that never began was given back"),
    "limits.local": Told("warning", "tenant", "The store is away: limits are this worker's own"),
    "log.behind": Told("warning", "turn_id", "The store has lost the end of a turn's log, which is written again"),
    "log.lost": Told("warning", "turn_id", "The store has lost a turn, which is written again"),
    "append.crashed": Told("error", "", "A mistake of ours while logs of turns were written"),
    "sweep.failed": Told("error", "tenant", "A sweep of a tenant's lost turns and unsettled tokens failed"),
    "rescue.mismatch": Told("warning", "turn_id tenant", "Hyperleap's copy is not the answer that readers have seen"),
    "recovery.postponed": Told("warning", "", "Turns of a lost worker wait for their leases to run out"),
    "following.crashed": Told("error", "", "A mistake of ours while turns of other workers were followed"),
}

VENDOR: Final[Table] = {
    "vendor.finishes": Told("info", "", "Hyperleap was seen to finish an answer whose connection was lost"),
    "vendor.probed": Told("warning", "key alive", "One turn tried Hyperleap after failures in a row"),
    "vendor.breaker": Told("warning", "key open", "Hyperleap is left in peace for a while, or asked again"),
    "vendor_key.refused": Told("warning", "key status rest_s", "Hyperleap did not take a key, which rests"),
    "vendor_key.restored": Told("info", "key", "A key works again"),
    "vendor_key.gone": Told("warning", "key", "A key's file is gone; the key is used on"),
    "vendor_key.unreadable": Told("warning", "key why", "A key's file cannot be read; the key is used on"),
    "gate.away": Told("warning", "key", "The plan limit cannot be asked for, for the store is away"),
    "gate.untold": Told("warning", "key", "What Hyperleap said of its limit could not be passed on"),
}

PARTS: Final[Table] = {
    "gateway.started": Told("info", "url internal_url embedded workers", "Both ports answer"),
    "gateway.draining": Told("info", "turns replaced", "The gateway ends, or a worker is replaced"),
    "gateway.stopped": Told("info", "", "All is over"),
    "worker.started": Told("info", "worker_id", "A supervised worker serves"),
    "worker.stopped": Told("info", "worker_id", "It has ended in order"),
    "worker.ready": Told("info", "slot pid worker_id", "The supervisor has a worker in a slot"),
    "worker.failed": Told("error", "slot reason", "A worker did not become ready"),
    "worker.lost": Told("error", "slot status worker_id", "A worker died"),
    "worker.exited": Told("info", "slot status worker_id", "A worker ended as it was asked to"),
    "worker.orphaned": Told("warning", "", "A worker's supervisor is gone, and so the worker ends"),
    "roll.started": Told("info", "", "Workers are replaced one by one"),
    "roll.failed": Told("error", "slot reason", "One could not be replaced"),
    "roll.done": Told("info", "", "All are replaced"),
    "roll.abandoned": Told("error", "", "The rest of the old ones stay"),
    "slot.closed": Told("error", "slot reason", "A slot has no worker and takes no connections for now"),
    "control.misunderstood": Told("warning", "word", "A worker was told what it does not know"),
    "peer.lost": Told("warning", "worker_id", "Another worker is known to be dead; its turns are taken over"),
    "inbox.hears": Told("info", "", "Word from other workers arrives"),
    "inbox.deaf": Told("warning", "", "It does not: readers of turns elsewhere wait longer"),
    "inbox.lost": Told("warning", "", "The connection that it arrives by was lost"),
    "inbox.crashed": Told("error", "", "A mistake of ours while it was taken in"),
    "readers.untold": Told("warning", "", "Another worker could not be told how many read its turns"),
    "inbox.misunderstood": Told("warning", "kind", "A word that this version does not know"),
    "revocation.heard": Told("warning", "what tenant", "A revocation is carried out here"),
    "revocation.lifted": Told("warning", "tenant", "A tenant is let in again here"),
    "revocation.misunderstood": Told("warning", "", "A revocation that this version cannot read"),
    "revocations.unread": Told("warning", "", "Revocations could not be read from the store"),
    "revocations.crashed": Told("error", "", "A mistake of ours while they were"),
    "tenants.changed": Told("info", "tenants added removed", "Other tenants are in force here, and how many"),
    "tenants.unread": Told("warning", "", "Tenants could not be read from the store"),
    "tenants.crashed": Told("error", "", "A mistake of ours while they were"),
    "tenant.shadowed": Told("warning", "tenant source", "A stored tenant is fixed as well, which wins"),
    "tenant.unreadable": Told("warning", "tenant field", "A stored tenant cannot be read; what it was stays"),
    "tenant.misunderstood": Told("warning", "tenant", "A name in the store that no tenant can have"),
    "tenants_file.crashed": Told("error", "", "A mistake of ours while the tenants file was read"),
    "key_set.changed": Told("info", "url keys", "An issuer has other keys"),
    "key_set.unavailable": Told("warning", "url reason keys", "An issuer's keys cannot be read; those known are used"),
    "key_set.crashed": Told("error", "", "A mistake of ours while they were"),
    "secret.exposed": Told("warning", "path mode", "A secret's file can be read by others"),
    "tracing.off": Told("warning", "setting why", "Traces were asked for and cannot be exported"),
    "tracing.troubled": Told("warning", "where words", "What OpenTelemetry says of its troubles"),
    "spans.unsent": Told("warning", "spans", "A batch of spans was dropped"),
    "store.failed": Told("warning", "store", "Calls to the store fail"),
    "admin.crashed": Told("error", "", "A mistake of ours in an admin call whose caller had left"),
    "store.refused": Told("warning", "store reason", "The store answered a call with an error"),
    "store.recovered": Told("info", "store", "They work again"),
    "store.died": Told("error", "reason", "The embedded Valkey died"),
    "store.restarted": Told("warning", "duration_s", "It runs again"),
    "store.restart_failed": Told("error", "reason", "It could not be started again"),
    "store.lost": Told("critical", "reason", "It is given up, and so the gateway ends"),
    "store.master_changed": Told("info", "was now", "Sentinel names another master"),
    "store.misnamed": Told("error", "advice", "The servers' names lead nowhere from here"),
    "store.map_unread": Told("warning error", "store", "A Cluster's map of slots could not be read"),
    "succession.unheard": Told("warning", "sentinel", "A Sentinel cannot be listened to; the others are"),
    "succession.misunderstood": Told("error", "", "What a Sentinel says of another master cannot be understood"),
    "ledger.export_begun": Told("info", "tenants", "This worker exports the ledger to PostgreSQL"),
    "ledger.export_failed": Told("warning error", "reason detail", "An attempt failed; the next comes after a pause"),
    "ledger.export_late": Told(
        "error", "lag_s kept_s lost", "It is far behind; what is older than Redis keeps would be `lost`"
    ),
    "ledger.export_rewound": Told("warning", "tenant", "The store went back in time; its ledger is read again"),
    "ledger.export_unreadable": Told("error", "entries", "Entries that are no settlement were set aside"),
    "ledger.export_crashed": Told("error", "", "A mistake of ours while it was exported"),
    "store.slots_moved": Told("info", "now", "Slots of a Cluster are elsewhere"),
}

TABLES: Final[dict[str, Table]] = {
    "Requests, sockets and turns": LIFE,
    "What went wrong for somebody": TROUBLE,
    "Hyperleap and its keys": VENDOR,
    "The gateway's parts": PARTS,
}
EVENTS: Final[Table] = {name: told for table in TABLES.values() for name, told in table.items()}
ANY: Final = ("ts", "level", "logger", "event", "worker", "request_id", "turn_id", "trace_id", "error", "suppressed")
AUDIT_ANY: Final = ("outcome", "actor", "actor_name", "address", "code", "held_back")

_PREAMBLE: Final = """# Logs

Generated by `python -m gateway.telemetry.catalogue`; do not edit.

One event a line on standard error: JSON, or for a human where that is a terminal (`GATEWAY_LOG_FORMAT`). What begins
and ends is told at both: requests, sockets, turns (`GATEWAY_LOG_STARTS=false` leaves the beginnings out; a line costs 7
to 12 µs of CPU time, a turn with its request has four). Probes and scrapes of the internal port are not logged, nor is
anything told for a piece of an answer. What repeats is throttled: the next line that comes through says how many were
`suppressed`.

No line holds a prompt, an answer, a key, a token, a secret or a user's id: users are told by their keyed hash, the same
as in traces, the store and at Hyperleap. What looks like a credential would be masked in any line.

Fields that any line may have:

| field | what it is |
| --- | --- |
| `ts` `level` `logger` `event` | when (UTC, milliseconds), how bad, which part of the code, and the name below |
| `worker` | the slot of a supervised worker |
| `request_id` `trace_id` | its request: answer's `x-request-id`, part of the `traceparent` ([tracing](tracing.md)) |
| `turn_id` | the turn, where the line is about one |
| `error` | an exception: its type, its words cut short and cleaned, where it was raised, its causes |
| `suppressed` | lines of this kind that were held back before this one |"""

_AUDIT: Final = """
## The audit stream

Who was let in or turned away, and who changed what. The logger is `gateway.audit`; its lines are among the others,
whatever `GATEWAY_LOG_LEVEL` is, or in a file of their own: `GATEWAY_AUDIT_LOG`, always JSON, one line by one write, so
that workers and commands may share it. A file that is moved away (logrotate) is begun anew at the next line; while it
cannot be written, lines go to the log instead.

Whoever makes a change writes its line: a worker for what comes over HTTP or from a file, `hyperleap-gateway keys`,
`tokens` and `tenants` for what an operator does, to the file, or to standard error where there is none.

| field | what it is |
| --- | --- |
| `outcome` | `done`, `refused`, or `failed`: the store did not answer, and it may have been done |
| `actor` | `cli` (a command), `admin` (the admin API), `key` (of a tenant), `anybody`, `file`, `start`, `gateway` |
| `actor_name` | the operator's login, for `cli` |
| `address` | where it came from over HTTP, as `GATEWAY_TRUSTED_PROXIES` tell |
| `code` | why it was refused ([errors](errors.md)) |
| `held_back` | so many more of this action, tenant and code came within 10 s than the 20 that were told one by one |
"""


def reference() -> str:
    """Return the page `docs/logs.md`."""
    lines = [_PREAMBLE]
    for title, table in TABLES.items():
        lines += ["", f"## {title}", "", *_rows(table)]
    return "\n".join([*lines, _AUDIT, *_rows(AUDIT_TABLE)]) + "\n"


def _rows(table: Table) -> list[str]:
    rows = ["| event | level | when | fields |", "| --- | --- | --- | --- |"]
    for name, (level, fields, when) in table.items():
        named = " ".join(f"`{field}`" for field in fields.split()) or "–"
        rows.append(f"| `{name}` | {' or '.join(level.split())} | {when} | {named} |")
    return rows


if __name__ == "__main__":
    sys.stdout.write(reference())
