"""What becomes of turns, how long they take, what they cost, and how they were judged."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from gateway.core.conversation import SCORE_MAX, SCORE_MIN
from gateway.core.errors import WIRE, Code
from gateway.core.ledger import Source
from gateway.core.turn import StopReason, TurnState
from gateway.telemetry.families import OTHER, Axis, Buckets, Families
from gateway.telemetry.histogram import Histogram
from gateway.telemetry.labels import Labels

ENDINGS = frozenset(
    {(TurnState.COMPLETED.value, reason) for reason in ("finished", "stop", "length", "content_filter", "tool_calls")}
    | {(TurnState.STOPPED.value, reason.value) for reason in StopReason}
    | {(TurnState.FAILED.value, code.value) for code in Code}
)
OUTCOMES = (TurnState.COMPLETED.value, TurnState.STOPPED.value, TurnState.FAILED.value)
SCREENED = ("passed", "flagged", "unjudged_sent", "unjudged_refused")
SIGNS = ("negative", "neutral", "positive")
Cap = Literal["budget", "answer_cap", "tokens_max"]
CAPS: tuple[Cap, ...] = ("budget", "answer_cap", "tokens_max")
# The buckets that the OpenTelemetry GenAI conventions ask for (gen-ai-metrics)
GENAI_SECONDS = Buckets(
    "GenAI seconds", (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
)
GENAI_TOKENS = Buckets("GenAI tokens", tuple(float(4**n) for n in range(14)))
SHORT_SECONDS = Buckets(
    "short seconds", (0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
)
# Required attributes of the same conventions; they have one value here
GENAI = (("gen_ai_operation_name", "chat"), ("gen_ai_provider_name", "hyperleap"))
GENAI_VALUES = tuple(value for _, value in GENAI)


class TurnMetrics:
    """Verbs of turns. Tenants and personas are told as ``labels`` folds them."""

    def __init__(self, make: Families, labels: Labels) -> None:
        self._labels = labels
        tenant, persona = labels.tenant, labels.persona
        genai = tuple(Axis((name,), 1) for name, _ in GENAI)
        self._started = make.counter("gateway_turns_started_total", "Turns started", persona, unit="turns")
        self._live = make.gauge("gateway_turns_live", "Turns running on this worker", persona, unit="turns")
        self._detached = make.gauge(
            "gateway_turns_detached",
            "Turns running on this worker whose last reader, here or on another worker, has left",
            tenant,
            unit="turns",
        )
        self._detachments = make.counter(
            "gateway_turn_detachments_total", "Times that the last reader of a running turn left", tenant, unit="times"
        )
        self._returns = make.counter(
            "gateway_turn_returns_total",
            "Times that a reader came to a running turn whose last reader had left",
            tenant,
            unit="times",
        )
        self._ended = make.counter(
            "gateway_turns_total",
            "Turns ended, by outcome (completed, stopped, failed) and by the finish reason, stop reason or error code",
            persona,
            Axis(("outcome", "reason"), len(ENDINGS) + len(OUTCOMES) + 1),
            unit="turns",
        )
        self._attempts = make.counter(
            "gateway_turn_attempts_total",
            "Turns asked for, by whether gateway and Hyperleap did their part (yes) or it failed, or was refused at its"
            " start, with a code of 500 and above (no); what is the caller's own fault is in neither",
            Axis(("served",), 2),
            unit="turns",
        )
        self._attempts.add(0, "yes")
        self._attempts.add(0, "no")
        self._cut_off = make.counter(
            "gateway_cutoffs_total",
            "Answers cut off in the middle: a budget was used up (budget), the answer was too long (answer_cap), "
            "or longer than its client wants (tokens_max)",
            tenant,
            Axis(("cap",), len(CAPS)),
            unit="turns",
        )
        self._recovered = make.counter(
            "gateway_turns_recovered_total",
            "Turns of a lost worker that this one brought to an end: completed from the vendor's copy (yes) or not",
            tenant,
            Axis(("completed",), 2),
            unit="turns",
        )
        self._settled = make.counter(
            "gateway_settlements_total",
            "Turns settled, by where their tokens are from: reported in the stream, read back later, or estimated",
            tenant,
            Axis(("source",), 3),
            unit="turns",
        )
        self._turn_s = make.histogram(
            "gen_ai_client_operation_duration_seconds",
            "Duration of a turn, from its start to its ending",
            GENAI_SECONDS,
            *genai,
            persona,
            Axis(("outcome",), len(OUTCOMES) + 1),
        )
        self._first_s = make.histogram(
            "gen_ai_client_operation_time_to_first_chunk_seconds",
            "Time from when a turn's message is sent to Hyperleap to the first text of its answer",
            GENAI_SECONDS,
            *genai,
            persona,
        )
        self._gap_s = make.histogram(
            "gen_ai_client_operation_time_per_output_chunk_seconds",
            "Time between two pieces of an answer",
            GENAI_SECONDS,
            *genai,
            persona,
        )
        self._token_usage = make.histogram(
            "gen_ai_client_token_usage",
            "Tokens of a turn, by direction (input, output)",
            GENAI_TOKENS,
            *genai,
            Axis(("gen_ai_token_type",), 2),
            persona,
            unit="tokens",
        )
        self._tokens = make.counter(
            "gateway_tokens_total",
            "Tokens, by direction (prompt, completion) and by source (reported by the vendor, or estimated)",
            persona,
            Axis(("direction",), 2),
            Axis(("source",), 3),
        )
        self._added_s = make.histogram(
            "gateway_added_latency_seconds", "Time that the gateway itself adds before a turn starts", SHORT_SECONDS
        )
        self._screened = make.counter(
            "gateway_messages_screened_total",
            "Messages judged before their turns (passed, flagged), or that could not be (unjudged_sent, …_refused)",
            tenant,
            Axis(("outcome",), len(SCREENED) + 1),
            unit="messages",
        )
        self._feedback = make.counter(
            "gateway_feedback_total",
            "Feedback given, by the sign of its score (negative, neutral, positive)",
            persona,
            Axis(("sign",), len(SIGNS)),
            unit="judgements",
        )
        self._feedback_points = make.counter(
            "gateway_feedback_points_total",
            "Sum of the scores' amounts (-10 to 10); (positive - negative) / gateway_feedback_total is the mean score",
            persona,
            Axis(("sign",), len(SIGNS)),
            unit="points",
        )

    def begin(self, tenants: Iterable[str]) -> None:
        """Show what alerts wait for as 0: the first increase of a series that was not there is not seen as one."""
        for tenant in tenants:
            if self._labels.of_tenant(tenant) == tenant:
                for completed in ("yes", "no"):
                    self._recovered.add(0, tenant, completed)

    def started(self, tenant: str, persona: str | None) -> None:
        labels = self._labels.of_persona(tenant, persona)
        self._started.add(1, *labels)
        self._live.add(1, *labels)

    def ended(
        self, tenant: str, persona: str | None, outcome: str, reason: str, seconds: float, trace_id: str = ""
    ) -> None:
        """``reason`` is the stop reason, the error code, or for a completed turn the finish reason.

        ``trace_id`` is of a trace in which to see such a turn.
        """
        labels = self._labels.of_persona(tenant, persona)
        if outcome not in OUTCOMES:
            outcome = reason = OTHER
        elif (outcome, reason) not in ENDINGS:
            reason = OTHER
        self._live.add(-1, *labels)
        self._ended.add(1, *labels, outcome, reason)
        self._turn_s.of(*GENAI_VALUES, *labels, outcome).observe(seconds, trace_id)

    def attempted(self, fault: Code | None) -> None:
        """A turn got its ending, or was refused at its start; ``fault`` is the code of its error, if it has one."""
        if fault is None:
            self._attempts.add(1, "yes")
        elif WIRE[fault].http >= 500:
            self._attempts.add(1, "no")

    def taken_over(self, tenant: str, persona: str | None) -> None:
        """A lost worker's turn runs on this one from now on; ``ended`` tells its end."""
        self._live.add(1, *self._labels.of_persona(tenant, persona))

    def recovered(self, tenant: str, *, completed: bool) -> None:
        self._recovered.add(1, self._labels.of_tenant(tenant), "yes" if completed else "no")

    def detached(self, tenant: str) -> None:
        """The last reader of a running turn has left; ``reattached`` or ``detached_ended`` follows."""
        tenant = self._labels.of_tenant(tenant)
        self._detached.add(1, tenant)
        self._detachments.add(1, tenant)

    def reattached(self, tenant: str) -> None:
        """Somebody reads a turn again that nobody read."""
        tenant = self._labels.of_tenant(tenant)
        self._detached.add(-1, tenant)
        self._returns.add(1, tenant)

    def detached_ended(self, tenant: str) -> None:
        """A turn has ended that nobody read."""
        self._detached.add(-1, self._labels.of_tenant(tenant))

    def cut_off(self, tenant: str, cap: Cap) -> None:
        self._cut_off.add(1, self._labels.of_tenant(tenant), cap)

    def settled(self, tenant: str, source: Source) -> None:
        self._settled.add(1, self._labels.of_tenant(tenant), source)

    def tokens_counted(self, tenant: str, persona: str | None, prompt: int, completion: int, source: str) -> None:
        labels = self._labels.of_persona(tenant, persona)
        prompt, completion = max(0, prompt), max(0, completion)  # the vendor's word; a counter cannot fall
        source = source if source in ("reported", "estimated") else OTHER
        self._tokens.add(prompt, *labels, "prompt", source)
        self._tokens.add(completion, *labels, "completion", source)
        self._token_usage.of(*GENAI_VALUES, "input", *labels).observe(prompt)
        self._token_usage.of(*GENAI_VALUES, "output", *labels).observe(completion)

    def first_token(self, tenant: str, persona: str | None, seconds: float, trace_id: str = "") -> None:
        self._first_s.of(*GENAI_VALUES, *self._labels.of_persona(tenant, persona)).observe(seconds, trace_id)

    def gap_histogram(self, tenant: str, persona: str | None) -> Histogram:
        """Return the histogram of the time between tokens; a turn keeps it and observes on every event."""
        return self._gap_s.of(*GENAI_VALUES, *self._labels.of_persona(tenant, persona))

    def gateway_added(self, seconds: float) -> None:
        self._added_s.of().observe(seconds)

    def message_screened(self, tenant: str, outcome: str) -> None:
        self._screened.add(1, self._labels.of_tenant(tenant), outcome if outcome in SCREENED else OTHER)

    def feedback_given(self, tenant: str, persona: str | None, score: int) -> None:
        score = max(SCORE_MIN, min(SCORE_MAX, score))
        labels = (*self._labels.of_persona(tenant, persona), SIGNS[(score > 0) - (score < 0) + 1])
        self._feedback.add(1, *labels)
        self._feedback_points.add(abs(score), *labels)
