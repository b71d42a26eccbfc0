"""The call tree at one handler: all the calls that it makes share its extra attempts (D2).

The number travels in the context as a plain value; what counts it down lives beside the handler
that runs, and is found by the handler's span. Work that outlives the handler (a saga, a message)
has a span of its own and so begins a new tree.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import msgspec

from synchromesh.calls.contract import Operation
from synchromesh.context import CallContext
from synchromesh.resilience import AttemptsLeft, Limiter

T = TypeVar("T")


class Root(msgspec.Struct, eq=False):
    """The handler that runs in a context, by its span, and the extra attempts of its calls.

    While it waits for calls of its own it holds no slot of its operation's limiter: what it waits
    for says nothing about this service, and must not keep others out (see `away`). A callee in this
    process that answers without a wait keeps nobody out either: for that nobody is away.

    Attributes:
        left: made by its first call: most handlers make none.
        limiter: of its operation; None once it has ended: it holds its slot if it is not away.
        away: how many of its calls are under way; `away_s`: how long there was one, in all.
        since_s: when it went away.
        released: what to give its reply to, where its caller waits for it in this process.
    """

    span_id: str
    left: AttemptsLeft | None = None
    limiter: Limiter | None = None
    away: int = 0
    away_s: float = 0.0
    since_s: float = 0.0
    released: Callable[[Any], None] | None = None

    @property
    def used(self) -> int:
        """How many extra attempts were spent below it."""
        return 0 if self.left is None else self.left.used

    def leave(self, now: float) -> None:
        """Begin a call."""
        self.away += 1
        if self.away == 1 and self.limiter is not None:
            self.since_s = now
            self.limiter.release()

    def come_back(self, now: float) -> None:
        """End a call; the slot is taken whether there is one or not, for the work has begun."""
        self.away -= 1
        if not self.away and self.limiter is not None:
            self.away_s += now - self.since_s
            self.limiter.in_flight += 1

    def own_s(self, began_s: float, now: float) -> float:
        """Return how long it has worked itself since it began."""
        away_s = self.away_s + (now - self.since_s if self.away else 0.0)
        return now - began_s - away_s


class Incoming(Root, kw_only=True, eq=False):
    """A call as its handler gets it.

    Attributes:
        operation: what is called.
        arguments: in canonical form; `operation.parse` checks and decodes them.
        context: caller and principal are verified; `span_id` is the span that handles the call.
    """

    operation: Operation[..., Any]
    arguments: bytes
    context: CallContext


running: ContextVar[Root | None] = ContextVar("synchromesh_call_tree", default=None)


@contextmanager
def tree_of(context: CallContext) -> Iterator[AttemptsLeft]:
    """Let all calls that are made under this context share its extra attempts."""
    left = AttemptsLeft(context.attempts_left)
    token = running.set(Root(context.span_id, left))
    try:
        yield left
    finally:
        running.reset(token)


async def away(root: Root | None, called: Awaitable[T], clock: Callable[[], float]) -> T:
    """Wait for a call that a handler makes, which is away meanwhile; None: it begins a tree."""
    if root is None:
        return await called
    root.leave(clock())
    try:
        return await called
    finally:
        root.come_back(clock())


def attempts_left(context: CallContext) -> AttemptsLeft:
    """Return the extra attempts of the handler whose context this is, else what it carries."""
    root = running.get()
    if root is None or root.span_id != context.span_id:
        return AttemptsLeft(context.attempts_left)
    if root.left is None:
        root.left = AttemptsLeft(context.attempts_left)
    return root.left
