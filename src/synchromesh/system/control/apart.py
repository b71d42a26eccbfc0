"""Asks a database beside the service that runs on it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from synchromesh.runtime import RealRuntime
from synchromesh.store import StoreReader
from synchromesh.store.sqlite_reader import SqliteReader

T = TypeVar("T")


async def apart(reader: StoreReader, ask: Callable[[StoreReader], Awaitable[T]]) -> T:
    """Ask a database on a connection and in a thread of its own: the loop serves on meanwhile."""

    async def asked() -> T:
        own = SqliteReader.open(reader.place, service=reader.service, disk=RealRuntime().disk)
        try:
            return await ask(own)
        finally:
            await own.close()

    return await asyncio.to_thread(lambda: asyncio.run(asked()))
