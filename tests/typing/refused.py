"""Mistakes with calls: mypy --strict refuses each marked line, for the reason that it names.

This file is never run; `tests/unit/test_typing.py` has mypy check that exactly these lines fail.
"""

from __future__ import annotations

from typing import Protocol

from calls_fakes import Hold, Reserve, Shop
from synchromesh.calls import Call, Caller, Command, Contract, Query, command, query
from synchromesh.context import CallContext


async def calls(caller: Caller, context: CallContext) -> None:
    """Wrong arguments, and an operation where a call is wanted."""
    Shop.reserve("nope")  # refused: arg-type
    Shop.reserve()  # refused: call-arg
    Shop.reserve(Reserve("a", 1), 3)  # refused: call-arg
    Shop.reserve(req=Reserve("a", 1))  # refused: call-arg
    Shop.nothing(Hold("h"))  # refused: call-arg
    Shop.stock("a", "two")  # refused: arg-type
    await Shop.reserve(Reserve("a", 1))  # refused: misc
    await caller.call(Shop.reserve, context=context)  # refused: arg-type
    await caller.call(Shop.stock("a"))  # refused: call-arg
    hold: Hold = await caller.call(Shop.stock("a"), context=context)  # refused: arg-type
    Shop.reserve(hold)  # refused: arg-type
    Shop.restock("a")  # refused: attr-defined


def kinds(write: Command[[Reserve], Hold], read: Query[..., int], made: Call[Hold]) -> None:
    """Take an operation of each kind."""


kinds(Shop.stock, Shop.stock, Shop.reserve(Reserve("a", 1)))  # refused: arg-type
kinds(Shop.reserve, Shop.reserve, Shop.reserve(Reserve("a", 1)))  # refused: arg-type
kinds(Shop.nothing, Shop.stock, Shop.reserve(Reserve("a", 1)))  # refused: arg-type
kinds(Shop.reserve, Shop.stock, Shop.stock("a"))  # refused: arg-type


class Wrong(Contract, Protocol, service="wrong", version="1.0"):
    @command("POST /a", raises=(ValueError,))  # refused: arg-type
    async def a(self) -> None: ...
    @query("GET /b")  # refused: arg-type
    def b(self) -> Hold: ...
