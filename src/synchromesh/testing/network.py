"""Byte streams between simulated processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from synchromesh.runtime import Listener
from synchromesh.testing.escapes import Escape
from synchromesh.testing.process import Process
from synchromesh.testing.wire import Wire


class SimNetwork:
    """Byte streams between the processes of one universe."""

    def __init__(self, loop: asyncio.AbstractEventLoop, wire: Wire) -> None:
        self._loop, self._wire = loop, wire

    async def listen(
        self, factory: Callable[[], asyncio.Protocol], host: str, port: int
    ) -> Listener:
        """Accept connections."""
        raise Escape("listen")

    async def connect(
        self, factory: Callable[[], asyncio.Protocol], host: str, port: int
    ) -> asyncio.Protocol:
        """Connect."""
        raise Escape("connect")

    def crash(self, process: Process) -> None:
        """Let a process's listeners and connections vanish."""
