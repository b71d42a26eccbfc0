"""What an error of an attempt means for a saga: was it run, and can a further attempt help?"""

from __future__ import annotations

from typing import Any

from synchromesh.codec import encode
from synchromesh.errors import (
    BadRequest,
    ConnectFailed,
    ContractError,
    Forbidden,
    ForeignAwait,
    InProgress,
    KeyReused,
    KeyUndone,
    NotExecuted,
    Rejection,
    SagaUndone,
    Shed,
    StoreError,
    SynchromeshError,
    UnknownOperation,
    readable,
    to_problem,
)
from synchromesh.saga.records import AttemptOutcome, AttemptResult

# Not a credential that has expired, as where the wall clock jumps: the next attempt has another.
_HOPELESS = (
    BadRequest,
    Forbidden,
    KeyReused,
    KeyUndone,
    ContractError,
)


def of_call(error: Exception) -> AttemptOutcome:
    """Return what a call that raised came to.

    Example:
        >>> of_call(Shed("full", retry_after_s=2.0)).result
        <AttemptResult.NOT_RUN: 'not run'>
    """
    # A saga of the callee that is undone has left nothing, and is as final under the key as a no.
    if isinstance(error, Rejection | SagaUndone):
        return _outcome(AttemptResult.REJECTED, error)
    if isinstance(error, _HOPELESS):
        return _outcome(AttemptResult.BROKEN, error)
    if isinstance(error, UnknownOperation):
        return _outcome(AttemptResult.NOT_OFFERED, error)
    # A call that is in progress under this key runs, or has run: its outcome is not known yet.
    if isinstance(error, NotExecuted | ConnectFailed) and not isinstance(error, InProgress):
        return _outcome(AttemptResult.NOT_RUN, error)
    return _outcome(AttemptResult.UNKNOWN, error)


def of_function(error: Exception, *, is_pivot: bool = False) -> AttemptOutcome:
    """Return what a function of the user that raised came to: only a rejection says what it did.

    What was certainly not sent is tried again without using up attempts, unless a later attempt
    would do no better. Of a pivot that is not believed: something may have been sent before, and
    what is undone then stays undone.

    Example:
        >>> of_function(ValueError("no such bucket")).result
        <AttemptResult.UNKNOWN: 'unknown'>
    """
    if isinstance(error, Rejection):
        return _outcome(AttemptResult.REJECTED, error)
    is_unsent = isinstance(error, NotExecuted | ConnectFailed)
    is_over = isinstance(error, (InProgress, UnknownOperation, *_HOPELESS))
    is_certain = is_unsent and not is_over and not is_pivot
    return _outcome(AttemptResult.NOT_RUN if is_certain else AttemptResult.UNKNOWN, error)


def of_result(name: str, error: BadRequest) -> AttemptOutcome:
    """Return what a function of the user came to that ran, and whose result cannot be recorded.

    The same code would end the same way, with its effect once more.
    """
    why = readable(f"function {name}: {unfit(error)}")
    return AttemptOutcome(AttemptResult.BROKEN, why=why, has_run=True)


def unfit(error: Exception) -> str:
    """Say what does not fit, for people who know that it is a result: Expected `int`, got `str`."""
    said = error.message if isinstance(error, BadRequest) else str(error)
    return said.removeprefix("the data does not fit: ")


def of_write(error: Exception) -> AttemptOutcome:
    """Return what a unit of work that raised came to: it was rolled back, whatever it was."""
    if isinstance(error, Rejection):
        return _outcome(AttemptResult.REJECTED, error)
    if isinstance(error, Shed):
        return _outcome(AttemptResult.NOT_RUN, error)
    if isinstance(error, StoreError) and not isinstance(error, ForeignAwait):
        return _outcome(AttemptResult.UNKNOWN, error)
    return _outcome(AttemptResult.BROKEN, error)


def of_write_undo(error: Exception) -> AttemptOutcome:
    """Return what an undo unit that raised came to; its own bug may be mended while it is tried."""
    outcome = of_write(error)
    is_bug = outcome.result is AttemptResult.BROKEN
    return _outcome(AttemptResult.UNKNOWN, error) if is_bug else outcome


def why(error: BaseException) -> str:
    """Say in a few words what went wrong; users' exception texts stay in the local log (T3).

    That may be the log of a service's process, or of an application that has its sagas alone.
    """
    if isinstance(error, SynchromeshError):
        return readable(f"{error.code}: {error.message}")
    return f"{type(error).__name__} was raised; its text is in the log of the process that ran it"


def problem_of(error: SynchromeshError) -> dict[str, Any]:
    """Return the problem that tells of an error, without details that cannot be stored."""
    problem = to_problem(error)
    if "details" in problem:
        try:
            encode(problem["details"])
        except BadRequest:
            problem["details"] = {}
    return problem


def _outcome(result: AttemptResult, error: Exception) -> AttemptOutcome:
    retry_after_s = getattr(error, "retry_after_s", None)
    problem = problem_of(error) if isinstance(error, SynchromeshError) else None
    return AttemptOutcome(
        result,
        why=why(error),
        problem=problem,
        retry_after_s=retry_after_s,
        is_declared=isinstance(error, Rejection),
    )
