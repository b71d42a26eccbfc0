"""A stand-in for an external service: answers by operation, in place of a service's handlers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from synchromesh.calls import Operation
from synchromesh.calls.contract import operations_of
from synchromesh.service import Context, Service
from synchromesh.spelling import nearest
from synchromesh.testing.escapes import Unhandled


def stand_in(contract: type[object], **answers: object) -> Service:
    """Return a service that stands for an external one, to be handed to `serving(externals=...)`.

    An answer is a value that is returned each time, such as one that was recorded, an exception
    that is raised, or an async function of the operation's own parameters. An operation without one
    fails the call that it gets, and says so.

    Raises:
        ValueError: an answer is for no operation of the contract.

    Example:
        >>> from typing import Protocol
        >>> from synchromesh.calls import Contract, query
        >>> class Bank(Contract, Protocol, service="bank", version="1.0", external=True):
        ...     @query("GET /rates/{currency}")
        ...     async def rate(self, currency: str) -> int: ...
        >>> stand_in(Bank, rate=108).name
        'bank'
    """
    operations = operations_of(contract)
    for name in answers:
        if name not in operations:
            near = nearest(name, operations)
            hint = f"did you mean {near!r}?" if near else f"there are {', '.join(operations)}"
            raise ValueError(f"{contract.__name__} has no operation {name!r}; {hint}")
    first = next(iter(operations.values()))
    service = Service(first.service, implements=contract)
    for name, operation in operations.items():
        service.handles(operation)(_handler(operation, answers.get(name, _UNSAID)))
    return service


_UNSAID = object()


def _handler(operation: Operation[..., Any], answer: object) -> Callable[..., Any]:
    async def handle(_: Context, *args: Any, **named: Any) -> Any:
        if answer is _UNSAID:
            raise Unhandled(f"the stand-in has no answer for {operation.full_name}; give it one")
        if isinstance(answer, BaseException):
            raise answer
        if callable(answer) and inspect.iscoroutinefunction(answer):
            return await answer(*args, **named)
        return answer

    return handle
