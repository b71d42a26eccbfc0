"""Errors as clients see them: their code and status, without internals (G6).

A declared rejection is an answer and passes whole. Of any other error the class counts: its text
may name instances, addresses and statements, and stays in the log, where the trace id leads.
"""

from __future__ import annotations

from typing import Any, Final

from synchromesh.errors import (
    BadRequest,
    CallError,
    CircuitOpen,
    ConnectFailed,
    ContractMismatch,
    DeadlineExceeded,
    DownstreamFailed,
    Forbidden,
    InProgress,
    KeyReused,
    KeyUndone,
    NoInstance,
    RateLimited,
    Rejection,
    RemoteFailed,
    SagaConflict,
    SagaError,
    SagaLocked,
    SagaUndone,
    Shed,
    SynchromeshError,
    TimedOut,
    TooManyElements,
    UnknownSaga,
    VersionConflict,
    to_problem,
)

_BUSY = "a service that is needed for this takes no requests at the moment; try again soon"
_FAILED = "a service that is needed for this failed; the trace id leads to the reason"

# The nearest class of an error decides; what has none is a failure of our side. Left out on purpose
# is what would be mistaken for a word about the client's own request: a hop that was not signed
# (401), an operation that the service does not have (404).
_WORDS: dict[type[SynchromeshError], str] = {
    BadRequest: "the service did not accept the arguments",
    CallError: _FAILED,
    CircuitOpen: _BUSY,
    ConnectFailed: _BUSY,
    ContractMismatch: _FAILED,
    DeadlineExceeded: "there was not enough time to answer; nothing was done, try again",
    DownstreamFailed: _FAILED,
    Forbidden: "the service does not allow this",
    InProgress: "a request under this idempotency key is still under way; ask again soon",
    KeyReused: "the idempotency key was used with another request; send a new one",
    KeyUndone: "what this idempotency key stands for has been undone; send a new one",
    NoInstance: _BUSY,
    RateLimited: "the service takes no more of these requests for now; try again later",
    RemoteFailed: _FAILED,
    SagaConflict: "the id belongs to another request; send a new one",
    SagaError: _FAILED,
    SagaLocked: "another request about the same is under way; try again soon",
    SagaUndone: "the request was undone for a technical reason: nothing of it is left, and asking "
    "again under this idempotency key or id changes nothing; send a new one. The trace id leads to "
    "the reason",
    Shed: _BUSY,
    TimedOut: "no answer came in time and it is not known what was done; ask again under the same "
    "idempotency key",
    TooManyElements: "there are more elements than can be asked for",
    UnknownSaga: "there is nothing under this id",
    VersionConflict: "what this is about was changed meanwhile; look at it again and ask anew",
}

# What only something that changes can come to.
_OF_CHANGES: Final = frozenset({
    InProgress, KeyReused, KeyUndone, SagaConflict, SagaLocked, SagaUndone, VersionConflict,
})  # fmt: skip

# What changes nothing needs no key, and nothing is left to be found out.
_LATE_READ = "no answer came in time; nothing is changed by asking, try again"


def outside(error: BaseException, *, is_read: bool = False) -> SynchromeshError:
    """Return the public form of an internal error, of a request that changes nothing or of another.

    Example:
        >>> outside(CircuitOpen("edge gateway -> billing, instance 10.0.0.7")).message
        'a service that is needed for this takes no requests at the moment; try again soon'
        >>> outside(ValueError("select * from secrets")).code
        'remote_failed'
    """
    if isinstance(error, Rejection):
        return error
    for cls in type(error).__mro__:
        words = _LATE_READ if is_read and cls is TimedOut else _WORDS.get(cls)
        if words is not None and issubclass(cls, SynchromeshError):
            return _public(cls, words, error)
    if isinstance(error, SynchromeshError) and error.status < 500:
        return DownstreamFailed(_FAILED, cause_code="call_failed")
    return RemoteFailed(_FAILED)


def codes_by_status() -> dict[int, dict[str, str]]:
    """Return what services may come to, as the outside is told: by status, each code in words."""
    found: dict[int, dict[str, str]] = {}
    for cls, words in _WORDS.items():
        found.setdefault(cls.status, {})[cls.code] = words
    return found


def statuses(*, is_read: bool) -> tuple[int, ...]:
    """Return the statuses of what a service may come to, declared rejections aside."""
    return tuple(sorted({cls.status for cls in _WORDS if not (is_read and cls in _OF_CHANGES)}))


def problem_of(error: SynchromeshError, *, trace_id: str) -> dict[str, Any]:
    """Render a public error as an RFC 9457 problem, with its trace if any."""
    problem = to_problem(error)
    # How often we tried, and what failed where, is ours.
    for name in ("attempts_used", "cause_code"):
        problem.pop(name, None)
    if isinstance(error, TimedOut) and error.limit:
        problem["limit"] = error.limit
    return problem | {"trace_id": trace_id} if trace_id else problem


def _public(cls: type[SynchromeshError], words: str, error: BaseException) -> SynchromeshError:
    public = cls.__new__(cls)
    if isinstance(public, CallError):
        CallError.__init__(public, words)
        if isinstance(public, DownstreamFailed):
            public.cause_code = "call_failed"
    else:
        SynchromeshError.__init__(public, words)
    if isinstance(error, SynchromeshError):
        public.retry_after_s, public.is_final = error.retry_after_s, error.is_final
    return public
