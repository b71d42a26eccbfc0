"""Runs an aggregate: asks the machine what can start, calls it, and puts the answers together."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import unquote

import msgspec

from synchromesh.calls.texts import from_text
from synchromesh.codec import encode
from synchromesh.context import CallContext
from synchromesh.errors import BadRequest, Rejection
from synchromesh.gateway.asking import Asker
from synchromesh.gateway.branches import CompiledBranch
from synchromesh.gateway.composition import BranchOutcome, BranchStatus, Composition, Start
from synchromesh.gateway.problems import outside

_Arguments: TypeAlias = Mapping[str, Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class Composed:
    """The answer of an aggregate; `partial` names the branches that are not as they could be."""

    body: bytes
    partial: tuple[str, ...]


def arguments_of(parts: Mapping[str, CompiledBranch], places: Mapping[str, str]) -> _Arguments:
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
        asker: asks the operations.
    """

    def __init__(
        self,
        name: str,
        parts: Mapping[str, CompiledBranch],
        given: _Arguments,
        *,
        context: CallContext,
        asker: Asker,
    ) -> None:
        self._name = name
        self._parts = parts
        self._given = given
        self._context = context
        self._asker = asker
        self._composition = Composition({name: part.step for name, part in parts.items()})

    async def answer(self) -> Composed:
        """Call the branches, each as soon as it can be, and return the whole.

        Raises:
            SynchromeshError: a required branch has no answer; the other branches are cancelled.
        """
        composition, loop = self._composition, asyncio.get_running_loop()
        tasks: dict[str, asyncio.Task[BranchOutcome]] = {}
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
    def outcomes(self) -> Mapping[str, BranchOutcome]:
        """What became of the branches so far."""
        return self._composition.outcomes

    def _composed(self) -> Composed:
        outcomes = self._composition.outcomes
        data = {name: outcomes[name].value for name in self._parts}
        marks = {name: _mark(outcomes[name]) for name in self._parts}
        return Composed(encode({"data": data, "branches": marks}), self._composition.partial)

    async def _branch(self, start: Start) -> BranchOutcome:
        part = self._parts[start.name]
        operation = part.operation
        try:
            arguments = operation.canonical(encode({**self._given[start.name], **start.arguments}))
        except BadRequest as error:
            return BranchOutcome(BranchStatus.FAILED, error=error)
        return await self._asker.ask(
            operation,
            arguments,
            context=self._context,
            place=(self._name, start.name),
            stand_in=part.stand_in,
            timeout_s=part.timeout_s,
        )


def _mark(outcome: BranchOutcome) -> dict[str, object]:
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
