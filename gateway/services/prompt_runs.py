"""Runs of the tenant's prompts: started as turns are, under all that holds for turns; and their scores."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import msgspec

from gateway.core.conversation import Conversation, ConversationId, Feedback
from gateway.core.errors import Code, GatewayError
from gateway.core.identity import Principal, Prompt
from gateway.core.operations import Operations, PromptRunStore, RunId, RunRecord
from gateway.services.admission import Admission
from gateway.services.clock import timestamp
from gateway.services.conversations import check_replacements
from gateway.services.feedback import check_feedback
from gateway.services.prompt_run import PromptRun
from gateway.services.starts import Started
from gateway.services.turns import Turns
from gateway.services.vendor import Vendor

_NAMESPACE: Final = uuid.UUID("0f4d2a86-93a4-4f0f-8f0e-6f6a1c2f9d57")  # of ids made from others; any would do


class PromptRuns:
    """Runs prompts that the tenant lists, and lets their users score them."""

    def __init__(
        self,
        turns: Turns,
        runs: PromptRunStore,
        vendor: Vendor,
        operations: Operations,
        admission: Admission,
    ) -> None:
        self._turns = turns
        self._runs = runs
        self._vendor = vendor
        self._operations = operations
        self._admission = admission

    async def start(
        self,
        principal: Principal,
        alias: str,
        replacements: Mapping[str, Any],
        *,
        idempotency_key: str | None,
        address: str,
    ) -> Started:
        """Run a prompt; its answer is a turn's, to be followed, stopped and settled like any other.

        Raises GatewayError: prompt_unknown, replacement_not_allowed, and what ``Turns.start`` raises.
        """
        prompt = _prompt(principal, alias)
        check_replacements(replacements, prompt.replacements)
        tenant, owner = principal.tenant, principal.user_hash
        # A repeat must meet the run that its key led to, in the same conversation.
        once = f"{principal.external_user_id}\0{alias}\0{idempotency_key}" if idempotency_key is not None else None
        conversation = Conversation(
            id=ConversationId(str(uuid.uuid5(_NAMESPACE, once) if once is not None else uuid.uuid4())),
            owner=owner,
            persona=alias,
            listed=False,
        )

        async def remember(run_id: RunId) -> None:
            await self._runs.put(tenant.id, run_id, RunRecord(owner, alias))

        make = partial(
            PromptRun,
            ask=lambda receiver, key: self._operations.open_prompt_run(prompt, replacements, receiver, key=key),
            remember=remember,
        )
        question = msgspec.json.encode(replacements, order="sorted").decode()  # a repeat may order them anew
        return await self._turns.run(
            *(principal, conversation, question, make),
            words="\n".join(str(value) for value in replacements.values() if value is not None),
            idempotency_key=idempotency_key,
            address=address,
        )

    async def score(
        self,
        principal: Principal,
        run_id: RunId,
        *,
        score: int,
        comments: str | None,
        confidence: float | None,
        address: str,
    ) -> Feedback:
        """Score a run of the principal's; the same user's next score of it replaces this one.

        Raises GatewayError: invalid_value, not_found, rate_limited, upstream_*, store_unavailable.
        """
        check_feedback(score, comments, None, confidence)
        record = await self._runs.find(principal.tenant.id, run_id)
        if record is None or not principal.owns(record.owner, record.alias):
            raise GatewayError(Code.NOT_FOUND)
        await self._admission.admit(principal, "score", address, record.alias)
        feedback = Feedback(
            feedback_id=str(uuid.uuid5(_NAMESPACE, f"{principal.external_user_id}\0{run_id}")),
            score=score,
            comments=comments,
            confidence=confidence,
            created_at=timestamp(),
        )
        await self._vendor.ask(
            principal.tenant, lambda key: self._operations.score_prompt_run(run_id, feedback, key=key)
        )
        return feedback


def _prompt(principal: Principal, alias: str) -> Prompt:
    prompt = principal.tenant.prompts.get(alias)
    if prompt is None or (principal.personas is not None and alias not in principal.personas):
        raise GatewayError(Code.PROMPT_UNKNOWN, field="prompt")
    return prompt
