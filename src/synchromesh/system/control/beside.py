"""Asks a database beside the service that runs on it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from synchromesh.store import StoreReader

T = TypeVar("T")


async def ask_beside(reader: StoreReader, ask: Callable[[StoreReader], Awaitable[T]]) -> T:
    """Ask a database on a connection of its own, which holds up nobody on the loop."""
    own = await reader.beside.reader()
    try:
        return await ask(own)
    finally:
        await own.close()
