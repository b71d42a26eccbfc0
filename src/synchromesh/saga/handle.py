"""The handle of one run: wait for its result, or cancel it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import msgspec

from synchromesh.clock import loop_now
from synchromesh.eager import EagerFuture
from synchromesh.errors import Rejection, SagaUndone, Stuck, from_problem
from synchromesh.saga.records import SagaCause, SagaStatus
from synchromesh.wheel import Deadline

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Conclusion(msgspec.Struct, frozen=True):
    """How a run ended: its result's JSON where it completed, else why it did not."""

    status: SagaStatus
    result: bytes
    cause: SagaCause


class RunHost(Protocol):
    """Knows the runs of a service; the engine does."""

    async def conclusion(self, id: str, within_s: float) -> Conclusion | None:  # noqa: A002
        """Wait until a run has ended, at most so long; None where it has not."""
        ...

    async def cancel(self, id: str, reason: str) -> None:  # noqa: A002
        """Turn a run to compensating."""
        ...


class SagaRun(Generic[R_co]):
    """Handles one saga run: wait for its result, or cancel it; the run goes on by itself.

    Attributes:
        id: the run's id, under which it can be asked for again.
        due_s: when the handler that started it has to answer, on the loop's clock; None for never.

    Example:
        >>> from synchromesh.saga import Saga
        >>> from synchromesh.service import Context, Service
        >>> orders = Service("orders")
        >>> @orders.saga(str, deadline="10m")
        ... async def place_order(s: Saga, sku: str) -> str:
        ...     return sku
        >>> async def place(ctx: Context, order_id: str, sku: str) -> str:
        ...     run = await place_order.start(ctx, sku, id=order_id)  # durable now
        ...     return await run.result(within_s=1.0) or "accepted"
    """

    __slots__ = ("_host", "_load", "due_s", "id")

    def __init__(self, id: str, host: RunHost, load: Callable[[bytes], R_co]) -> None:  # noqa: A002
        self.id = id
        self.due_s: float | None = None
        self._host = host
        self._load = load

    async def result(self, within_s: float) -> R_co | None:
        """Return the result once the run has completed; None where it has not after `within_s`.

        It is None sooner where the handler's caller would not wait so long: a moment before that
        one gives up, so that there is time to answer what is known. A run that is slow is then no
        late answer, which would count as a failure of this service.

        Raises:
            Rejection: the business no that turned the run, once it is undone.
            SagaUndone: it was undone for a technical reason, or cancelled.
            Stuck: it needs a person.
            SagaGone: this process gave the run up; it goes on elsewhere or after a restart.
        """
        if self.due_s is not None:
            within_s = min(within_s, max(0.0, self.due_s - loop_now()))
        ended = await self._host.conclusion(self.id, within_s)
        return None if ended is None else result_of(self.id, ended, self._load)

    async def cancel(self, reason: str) -> None:
        """Turn the run: what it did is undone. Returns once that is durable (S9).

        A run that is being undone, or was, is left as it is.

        Raises:
            SagaError: its pivot was tried, or it has completed or is stuck: there is no way back.
            SagaGone: this process does not run it.
        """
        await self._host.cancel(self.id, reason)

    def __repr__(self) -> str:
        return f"<SagaRun {self.id}>"


def result_of(id: str, ended: Conclusion, load: Callable[[bytes], R]) -> R:  # noqa: A002
    """Return the result of a run that has completed; raises as `SagaRun.result` where it has not.

    Args:
        load: reads the result's JSON.
    """
    if ended.status is SagaStatus.COMPLETED:
        return load(ended.result)
    if ended.status is SagaStatus.STUCK:
        raise Stuck(f"saga {id!r} is stuck: {ended.cause.reason}; it needs a person")
    raise _undone(id, ended.cause)


class EndWaiter(Deadline):
    """Somebody who waits for the end of a run, for so long.

    Attributes:
        has_ended: whether it has, once that is known.
    """

    __slots__ = ("has_ended",)

    def __init__(self, due_s: float, loop: asyncio.AbstractEventLoop) -> None:
        # As the base does, without its frame.
        self.due_s, self.slot = due_s, None
        self.has_ended: EagerFuture[bool] = EagerFuture(loop)

    def expire(self) -> None:
        """Tell that it has not."""
        self.settle(has_ended=False)

    def settle(self, *, has_ended: bool) -> None:
        """Tell whether the run has ended, unless it is told already."""
        if not self.has_ended.done():
            self.has_ended.hand_over(has_ended)


def _undone(id: str, cause: SagaCause) -> Exception:  # noqa: A002
    if cause.problem is not None:
        status = cause.problem.get("status")
        error = from_problem(
            cause.problem,
            status=status if isinstance(status, int) else 409,
            raises=_rejections(Rejection),
        )
        if isinstance(error, Rejection):
            return error
    return SagaUndone(f"saga {id!r} was undone: {cause.reason}")


def _rejections(cls: type[Rejection]) -> list[type[Rejection]]:
    # A finished run has only the code of what turned it; the classes are those that are imported.
    found = [cls]
    for subclass in cls.__subclasses__():
        found += _rejections(subclass)
    return found
