"""The bodies of units: what they may be, and what they awaited that they may not."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine
from types import CoroutineType
from typing import Any, TypeVar

from synchromesh.errors import ContractError, ForeignAwait

T = TypeVar("T")

_OURS = __name__.partition(".")[0]


def as_coroutine(made: Awaitable[T], body: object, name: str) -> Coroutine[Any, Any, T]:
    """Return the coroutine that a body made; raises ContractError if it is no async function."""
    # A coroutine, as nearly always, is known by its type: its ABC is slow to ask.
    if type(made) is CoroutineType:
        return made
    if not isinstance(made, Awaitable):
        raise ContractError(
            f"unit {name!r}{_named(body)} returned {type(made).__name__}, "
            "nothing to await: its body has to be an async function; write async def"
        )
    return _awaiting(made)


async def _awaiting(made: Awaitable[T]) -> T:
    return await made


def foreign(name: str, body: object, awaited: str) -> ForeignAwait:
    """Return the error that a unit awaited what it may not."""
    return ForeignAwait(
        f"unit {name!r}{_named(body)} awaited {awaited}; a unit may await nothing but itself, "
        "because it holds the database: do the rest before or after the unit"
    )


def _named(body: object) -> str:
    """Return the name of a body in parentheses; "" of one of ours, whose unit has the user's."""
    if str(getattr(body, "__module__", "")).partition(".")[0] == _OURS:
        return ""
    return f" ({getattr(body, '__qualname__', type(body).__name__)})"


def awaited_by(awaitable: object, *, past: int) -> str:
    """Name what is awaited below the first `past` levels, which are the body's own and above it."""
    chain: list[str] = []
    while (inner := getattr(awaitable, "cr_await", None)) is not None and len(chain) < 16:
        chain.append(getattr(inner, "__qualname__", type(inner).__name__))
        awaitable = inner
    return " → ".join(chain[past - 1 :]) or "something that suspends"
