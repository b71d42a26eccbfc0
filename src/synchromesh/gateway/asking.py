"""Asks one operation, for a branch or a route, and answers with its fallback where it fails."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from msgspec.structs import replace

from synchromesh.calls import Call, Caller, Operation
from synchromesh.clock import loop_now
from synchromesh.codec import decode, digest, encode
from synchromesh.context import CallContext
from synchromesh.errors import CircuitOpen, RateLimited, Rejection, SynchromeshError
from synchromesh.gateway.composition import BranchOutcome, BranchStatus
from synchromesh.gateway.fallbacks import CompiledFallback
from synchromesh.gateway.last_answers import LastAnswers
from synchromesh.gateway.prepared import PreparedCall


class Asker:
    """Asks the operations of a gateway, and keeps the last answers for those who fall back to them.

    Args:
        caller: sends the calls.
        last: the answers that are kept.
    """

    def __init__(self, caller: Caller, last: LastAnswers) -> None:
        self.caller = caller
        self._last = last
        self._prepared: dict[Operation[..., Any], PreparedCall] = {}

    def prepared(self, operation: Operation[..., Any]) -> PreparedCall:
        """Return what starts the calls of an operation."""
        prepared = self._prepared.get(operation)
        if prepared is None:
            prepared = self._prepared[operation] = PreparedCall(self.caller, operation)
        return prepared

    async def ask(
        self,
        operation: Operation[..., Any],
        arguments: bytes,
        *,
        context: CallContext,
        place: tuple[str, ...],
        stand_in: CompiledFallback | None = None,
        timeout_s: float | None = None,
    ) -> BranchOutcome:
        """Ask once, and return what became of it: "ok", "stale", "static", "rejected" or "failed".

        A last answer is one to the same arguments for the same principal: what one may see says
        nothing of what another may.

        Args:
            arguments: in their canonical form, as JSON.
            place: where the answer belongs, such as a route; tells its last answer from others.
            stand_in: what answers where the service fails; never where it says no.
        """
        call: Call[Any] = Call(operation, arguments)
        if stand_in is None:
            return await self._called(call, context, timeout_s)
        question = (*place, context.principal, digest(arguments))
        if self.caller.edge(operation.service).is_refusing(loop_now()):
            # A caller that may wait would wait for the breaker; one that has an answer need not.
            instead = self._instead(operation, stand_in, question)
            if instead is not None:
                return replace(instead, error=CircuitOpen("the breaker is open; nothing was sent"))
        outcome = await self._called(call, context, timeout_s)
        if outcome.status is BranchStatus.OK and stand_in.stale_s:
            self._last.keep(question, encode(outcome.value), loop_now())
        if outcome.status is BranchStatus.FAILED and _is_failure(outcome.error):
            instead = self._instead(operation, stand_in, question)
            return outcome if instead is None else replace(instead, error=outcome.error)
        return outcome

    def __repr__(self) -> str:
        return f"<Asker {self.caller!r}, {self._last!r}>"

    async def _called(
        self, call: Call[Any], context: CallContext, timeout_s: float | None
    ) -> BranchOutcome:
        try:
            value = await self.caller.call(call, context=context, timeout_s=timeout_s)
        except SynchromeshError as error:
            # What is kept as a value needs no frames: on CPython 3.12.1 and 3.13.0 they lead by
            # `f_back` to those who keep it, so that only the collector would free them.
            return outcome_of_error(error.with_traceback(None))
        return BranchOutcome(BranchStatus.OK, value)

    def _instead(
        self, operation: Operation[..., Any], stand_in: CompiledFallback, question: Hashable
    ) -> BranchOutcome | None:
        result = operation.shape.result
        if stand_in.static is not None:
            return BranchOutcome(BranchStatus.STATIC, decode(stand_in.static, result))
        now = loop_now()
        found = self._last.find(question, at_most_s=stand_in.stale_s, now=now)
        if found is None:
            return None
        return BranchOutcome(BranchStatus.STALE, decode(found[0], result), age_s=found[1])


def outcome_of_error(error: SynchromeshError) -> BranchOutcome:
    """Return what became of a call that ended with an error."""
    status = BranchStatus.REJECTED if isinstance(error, Rejection) else BranchStatus.FAILED
    return BranchOutcome(status, error=error)


def _is_failure(error: SynchromeshError | None) -> bool:
    """Tell a failure of the service from a word about the request, which no fallback may hide."""
    return error is not None and (error.status >= 500 or isinstance(error, RateLimited))
