"""The call tree at one handler: all the calls that it makes share its extra attempts (D2).

The number travels in the context as a plain value; what counts it down lives beside the handler
that runs, and is found by the handler's span. Work that outlives the handler (a saga, a message)
has a span of its own and so begins a new tree.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import msgspec

from synchromesh.context import CallContext
from synchromesh.resilience import AttemptsLeft


class Root(msgspec.Struct, eq=False):
    """The handler that runs in a context, by its span, and the extra attempts of its calls.

    Attributes:
        left: made by its first call: most handlers make none.
    """

    span_id: str
    left: AttemptsLeft | None = None

    @property
    def used(self) -> int:
        """How many extra attempts were spent below it."""
        return 0 if self.left is None else self.left.used


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


def attempts_left(context: CallContext) -> AttemptsLeft:
    """Return the extra attempts of the handler whose context this is, else what it carries."""
    root = running.get()
    if root is None or root.span_id != context.span_id:
        return AttemptsLeft(context.attempts_left)
    if root.left is None:
        root.left = AttemptsLeft(context.attempts_left)
    return root.left
