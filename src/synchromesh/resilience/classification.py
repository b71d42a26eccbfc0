"""Classification of errors: the callee's failure or not, retryable or not; tables and no time."""

from __future__ import annotations

from enum import Enum

from synchromesh.errors import (
    BadRequest,
    CallError,
    CircuitOpen,
    ConfigError,
    ConnectFailed,
    ConnectionLost,
    ContractError,
    ContractMismatch,
    DiscoveryError,
    DownstreamFailed,
    Forbidden,
    InProgress,
    KeyReused,
    KeyUndone,
    MissingExtra,
    NotExecuted,
    Rejection,
    RemoteFailed,
    SagaError,
    SynchromeshError,
    TimedOut,
    Unauthenticated,
    UnknownOperation,
    VersionConflict,
)


class Classification(Enum):
    """Names what an outcome says about the health of the callee."""

    SUCCESS = "success"
    FAILURE = "failure"
    NEUTRAL = "neutral"


# The nearest class of an error decides. B5: what the callee answered is a success though it is a
# no; what says nothing about the callee (overload, another's failure, no time) is neutral.
CLASSIFICATIONS: dict[type[BaseException], Classification] = {
    Rejection: Classification.SUCCESS,
    BadRequest: Classification.SUCCESS,
    UnknownOperation: Classification.SUCCESS,
    Unauthenticated: Classification.SUCCESS,
    Forbidden: Classification.SUCCESS,
    KeyReused: Classification.SUCCESS,
    KeyUndone: Classification.SUCCESS,
    SagaError: Classification.SUCCESS,
    VersionConflict: Classification.SUCCESS,
    NotExecuted: Classification.NEUTRAL,
    DownstreamFailed: Classification.NEUTRAL,
    DiscoveryError: Classification.NEUTRAL,
    ConfigError: Classification.NEUTRAL,
    ContractError: Classification.NEUTRAL,
    ContractMismatch: Classification.NEUTRAL,
    MissingExtra: Classification.NEUTRAL,
    CallError: Classification.FAILURE,
    Exception: Classification.FAILURE,
    # Cancellation, KeyboardInterrupt and the like are the caller's.
    BaseException: Classification.NEUTRAL,
}

# Their outcome is unknown: tried again only where doing it twice does no harm (D3).
UNKNOWN_OUTCOME = (TimedOut, ConnectionLost, RemoteFailed, DownstreamFailed)


def classify(error: BaseException | None, *, had_enough_time: bool) -> Classification:
    """Classify an outcome as a success or failure of the callee, or neither; None is an answer.

    A `TimedOut` is a failure only if the callee `had_enough_time`: the edge's own timeout, or more
    than its usual answer takes; not where the caller was impatient. What is not `is_callees` says
    nothing about it.

    Example:
        >>> classify(TimedOut("late"), had_enough_time=False).value
        'neutral'
        >>> classify(BadRequest("qty is missing"), had_enough_time=True).value
        'success'
    """
    if error is None:
        return Classification.SUCCESS
    if isinstance(error, TimedOut) and not had_enough_time:
        return Classification.NEUTRAL
    if isinstance(error, CallError) and not error.is_callees:
        return Classification.NEUTRAL
    return next(CLASSIFICATIONS[cls] for cls in type(error).__mro__ if cls in CLASSIFICATIONS)


def may_retry(error: Exception, *, is_retryable_unknown: bool) -> bool:
    """Return whether the same call may be retried after `error`.

    Always after what was certainly not run; after an unknown outcome, or an error that is not
    Synchromesh's own, only with `is_retryable_unknown`: queries, and commands with a key. Never
    after a `Rejection`, nor after what the callee says is final, nor while a breaker is open: who
    waits for it holds what it was opened to free (B2).
    """
    if isinstance(error, Rejection | CircuitOpen):
        return False
    if isinstance(error, SynchromeshError) and error.is_final:
        return False
    if isinstance(error, SynchromeshError) and not isinstance(error, UNKNOWN_OUTCOME):
        return error.is_retry_safe
    return is_retryable_unknown


def may_have_run(error: Exception) -> bool:
    """Return whether the call may have an effect, or yet get one, after `error`.

    `InProgress` refuses its own attempt and proves that another one under the key runs.
    """
    if isinstance(error, SynchromeshError):
        return isinstance(error, (*UNKNOWN_OUTCOME, InProgress))
    return True


def is_certainly_not_run(error: Exception) -> bool:
    """Return whether `error` proves only that its own attempt was not run.

    `KeyUndone` proves more, that no attempt under its key has an effect, so it is not among them.
    """
    return isinstance(error, NotExecuted | ConnectFailed) and not isinstance(error, KeyUndone)
