"""Runs an aggregate: asks the machine what can start, calls it, and puts the answers together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

import msgspec

from synchromesh.calls import Operation
from synchromesh.calls.started import Done, StartedCall
from synchromesh.calls.texts import from_text
from synchromesh.calls.tree import Root, running
from synchromesh.clock import loop_now
from synchromesh.codec import encode
from synchromesh.context import CallContext
from synchromesh.errors import BadRequest, DeadlineExceeded, Rejection, SynchromeshError
from synchromesh.gateway.asking import Asker, outcome_of_error
from synchromesh.gateway.branches import CompiledBranch
from synchromesh.gateway.composition import BranchOutcome, BranchStatus, Composition, Start
from synchromesh.gateway.picks import Pick, shown
from synchromesh.gateway.problems import outside
from synchromesh.http.together import TurnWrites
from synchromesh.resilience import AttemptsLeft
from synchromesh.telemetry import current_span

_Arguments: TypeAlias = Mapping[str, Mapping[str, object]]

# A branch, or an element of the array that it is over.
_Asked: TypeAlias = str | tuple[str, int]

_NOTHING: Final[Mapping[str, object]] = {}
# Of nearly every branch; a global is found sooner than a member of its class.
_OK: Final = BranchStatus.OK
_OK_MARK: Final = {"status": _OK.value}


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
    # Of a path without a place nothing is given to any of them.
    for name, part in parts.items() if places else ():
        hints = part.operation.shape.hints
        given[name] = {}
        for parameter, place in part.from_path.items():
            try:
                value = from_text(unquote(places[place], errors="strict"), hints[parameter])
            except (msgspec.ValidationError, UnicodeDecodeError) as error:
                refused = BadRequest(f"{place!r} in the path: {error}")
                refused.mistakes = ({"detail": str(error), "in": "path", "name": place},)
                raise refused from error
            given[name][parameter] = value
    return given


@dataclass(frozen=True, slots=True)
class AggregatePlan:
    """All that is the same for every request of one aggregate.

    Attributes:
        name: tells its kept answers from another one's.
        parts: its branches.
        asker: asks the operations.
        is_flat: no branch needs another's answer.
        picks: of the branches of which some fields are shown, which.
    """

    name: str
    parts: Mapping[str, CompiledBranch]
    asker: Asker
    is_flat: bool = field(init=False)
    picks: Mapping[str, Pick] = field(init=False)

    def __post_init__(self) -> None:
        is_flat = not any(part.step.needs for part in self.parts.values())
        picks = {name: part.pick for name, part in self.parts.items() if part.pick is not None}
        object.__setattr__(self, "is_flat", is_flat)
        object.__setattr__(self, "picks", picks)


class AggregateRun:
    """One aggregate under way: its branches are calls that are told by callbacks.

    A branch that has a fallback, or whose call does not go straight through, is a task.

    Args:
        plan: of the aggregate.
        given: what the path gives to its branches.
        context: of the request; its deadline bounds every branch.
        left: the extra attempts of the request, which its branches share.
        together: gathers the writes of a turn of the loop.

    Attributes:
        outcomes: what became of the branches so far.
        took_s: how long those took that were begun, each from then on.
    """

    _bug: BaseException | None = None
    _failed = ""
    _on_end: Callable[[], None] | None = None
    # Only where a branch waits for another is there anything to decide.
    _composition: Composition | None = None

    def __init__(
        self,
        plan: AggregatePlan,
        given: _Arguments,
        *,
        context: CallContext,
        left: AttemptsLeft,
        together: TurnWrites | None = None,
    ) -> None:
        self._plan = plan
        self._parts = plan.parts
        self._given = given
        self._context = context
        self._left = left
        self._together = together
        self.outcomes: dict[str, BranchOutcome] = {}
        if not plan.is_flat:
            self._composition = Composition({name: part.step for name, part in plan.parts.items()})
            self.outcomes = self._composition.outcomes
        self._calls: dict[_Asked, StartedCall] = {}
        self._tasks: dict[_Asked, asyncio.Task[BranchOutcome]] = {}
        # When the branches over an array are late; they have one time for all elements.
        self._due_s: dict[str, float] = {}
        self.took_s: dict[str, float] = {}
        self._began_s = 0.0
        # Where a branch waits for another each begins when it can.
        self._begins_s: dict[str, float] = {}

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
        self._began_s = loop_now()
        if self._composition is not None:
            self._start(self._composition.begin())
            return
        for name in self._parts:
            self._branch(name, _NOTHING)
        self._look()

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
        bug, self._bug = self._bug, None
        if bug is not None:
            try:
                raise bug
            finally:
                del bug  # it leads to this frame
        if self._failed:
            error = self.outcomes[self._failed].error
            assert error is not None, "a required branch is neither skipped nor absent by itself"
            raise error
        data: dict[str, object] = {}
        marks: dict[str, object] = {}
        partial: list[str] = []
        for name in self._parts:
            outcome = self.outcomes[name]
            data[name] = outcome.value
            if outcome.status is _OK:
                marks[name] = _OK_MARK
            else:
                marks[name] = _mark(outcome)
                if outcome.is_partial:
                    partial.append(name)
        for name, pick in self._plan.picks.items():
            data[name] = shown(pick, data[name])
        return Composed(encode({"data": data, "branches": marks}), tuple(partial))

    def _start(self, starts: list[Start]) -> None:
        # A branch whose arguments do not fit has ended at once, which may be what another needs.
        while starts and not self._failed:
            start, *starts = starts
            starts += self._branch(start.name, start.arguments, start.index)
        self._look()

    def _look(self) -> None:
        """Tell of the end, once there is nothing more to wait for."""
        is_over = len(self.outcomes) == len(self._parts)
        if is_over or self._failed or self._bug is not None:
            on_end = self._on_end
            # Of a branch that has failed by one element others may still run.
            if self._calls or self._tasks:
                self.cancel()
            self._on_end = None
            if on_end is not None:
                on_end()

    def _branch(self, name: str, found: Mapping[str, object], index: int = -1) -> list[Start]:
        """Start a branch with what was found for it; return what can start if it ended at once.

        With an `index` it is for that element of the array that the branch is over.
        """
        part, given = self._parts[name], self._given.get(name)
        if self._composition is not None:
            self._begins_s.setdefault(name, loop_now())
        operation, timeout_s = part.operation, part.timeout_s
        try:
            if given or found:
                arguments = operation.canonical(encode({**(given or {}), **found}))
            else:
                arguments = _bare(operation)
        except BadRequest as error:
            return self._conclude(name, BranchOutcome(BranchStatus.FAILED, error=error), index)
        key: _Asked = name
        done: Done = partial(self._on_done, name)
        if index >= 0 or part.empty is not None:
            if index >= 0:
                key = (name, index)
            done = partial(self._on_value, key)
            if index >= 0 and timeout_s is not None:
                timeout_s = self._left_s(name, timeout_s)
                if timeout_s <= 0:
                    late = DeadlineExceeded(f"the time of {name} was over; nothing was sent")
                    return self._conclude(
                        name, BranchOutcome(BranchStatus.FAILED, error=late), index
                    )
        if part.stand_in is None:
            call = self._plan.asker.prepared(operation).start(
                arguments,
                done,
                context=self._context,
                left=self._left,
                timeout_s=timeout_s,
                together=self._together,
            )
            if call is not None:
                self._calls[key] = call
                return []
        root = Root(self._context.span_id, self._left)
        asking = self._asked(root, name, arguments, timeout_s)
        task = self._tasks[key] = asyncio.get_running_loop().create_task(asking)
        task.add_done_callback(partial(self._on_asked, key))
        return []

    def _left_s(self, name: str, timeout_s: float) -> float:
        """Return how long a branch over an array still has, from its first element on."""
        now = loop_now()
        return self._due_s.setdefault(name, now + timeout_s) - now

    async def _asked(
        self, root: Root, name: str, arguments: bytes, timeout_s: float | None
    ) -> BranchOutcome:
        part = self._parts[name]
        # A task has a context of its own.
        running.set(root)
        current_span.set(self._context)
        return await self._plan.asker.ask(
            part.operation,
            arguments,
            context=self._context,
            place=(self._plan.name, name),
            stand_in=part.stand_in,
            timeout_s=timeout_s,
        )

    def _on_done(self, name: str, value: object, error: BaseException | None) -> None:
        del self._calls[name]
        if error is None and self._composition is None:
            # What nearly every branch comes to, without the frames of the rest.
            self.outcomes[name] = BranchOutcome(_OK, value)
            self.took_s[name] = loop_now() - self._began_s
            if len(self.outcomes) == len(self._parts):
                self._look()
        elif error is None:
            self._finish(name, BranchOutcome(_OK, value))
        elif isinstance(error, SynchromeshError):
            self._finish(name, outcome_of_error(error))
        else:
            self._fail(error)

    def _on_value(self, asked: _Asked, value: object, error: BaseException | None) -> None:
        """Take the answer for an element, or one that may be without content."""
        del self._calls[asked]
        if error is None:
            self._end(asked, BranchOutcome(_OK, value))
        elif isinstance(error, SynchromeshError):
            self._end(asked, outcome_of_error(error))
        else:
            self._fail(error)

    def _on_asked(self, asked: _Asked, task: asyncio.Task[BranchOutcome]) -> None:
        del self._tasks[asked]
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self._end(asked, task.result())
        else:
            self._fail(error)

    def _end(self, asked: _Asked, outcome: BranchOutcome) -> None:
        name, index = (asked, -1) if isinstance(asked, str) else asked
        self._finish(name, self._parts[name].filled(outcome), index)

    def _finish(self, name: str, outcome: BranchOutcome, index: int = -1) -> None:
        """Take what became of a branch, or of its call for an element."""
        if self._on_end is None:
            return
        starts = self._conclude(name, outcome, index)
        if starts:
            self._start(starts)
        else:
            self._look()

    def _conclude(self, name: str, outcome: BranchOutcome, index: int = -1) -> list[Start]:
        """Keep what became of a branch; return those that can start because of it."""
        if self._composition is not None:
            starts = self._composition.finish(name, outcome, index)
            self._failed = self._composition.failed
            if name in self.outcomes:
                self.took_s[name] = loop_now() - self._begins_s[name]
            return starts
        self.outcomes[name] = outcome
        self.took_s[name] = loop_now() - self._began_s
        if (
            outcome.status is not _OK
            and not outcome.has_data
            and self._parts[name].step.is_required
            and not self._failed
        ):
            self._failed = name
        return []

    def _fail(self, error: BaseException) -> None:
        """Take a bug of ours, which is the whole's, whatever the branch is."""
        if self._on_end is not None:
            self._bug = error
            self._look()


@lru_cache(maxsize=1024)
def _bare(operation: Operation[..., Any]) -> bytes:
    """Return the arguments of an operation that is given none. Raises BadRequest."""
    return operation.canonical(b"{}")


def _mark(outcome: BranchOutcome) -> dict[str, object]:
    mark: dict[str, object] = {"status": outcome.status.value}
    if outcome.age_s is not None:
        mark["age_s"] = round(outcome.age_s, 3)
    if outcome.error is not None:
        told = outside(outcome.error, is_read=True)
        mark["code"] = told.code
        if isinstance(told, Rejection):
            mark["detail"], mark["details"] = told.message, told.details
    if outcome.because:
        mark["because"] = outcome.because
    if outcome.status is BranchStatus.PARTIAL:
        mark["elements"] = [
            {"index": index, **_mark(each)}
            for index, each in enumerate(outcome.elements)
            if each.is_partial
        ]
        if outcome.count is not None:
            mark["count"] = outcome.count
    return mark
