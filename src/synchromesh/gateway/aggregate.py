"""Runs an aggregate: asks the machine what can start, calls it, and puts the answers together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, TypeAlias
from urllib.parse import unquote

import msgspec

from synchromesh.calls import Call, Operation
from synchromesh.calls.started import StartedCall
from synchromesh.calls.texts import from_text
from synchromesh.calls.tree import Root, running
from synchromesh.codec import encode
from synchromesh.context import CallContext
from synchromesh.errors import BadRequest, Rejection, SynchromeshError
from synchromesh.gateway.asking import Asker, outcome_of_call
from synchromesh.gateway.branches import CompiledBranch
from synchromesh.gateway.composition import BranchOutcome, BranchStatus, Composition, Start
from synchromesh.gateway.problems import outside
from synchromesh.http.together import TurnWrites
from synchromesh.resilience import AttemptsLeft
from synchromesh.telemetry import current_span

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
    """One aggregate under way: its branches are calls that are told by callbacks.

    A branch that has a fallback, or whose call does not go straight through, is a task.

    Args:
        name: of the aggregate; tells its kept answers from another one's.
        parts: its branches.
        given: what the path gives to them.
        context: of the request; its deadline bounds every branch.
        left: the extra attempts of the request, which its branches share.
        asker: asks the operations.
        together: gathers the writes of a turn of the loop.
    """

    def __init__(
        self,
        name: str,
        parts: Mapping[str, CompiledBranch],
        given: _Arguments,
        *,
        context: CallContext,
        left: AttemptsLeft,
        asker: Asker,
        together: TurnWrites | None = None,
    ) -> None:
        self._name = name
        self._parts = parts
        self._given = given
        self._context = context
        self._left = left
        self._asker = asker
        self._together = together
        self._composition = Composition({name: part.step for name, part in parts.items()})
        self._calls: dict[str, StartedCall] = {}
        self._tasks: dict[str, asyncio.Task[BranchOutcome]] = {}
        self._bug: BaseException | None = None
        self._on_end: Callable[[], None] | None = None

    async def answer(self) -> Composed:
        """Call the branches, each as soon as it can be, and return the whole.

        Raises:
            SynchromeshError: a required branch has no answer; the other branches are cancelled.
        """
        ended = asyncio.get_running_loop().create_future()
        self.begin(lambda: None if ended.done() else ended.set_result(None))
        try:
            await ended
        finally:
            tasks = self.cancel()
            # Nobody is left to hear what they had to say.
            await asyncio.gather(*tasks, return_exceptions=True)
        return self.result()

    def begin(self, on_end: Callable[[], None]) -> None:
        """Call the branches, each as soon as it can be; `on_end` is told, once, maybe at once."""
        self._on_end = on_end
        self._start(self._composition.begin())

    def cancel(self) -> list[asyncio.Task[BranchOutcome]]:
        """Give up what still runs; return the tasks that need a moment to end."""
        self._on_end = None
        for call in list(self._calls.values()):
            call.cancel()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        return tasks

    def result(self) -> Composed:
        """Return the whole, once it has ended.

        Raises:
            SynchromeshError: a required branch has no answer.
        """
        composition, bug = self._composition, self._bug
        if bug is not None:
            self._bug = None  # it leads to this frame
            raise bug
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

    def _start(self, starts: list[Start]) -> None:
        # A branch whose arguments do not fit has ended at once, which may be what another needs.
        while starts:
            start, *starts = starts
            starts += self._branch(start)
        if self._bug is not None or self._composition.is_ended:
            on_end = self._on_end
            self.cancel()
            if on_end is not None:
                on_end()

    def _branch(self, start: Start) -> list[Start]:
        """Start a branch; return those that can start because it has ended at once."""
        name, part = start.name, self._parts[start.name]
        given = self._given[name]
        try:
            if given or start.arguments:
                arguments = part.operation.canonical(encode({**given, **start.arguments}))
            else:
                arguments = _bare(part.operation)
        except BadRequest as error:
            return self._composition.finish(name, BranchOutcome(BranchStatus.FAILED, error=error))
        if part.stand_in is None:
            call = self._asker.caller.start(
                Call(part.operation, arguments),
                partial(self._on_done, name),
                context=self._context,
                left=self._left,
                timeout_s=part.timeout_s,
                together=self._together,
            )
            if call is not None:
                self._calls[name] = call
                return []
        root = Root(self._context.span_id, self._left)
        asking = self._asked(root, part, name, arguments)
        task = self._tasks[name] = asyncio.get_running_loop().create_task(asking)
        task.add_done_callback(partial(self._on_asked, name))
        return []

    async def _asked(
        self, root: Root, part: CompiledBranch, name: str, arguments: bytes
    ) -> BranchOutcome:
        # A task has a context of its own.
        running.set(root)
        current_span.set(self._context)
        return await self._asker.ask(
            part.operation,
            arguments,
            context=self._context,
            place=(self._name, name),
            stand_in=part.stand_in,
            timeout_s=part.timeout_s,
        )

    def _on_done(self, name: str, value: object, error: BaseException | None) -> None:
        del self._calls[name]
        self._finish(name, value, error)

    def _on_asked(self, name: str, task: asyncio.Task[BranchOutcome]) -> None:
        del self._tasks[name]
        if task.cancelled():
            return
        error = task.exception()
        self._finish(name, task.result() if error is None else None, error)

    def _finish(self, name: str, value: object, error: BaseException | None) -> None:
        """Take what became of a branch, or the value of its call."""
        if self._on_end is None:
            return
        if error is not None and not isinstance(error, SynchromeshError):
            # A bug of ours is the whole's, whatever the branch is.
            self._bug = error
            self._start([])
            return
        outcome = value if isinstance(value, BranchOutcome) else outcome_of_call(value, error)
        self._start(self._composition.finish(name, outcome))


@lru_cache(maxsize=1024)
def _bare(operation: Operation[..., Any]) -> bytes:
    """Return the arguments of an operation that is given none. Raises BadRequest."""
    return operation.canonical(b"{}")


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
