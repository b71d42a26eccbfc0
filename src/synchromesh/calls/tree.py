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
from synchromesh.resilience import AttemptsLeft, Limiter, LimitOptions

# So many handlers of a service may wait for their calls beyond those that run; they take memory.
AWAY_MAX = 1000


class Places(Limiter):
    """Bounds how many handlers of a service run at once.

    Attributes:
        away: how many wait for calls of their own, and hold no place meanwhile.
    """

    __slots__ = ("away",)

    def __init__(self, options: LimitOptions, *, name: str) -> None:
        super().__init__(options, name=name)
        self.away = 0


T = TypeVar("T")


class Root(msgspec.Struct, eq=False):
    """The handler that runs in a context, by its span, and the extra attempts of its calls.

    While it waits for calls of its own it holds no slot of its operation's limiter and no place of
    its service: what it waits for says nothing about this service, must not keep others out (see
    `away`), and may be this service, called by itself or by those that it calls. A callee in this
    process that answers without a wait keeps nobody out either: for that nobody is away.

    Attributes:
        left: made by its first call: most handlers make none.
        limiter: of its operation; None once it has ended: it holds its slot if it is not away.
        places: of its service; `is_out`: it holds none of them now.
        away: how many of its calls are under way; `away_s`: how long there was one, in all.
        since_s: when it went away.
        released: what to give its reply to, where its caller waits for it in this process.
    """

    span_id: str
    left: AttemptsLeft | None = None
    limiter: Limiter | None = None
    places: Places | None = None
    is_out: bool = False
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
        limiter, places = self.limiter, self.places
        if self.away == 1 and limiter is not None:
            self.since_s = now
            # As `Limiter.release` twice, without its frames.
            limiter.in_flight -= 1
            if limiter.waiting:
                limiter.hand_over()
            if places is not None and places.away < AWAY_MAX:
                self.is_out = True
                places.away += 1
                places.in_flight -= 1
                if places.waiting:
                    places.hand_over()

    def come_back(self, now: float) -> None:
        """End a call; the slot is taken whether there is one or not, for the work has begun."""
        self.away -= 1
        if not self.away and self.limiter is not None:
            self.away_s += now - self.since_s
            self.limiter.in_flight += 1
            if self.is_out and self.places is not None:
                self.is_out = False
                self.places.away -= 1
                self.places.in_flight += 1

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


class Leaving:
    """Is awaited for a call, and says by itself that its caller is away meanwhile.

    Attributes:
        caller: the handler that waits; None: the call begins a tree.
    """

    __slots__ = ()
    caller: Root | None


def away(root: Root | None, called: Awaitable[T], clock: Callable[[], float]) -> Awaitable[T]:
    """Return what waits for a call that a handler makes, which is away meanwhile.

    None: the call begins a tree, and nobody is away.
    """
    if root is None:
        return called
    if isinstance(called, Leaving):
        called.caller = root
        return called
    return _away(root, called, clock)


async def _away(root: Root, called: Awaitable[T], clock: Callable[[], float]) -> T:
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
