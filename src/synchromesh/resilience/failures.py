"""What of a function's outcomes is a failure, where the function's own user says it.

The layers know one sign of failure, an exception, and one of health, an answer. So a result that is
a failure goes through them as an exception, and an exception that is none goes through them as an
answer; both are what they were again outside.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

from synchromesh.errors import ConfigError, SynchromeshError

T = TypeVar("T")
P = ParamSpec("P")
# Told an exception or a result.
Predicate = Callable[[Any], bool]


class _FailedResult(Exception):
    """Carries a result that is a failure."""

    def __init__(self, result: object) -> None:
        super().__init__("the function returned what counts as a failure")
        self.result = result


class _NoFailure(NamedTuple):
    """Carries an exception that is no failure."""

    error: Exception


def judged(fn: Callable[P, Awaitable[T]], is_failure: Predicate) -> Callable[P, Awaitable[object]]:
    """Return a function for the layers to call: it fails where `fn` fails by `is_failure`."""

    async def judge(*args: P.args, **kwargs: P.kwargs) -> object:
        try:
            result = await fn(*args, **kwargs)
        except Exception as error:
            if counts(error, is_failure):
                raise
            return _NoFailure(error)
        return _result(result, is_failure)

    return judge


def judged_sync(fn: Callable[P, T], is_failure: Predicate) -> Callable[P, object]:
    """Return what `judged` does for a sync function."""

    def judge(*args: P.args, **kwargs: P.kwargs) -> object:
        try:
            result = fn(*args, **kwargs)
        except Exception as error:
            if counts(error, is_failure):
                raise
            return _NoFailure(error)
        return _result(result, is_failure)

    return judge


def restored(guarded: Callable[P, Awaitable[object]]) -> Callable[P, Awaitable[object]]:
    """Return the function that gives the outcomes of what is `judged` as they were."""

    async def restore(*args: P.args, **kwargs: P.kwargs) -> object:
        try:
            answer = await guarded(*args, **kwargs)
        except _FailedResult as failed:
            return failed.result
        try:
            return _raise_own(answer)
        finally:
            del answer  # an error in it has this frame in its traceback: kept, it would be a cycle

    return restore


def restored_sync(guarded: Callable[P, object]) -> Callable[P, object]:
    """Return what `restored` does for a sync function."""

    def restore(*args: P.args, **kwargs: P.kwargs) -> object:
        try:
            answer = guarded(*args, **kwargs)
        except _FailedResult as failed:
            return failed.result
        try:
            return _raise_own(answer)
        finally:
            del answer  # an error in it has this frame in its traceback: kept, it would be a cycle

    return restore


def counts(error: BaseException, is_failure: Predicate) -> bool:
    """Say whether an exception goes through the layers as one; ours say themselves what they are.

    What is no `Exception`, such as a cancellation, says nothing of the callee.
    """
    is_own = isinstance(error, Exception) and not isinstance(error, SynchromeshError)
    return not is_own or is_failure(error)


def outcome_of(error: Exception) -> object:
    """Return what the function itself raised or returned."""
    return error.result if isinstance(error, _FailedResult) else error


def refuse_unasked(option: str, predicate: object) -> None:
    """Refuse a predicate that could not be asked.

    Raises:
        ConfigError: it is no plain function.
    """
    if predicate is None:
        return
    if not callable(predicate):
        raise ConfigError(f"{option} is {predicate!r}; make it a function")
    if is_async(predicate):
        raise ConfigError(f"{option} is an async function, and is asked at once; make it a def")


def is_async(fn: object) -> bool:
    """Say whether what is called is to be awaited."""
    # An object that is called is as async as its method.
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(
        getattr(fn, "__call__", None)  # noqa: B004 - not whether there is one, but of what kind
    )


def _result(result: object, is_failure: Predicate) -> object:
    if is_failure(result):
        raise _FailedResult(result)
    return result


def _raise_own(answer: object) -> object:
    if not isinstance(answer, _NoFailure):
        return answer
    try:
        raise answer.error
    finally:
        del answer
