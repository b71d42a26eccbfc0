"""The call tree at one handler: all the calls that it makes share its extra attempts (D2).

The number travels in the context as a plain value; what counts it down lives beside the handler
that runs, and is found by the handler's span. Work that outlives the handler (a saga, a message)
has a span of its own and so begins a new tree.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from synchromesh.context import CallContext
from synchromesh.resilience import AttemptsLeft

_running: ContextVar[tuple[str, AttemptsLeft] | None] = ContextVar(
    "synchromesh_call_tree", default=None
)


@contextmanager
def tree_of(context: CallContext) -> Iterator[AttemptsLeft]:
    """Let all calls that are made under this context share its extra attempts."""
    left = AttemptsLeft(context.attempts_left)
    token = _running.set((context.span_id, left))
    try:
        yield left
    finally:
        _running.reset(token)


def attempts_left(context: CallContext) -> AttemptsLeft:
    """Return the extra attempts of the handler whose context this is, else what it carries."""
    running = _running.get()
    if running is not None and running[0] == context.span_id:
        return running[1]
    return AttemptsLeft(context.attempts_left)
