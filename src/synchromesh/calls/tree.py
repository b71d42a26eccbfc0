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

running: ContextVar[tuple[str, AttemptsLeft] | None] = ContextVar(
    "synchromesh_call_tree", default=None
)
"""The span of the handler that runs in this context, and the extra attempts of its calls."""


@contextmanager
def tree_of(context: CallContext) -> Iterator[AttemptsLeft]:
    """Let all calls that are made under this context share its extra attempts."""
    left = AttemptsLeft(context.attempts_left)
    token = running.set((context.span_id, left))
    try:
        yield left
    finally:
        running.reset(token)


def attempts_left(context: CallContext) -> AttemptsLeft:
    """Return the extra attempts of the handler whose context this is, else what it carries."""
    here = running.get()
    if here is not None and here[0] == context.span_id:
        return here[1]
    return AttemptsLeft(context.attempts_left)
