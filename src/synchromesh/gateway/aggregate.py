"""Runs an aggregate: asks the machine what can start, calls it, and puts the answers together."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias
from urllib.parse import unquote

import msgspec

from synchromesh.calls import Call, Caller
from synchromesh.calls.texts import from_text
from synchromesh.codec import decode, digest, encode
from synchromesh.context import CallContext
from synchromesh.errors import BadRequest, CircuitOpen, RateLimited, Rejection, SynchromeshError
from synchromesh.gateway.branches import Part
from synchromesh.gateway.composition import Composition, Outcome, Start, Status
from synchromesh.gateway.last_answers import LastAnswers
from synchromesh.gateway.problems import outside
from synchromesh.resilience import BreakerState, Edge

_Arguments: TypeAlias = Mapping[str, Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class Composed:
    """The answer of an aggregate; `partial` names the branches that are not as they could be."""

    body: bytes
    partial: tuple[str, ...]


def arguments_of(parts: Mapping[str, Part], places: Mapping[str, str]) -> _Arguments:
    """Return what the path gives to each branch, by parameter; places are percent-encoded.

    Raises:
        BadRequest: a place does not fit the parameter that it is for.
    """
    given: dict[str, dict[str, object]] = {}
    for name, part in parts.items():
        hints = part.operation.shape.hints
        given[name] = {}
        for parameter, place in part.from_path.items():
            try:
                value = from_text(unquote(places[place], errors="strict"), hints[parameter])
            except (msgspec.ValidationError, UnicodeDecodeError) as error:
                raise BadRequest(f"{place!r} in the path: {error}") from error
            given[name][parameter] = value
    return given


class AggregateRun:
    """One aggregate under way.

    Args:
        name: of the aggregate; tells its kept answers from another one's.
        parts: its branches.
        given: what the path gives to them.
        context: of the request; its deadline bounds every branch.
        caller: sends their calls.
        last: the answers that are kept for those who fall back to them.
    """

    def __init__(
        self,
        name: str,
        parts: Mapping[str, Part],
        given: _Arguments,
        *,
        context: CallContext,
        caller: Caller,
        last: LastAnswers,
    ) -> None:
        self._name = name
        self._parts = parts
        self._given = given
        self._context = context
        self._caller = caller
        self._last = last
        self._composition = Composition({name: part.step for name, part in parts.items()})

    async def answer(self) -> Composed:
        """Call the branches, each as soon as it can be, and return the whole.

        Raises:
            SynchromeshError: a required branch has no answer; the other branches are cancelled.
        """
        composition, loop = self._composition, asyncio.get_running_loop()
        tasks: dict[str, asyncio.Task[Outcome]] = {}
        starts = composition.begin()
        try:
            while not composition.is_ended:
                for start in starts:
                    tasks[start.name] = loop.create_task(self._branch(start))
                await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
                starts = []
                for name in [name for name, task in tasks.items() if task.done()]:
                    starts += composition.finish(name, tasks.pop(name).result())
        finally:
            for task in tasks.values():
                task.cancel()
            # Nobody is left to hear what they had to say.
            await asyncio.gather(*tasks.values(), return_exceptions=True)
        if composition.failed:
            error = composition.outcomes[composition.failed].error
            assert error is not None, "a required branch is neither skipped nor absent by itself"
            raise error
        return self._composed()

    @property
    def outcomes(self) -> Mapping[str, Outcome]:
        """What became of the branches so far."""
        return self._composition.outcomes

    def _composed(self) -> Composed:
        outcomes = self._composition.outcomes
        data = {name: outcomes[name].value for name in self._parts}
        marks = {name: _mark(outcomes[name]) for name in self._parts}
        return Composed(encode({"data": data, "branches": marks}), self._composition.partial)

    async def _branch(self, start: Start) -> Outcome:
        part = self._parts[start.name]
        operation = part.operation
        try:
            arguments = operation.canonical(encode({**self._given[start.name], **start.arguments}))
        except BadRequest as error:
            return Outcome(Status.FAILED, error=error)
        question = (self._name, start.name, self._context.principal, digest(arguments))
        if _is_refusing(self._caller.edge(operation.service), asyncio.get_running_loop().time()):
            # A caller that may wait would wait for the breaker; one that has an answer need not.
            fallback = self._fallback(part, question)
            if fallback is not None:
                return replace(fallback, error=CircuitOpen("the breaker is open; nothing was sent"))
        call: Call[Any] = Call(operation, arguments)
        try:
            value = await self._caller.call(call, context=self._context, timeout_s=part.timeout_s)
        except Rejection as rejection:
            return Outcome(Status.REJECTED, error=rejection)
        except SynchromeshError as error:
            fallback = self._fallback(part, question) if _is_failure(error) else None
            return replace(fallback or Outcome(Status.FAILED), error=error)
        if part.stale_s:
            self._last.keep(question, encode(value), asyncio.get_running_loop().time())
        return Outcome(Status.OK, value)

    def _fallback(self, part: Part, question: tuple[str, ...]) -> Outcome | None:
        result = part.operation.shape.result
        if part.static is not None:
            return Outcome(Status.STATIC, decode(part.static, result))
        if part.stale_s:
            now = asyncio.get_running_loop().time()
            found = self._last.find(question, at_most_s=part.stale_s, now=now)
            if found is not None:
                return Outcome(Status.STALE, decode(found[0], result), age_s=found[1])
        return None


def _is_failure(error: SynchromeshError) -> bool:
    """Tell a failure of the service from a word about the request, which no fallback may hide."""
    return error.status >= 500 or isinstance(error, RateLimited)


def _is_refusing(edge: Edge, now: float) -> bool:
    breaker, options = edge.breaker, edge.policy.breaker
    if breaker is None or options is None:
        return False
    seen = breaker.snapshot()
    if seen.state is BreakerState.OPEN:
        return seen.open_until_s is not None and now < seen.open_until_s
    if seen.state is BreakerState.HALF_OPEN:
        # Past its lease a probe no longer counts, and the breaker has to be asked to see that.
        return seen.probes >= options.probes_max and now < seen.since_s + options.probe_lease_s
    return seen.state is BreakerState.ISOLATED


def _mark(outcome: Outcome) -> dict[str, object]:
    mark: dict[str, object] = {"status": outcome.status.value}
    if outcome.age_s is not None:
        mark["age_s"] = round(outcome.age_s, 3)
    if outcome.error is not None:
        told = outside(outcome.error)
        mark["code"] = told.code
        if isinstance(told, Rejection):
            mark["detail"], mark["details"] = told.message, told.details
    if outcome.because:
        mark["because"] = outcome.because
    return mark
