"""A saga function at work: driven by hand, so that nothing but its steps can happen in it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from synchromesh.errors import ContractError
from synchromesh.saga.saga import Saga
from synchromesh.saga.steps import Step, StepRequest


class FunctionReturned(msgspec.Struct, frozen=True):
    """The function came to its end."""

    value: object


class FunctionRaised(msgspec.Struct, frozen=True):
    """The function raised an exception of its own."""

    error: Exception


class ForeignAwaited(msgspec.Struct, frozen=True):
    """The function awaited something else than a step of its saga."""

    what: str


class Function:
    """Drives the coroutine of a saga from one request for steps to the next.

    It is not a task: user code cannot be cancelled midway, and cannot wait for time, network or
    chance, which would be other ones when it is run again from its records.
    """

    __slots__ = ("_begin", "_coroutine", "_has_ended", "_saga")

    def __init__(self, saga: Saga, begin: Callable[[], Coroutine[Any, Any, object]]) -> None:
        self._saga = saga
        self._begin = begin
        self._coroutine: Coroutine[Any, Any, object] | None = None
        self._has_ended = False

    def resume(
        self, results: tuple[object, ...] | None
    ) -> StepRequest | FunctionReturned | FunctionRaised | ForeignAwaited:
        """Give the function the results it waits for, None at first; return what it wants next."""
        try:
            if self._coroutine is None:
                self._coroutine = self._begin()
            asked = self._coroutine.send(results)
        except StopIteration as stop:
            self._has_ended = True
            forgotten = next(iter(self._saga.unawaited), None)
            if forgotten is not None:
                # It would look done, and was never tried: Python warns of coroutines alone.
                return FunctionRaised(_never_awaited(forgotten))
            return FunctionReturned(stop.value)
        except Exception as error:  # noqa: BLE001 - whatever users raise is judged by the machine
            return FunctionRaised(error)
        if isinstance(asked, StepRequest):
            return asked
        return ForeignAwaited(type(asked).__name__)

    def close(self) -> None:
        """End the function where it stands; what its `finally:` asks for raises SagaGone (S11)."""
        self._saga.is_gone = True
        if self._coroutine is not None and not self._has_ended:
            # A `finally:` may raise or await something foreign; nobody is left to be told.
            with contextlib.suppress(Exception):
                self._coroutine.close()


def _never_awaited(step: Step[Any]) -> ContractError:
    return ContractError(
        f"step {step.ask.name!r} was described and never awaited, so it was not tried: await it, "
        "or await s.all(...) of it"
    )
