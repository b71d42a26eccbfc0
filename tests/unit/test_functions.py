"""What is known of a function is kept for as long as that is there, and no longer."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from synchromesh.errors import ContractError
from synchromesh.functions import there, weakly
from synchromesh.saga import Saga, Unknown
from synchromesh.saga import step_checks as checks
from synchromesh.service import context


class Held:
    """What functions close over."""

    async def charge(self, key: str, amount: int) -> int:
        """Charge it."""
        return amount

    async def refund(self, key: str, result: int | Unknown) -> None:
        """Give it back."""

    async def keep(self, tx: object, amount: int) -> int:
        """Write it down."""
        return amount


def closures(held: Held) -> tuple[Callable[..., Any], ...]:
    async def charge(key: str, amount: int) -> int:
        return await held.charge(key, amount)

    async def refund(key: str, result: int | Unknown) -> None:
        await held.refund(key, result)

    async def keep(tx: object, amount: int) -> int:
        return await held.keep(tx, amount)

    return charge, refund, keep


def methods(held: Held) -> tuple[Callable[..., Any], ...]:
    return held.charge, held.refund, held.keep


def wrapped(held: Held) -> tuple[Callable[..., Any], ...]:
    def of(fn: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(fn)
        async def call(*args: Any) -> Any:
            return await fn(*args)

        return call

    return tuple(of(fn) for fn in methods(held))


def described(charge: Any, refund: Any, keep: Any) -> None:
    saga = Saga("r", "0" * 32)
    saga.step(charge, 1, undo=refund)
    saga.write(keep, 1)
    context._shape_of(weakly(keep))


@pytest.mark.parametrize("made", [closures, methods, wrapped])
def test_steps_of_an_ended_run_keep_nothing_alive(made: Any) -> None:
    """Neither what their functions close over nor whose methods they are."""
    gone = []
    for _ in range(3):
        held = Held()
        gone.append(weakref.ref(held))
        described(*made(held))
        del held
    gc.collect()
    assert [each() for each in gone] == [None] * 3


def test_a_method_is_judged_once_whoever_it_is_of() -> None:
    """Each time that one is asked for it is another object; what is known of it is the same."""
    described(*methods(Held()))
    before = [each.cache_info().misses for each in caches()]
    for _ in range(5):
        described(*methods(Held()))
    assert [each.cache_info().misses for each in caches()] == before


def caches() -> Iterator[Any]:
    yield from (checks.signature_of, checks.check_async, checks.check_arity, checks.taken_by)
    yield context._shape_of


def test_closures_of_one_text_are_judged_by_themselves() -> None:
    """Their annotations are made with them."""

    def made(kind: Any) -> Any:
        async def fetch(key: str) -> Any: ...

        fetch.__annotations__["return"] = kind
        return fetch

    functions = made(int), made(str)
    assert [checks.signature_of(weakly(fn)).result for fn in functions] == [int, str]


class Slotted:
    """An object that can be called, and not be referred to weakly."""

    __slots__ = ()

    async def __call__(self, tx: object, amount: int) -> int:
        return amount


def test_what_cannot_be_referred_to_weakly_is_judged_by_its_type() -> None:
    """By what it takes when it is called."""
    checks.check_arity("s.write", weakly(Slotted()), "tx", 1)
    with pytest.raises(ContractError, match="takes 2 arguments"):
        checks.check_arity("s.write", weakly(Slotted()), "tx", 2)
    fn = closures(Held())[0]
    assert there(weakly(fn)) is fn
