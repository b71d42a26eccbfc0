"""Writes of one turn of the loop that are made together, at its end.

A write to a socket wakes who reads from it, and that costs more than the write. Where the reader is
awake already, because it has just been written to, it costs nothing: so what is written while a
turn's events are handled is kept until all of them are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from synchromesh.clock import is_real


class TurnWrites:
    """Calls what was added within a turn of the loop at the turn's end, in order.

    Example:
        >>> async def main() -> None:
        ...     together = TurnWrites(asyncio.get_running_loop())
        ...     together.add(lambda: print("written"))
        ...     print("handled")
        ...     await asyncio.sleep(0)
        >>> asyncio.run(main())
        handled
        written
    """

    __slots__ = ("_loop", "_writes")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._writes: list[Callable[[], None]] = []

    def add(self, write: Callable[[], None]) -> None:
        """Have something written at the end of this turn; it must not raise."""
        if not self._writes:
            self._loop.call_soon(self._write)
        self._writes.append(write)

    def __repr__(self) -> str:
        return f"<TurnWrites {len(self._writes)} writes>"

    def _write(self) -> None:
        writes, self._writes = self._writes, []
        for write in writes:
            write()


def together_on(loop: asyncio.AbstractEventLoop) -> TurnWrites | None:
    """Return what gathers writes on a loop, None for a simulated one."""
    return TurnWrites(loop) if is_real(loop) else None
