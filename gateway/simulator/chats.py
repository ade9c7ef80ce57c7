"""Chats: takes a user's message, decides what strikes it, and sets a run going or refuses it."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import uuid4

from h2.errors import ErrorCodes

from gateway.simulator.allowance import Allowance
from gateway.simulator.answers import Answer, answer
from gateway.simulator.bill import Bill, ChatRun, State
from gateway.simulator.conversations import Conversation
from gateway.simulator.exchange import Exchange
from gateway.simulator.faults import Fault, FaultName, FaultPlan
from gateway.simulator.pace import Pace
from gateway.simulator.replies import ApiError, common_headers, reply_empty, reply_error, reply_too_many
from gateway.simulator.requests import BadRequestError, UserMessage, decode
from gateway.simulator.runs import OnDisconnect, Run, Tempo
from gateway.simulator.script import Form, write_script

# Those that end a chat before anything of it is processed; the first of them that strikes decides.
_REFUSALS = (
    FaultName.REFUSE,
    FaultName.GOAWAY_UNSEEN,
    FaultName.TOO_MANY,
    FaultName.INTERNAL,
    FaultName.EMPTY_BODY_ERROR,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSettings:
    """Holds what chats need of the settings; see `gateway.simulator.server.SimulatorSettings`."""

    rate_per_s: float
    first_token_s: float
    on_disconnect: OnDisconnect
    raw_utf8: bool
    sse_done: bool


class Chats:
    """Starts every chat; `plan` may be replaced while it runs."""

    def __init__(self, settings: ChatSettings, plan: FaultPlan, pace: Pace, bill: Bill, state: State) -> None:
        self.plan = plan
        self._settings = settings
        self._pace = pace
        self._bill = bill
        self._state = state

    def start(self, exchange: Exchange, conversation: Conversation, form: Form, allowance: Allowance) -> None:
        """Answers one message; raises BadRequestError for a body or a directive that cannot be understood."""
        self.say(exchange, conversation, decode(exchange.body, UserMessage).message, form, allowance)

    def say(
        self, exchange: Exchange, conversation: Conversation, message: str, form: Form, allowance: Allowance
    ) -> ChatRun:
        """Answers words, wherever they are from, and returns the record; raises BadRequestError for a bad directive."""
        try:
            said = answer(message)
        except ValueError as error:
            raise BadRequestError(str(error)) from None
        self._state.chats += 1
        faults = self.plan.strike(said.directives.faults)
        record = ChatRun(
            conversation_id=conversation.conversation_id,
            message_id=str(uuid4()),
            run_id=str(uuid4()),
            form=form,
            message=message,
            faults=tuple(faults),
        )
        self._bill.add(record)
        tempo = self._tempo(said, faults)
        refusal = next((faults[name] for name in _REFUSALS if name in faults), None)
        if refusal is not None:
            record.outcome = "refused"
            if tempo.headers_s:
                due_s = self._pace.now_s() + tempo.headers_s
                self._pace.at(due_s, lambda: _refuse(exchange, refusal, allowance))
            else:
                _refuse(exchange, refusal, allowance)
            return record
        settings, asked = self._settings, said.directives
        raw = settings.raw_utf8 if asked.raw_utf8 is None else asked.raw_utf8
        Run(
            exchange,
            conversation,
            write_script(said, record.message_id, record.run_id, faults, raw_utf8=raw, sse_done=settings.sse_done),
            form,
            tempo,
            record,
            pace=self._pace,
            state=self._state,
            on_disconnect=settings.on_disconnect,
            headers=[*common_headers(), *allowance.headers()],
        ).begin()
        return record

    def _tempo(self, said: Answer, faults: dict[FaultName, Fault]) -> Tempo:
        settings, asked = self._settings, said.directives
        first_token_s = settings.first_token_s if asked.first_token_s is None else asked.first_token_s
        if late := faults.get(FaultName.SLOW_FIRST_TOKEN):
            first_token_s += late.value
        late_headers = faults.get(FaultName.SLOW_HEADERS)
        return Tempo(
            rate_per_s=settings.rate_per_s if asked.rate_per_s is None else asked.rate_per_s,
            first_token_s=first_token_s,
            headers_s=late_headers.value if late_headers else 0.0,
        )


def _refuse(exchange: Exchange, fault: Fault, allowance: Allowance) -> None:
    match fault.name:
        case FaultName.REFUSE:
            exchange.reset(ErrorCodes.REFUSED_STREAM)
        case FaultName.GOAWAY_UNSEEN:
            exchange.connection.goaway(last_stream_id=max(0, exchange.stream_id - 2))
        case FaultName.TOO_MANY:
            reply_too_many(exchange, fault.value, allowance)
        case FaultName.INTERNAL:
            reply_error(exchange, ApiError(500, "internal_server_error", "Something went wrong."))
        case FaultName.EMPTY_BODY_ERROR:
            reply_empty(exchange, int(fault.value))
        case _:
            raise AssertionError(fault)
