"""The vendor's reports, of which a tenant's backend gets what its own users did and nothing else.

The vendor reports on a whole workspace, which tenants may share, and has published no shape for it. So an item passes
only where it says itself that it is the tenant's: by the ``externalUserId`` that the gateway gave its conversation, by
a conversation that the gateway knows, or by a prompt run that it made, as long as it remembers that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from gateway.core.conversation import ConversationId, ConversationStore
from gateway.core.errors import Code, GatewayError
from gateway.core.identity import Principal, Tenant
from gateway.core.operations import Operations, PromptRunStore, Report, RunId, RunKind
from gateway.services.admission import Admission
from gateway.services.vendor import Vendor

OF_PROMPTS: Final = frozenset({Report.AUDIT_PROMPT_RUNS, Report.FEEDBACK_PROMPT_RUNS})


class Reports:
    """Asks for reports and lets through what is the tenant's."""

    def __init__(
        self,
        vendor: Vendor,
        operations: Operations,
        conversations: ConversationStore,
        runs: PromptRunStore,
        admission: Admission,
    ) -> None:
        self._vendor = vendor
        self._operations = operations
        self._conversations = conversations
        self._runs = runs
        self._admission = admission

    async def report(self, backend: Principal, report: Report, asked: Mapping[str, Any], *, address: str) -> Any:
        """Return a page of a report: ``data``, which may be shorter than asked for, and ``continuationToken``.

        Raises GatewayError: rate_limited, upstream_*, store_unavailable.
        """
        await self._admission.admit(backend, "report", address)
        page = await self._vendor.ask(backend.tenant, lambda key: self._operations.report(report, asked, key=key))
        items, token = (page.get("data"), page.get("continuationToken")) if isinstance(page, dict) else (page, None)
        if not isinstance(items, list) and items is not None:
            raise GatewayError(Code.UPSTREAM_MALFORMED, "Hyperleap's report has another form than its lists.")
        own = await asyncio.gather(*(self._is_own(backend.tenant, report, item) for item in items or ()))
        return {
            "data": [item for item, passes in zip(items or (), own, strict=True) if passes],
            "continuationToken": token if isinstance(token, str) else None,
        }

    async def details(self, backend: Principal, kind: RunKind, run_id: str, *, address: str) -> Any:
        """Return what the audit tells of a run of the tenant's; raises GatewayError(not_found), else as ``report``."""
        tenant = backend.tenant
        of_prompt = kind is RunKind.PROMPT
        if of_prompt and await self._runs.find(tenant.id, RunId(run_id)) is None:
            raise GatewayError(Code.NOT_FOUND)  # the vendor need not be asked
        await self._admission.admit(backend, "report", address)
        found = await self._vendor.ask(tenant, lambda key: self._operations.run_details(kind, run_id, key=key))
        if found is None or not (of_prompt or await self._is_own(tenant, kind, found)):
            raise GatewayError(Code.NOT_FOUND)
        return found

    async def _is_own(self, tenant: Tenant, of: Report | RunKind, item: Any) -> bool:
        """Whether an item is the tenant's. One lookup, whatever the item says, so that its time tells nothing."""
        said = item if isinstance(item, dict) else {}
        if of in OF_PROMPTS:
            return await self._runs.find(tenant.id, RunId(_id(said, "promptRunId", "runId"))) is not None
        known = await self._conversations.head(tenant.id, ConversationId(_id(said, "conversationId")))
        user = said.get("externalUserId")
        return user.startswith(f"{tenant.id}:") if isinstance(user, str) else known is not None


def _id(item: Mapping[str, Any], *names: str) -> str:
    value = next((value for name in names if isinstance(value := item.get(name), str)), "")
    return value.lower() if len(value) == 36 else ""
