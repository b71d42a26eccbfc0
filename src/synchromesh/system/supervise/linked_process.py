"""A process of a part, and its link: the socket over which it gets its spec and reports."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import cast

from synchromesh.system.supervise.children import RunningProcess
from synchromesh.system.supervise.stop_budget import LINK_ENDS_WITHIN_S

LINE_BYTES_MAX = 65_536


class Link(asyncio.StreamReaderProtocol):
    """The supervisor's end of a link; it closes when the process closes its own.

    Attributes:
        has_answered: whether a process that was asked for a sign of life gave one since; None
            before it was ever asked, when what comes are reports.
    """

    transport: asyncio.Transport
    has_answered: bool | None = None

    def __init__(self) -> None:
        self.lines = asyncio.StreamReader(limit=LINE_BYTES_MAX)
        self.ended = asyncio.Event()
        super().__init__(self.lines)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        # uvloop's is one without being a subclass.
        self.transport = cast("asyncio.Transport", transport)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Take a part of a report, or an answer, which has nothing to read in it."""
        if self.has_answered is None:
            super().data_received(data)
        else:
            self.has_answered = True

    def eof_received(self) -> bool:
        """Close."""
        super().eof_received()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end."""
        super().connection_lost(exc)
        self.ended.set()


class LinkedProcess:
    """A process with its link, which tells it by its end that nobody looks after it any more."""

    def __init__(self, process: RunningProcess, link: Link) -> None:
        self._process = process
        self._link = link

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, the negative number of the signal that ended it, or None."""
        return self._process.returncode

    async def wait(self) -> int:
        """Wait for its end, and return the code."""
        code = await self._process.wait()
        # Its last line may still be under way.
        with suppress(TimeoutError):
            async with asyncio.timeout(LINK_ENDS_WITHIN_S):
                await self._link.ended.wait()
        self._link.transport.close()
        return code

    def send(self, line: bytes) -> None:
        """Send a line."""
        self._link.transport.write(line + b"\n")

    def ask(self) -> None:
        """Ask for a sign of life; for a process that is ready, and so reports no more."""
        self._link.has_answered = False
        if not self._link.transport.is_closing():
            self.send(b"")

    @property
    def has_answered(self) -> bool:
        """Whether its event loop has answered since it was asked."""
        return bool(self._link.has_answered)

    async def readline(self) -> bytes:
        """Return the next line; empty where the process has ended, or sends no more.

        Raises:
            ValueError: it is longer than LINE_BYTES_MAX.
        """
        try:
            return await self._link.lines.readline()
        except ConnectionError:  # it ended before it read its spec
            return b""

    def __repr__(self) -> str:
        return f"<LinkedProcess {self.pid}>"
