"""The fork server as its supervisor sees it: asked for processes, and told of their ends.

What runs in it is `host.fork_server`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections import deque

import msgspec

from synchromesh.system.supervise.children import signal_group
from synchromesh.system.supervise.messages import Exited, Forked, ForkRequest, NotForked
from synchromesh.system.supervise.stop_budget import FORK_SERVER_ENDS_WITHIN_S

MESSAGE_BYTES_MAX = 4096
FORKED_WITHIN_S = 5.0


class ForkedProcess:
    """A child of the fork server, as far as that tells of it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = asyncio.Event()

    def exited(self, code: int) -> None:
        """Record its exit code, or the negative number of the signal that ended it."""
        self.returncode = code
        self._ended.set()

    async def wait(self) -> int:
        """Wait for its end, and return the code."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def __repr__(self) -> str:
        return f"<ForkedProcess {self.pid}>"


class ForkServer:
    """Forks processes; `start`, where the loop runs, then `fork`, then `stop`.

    Args:
        pid: its own process, a child of this one.
        control: the socket to it.
    """

    def __init__(self, pid: int, control: socket.socket) -> None:
        self.pid = pid
        self._control = control
        self._gone = asyncio.Event()
        # In the order in which they were asked for, which is that of the answers.
        self._asked: deque[asyncio.Future[ForkedProcess | NotForked]] = deque()
        self._forked: dict[int, ForkedProcess] = {}

    def start(self) -> None:
        """Listen to it."""
        self._control.setblocking(False)
        asyncio.get_running_loop().add_reader(self._control, self._read)

    async def fork(self, handles: list[int], handle: int) -> ForkedProcess | NotForked:
        """Fork a process that is led by what comes over its link.

        Args:
            handles: its link, its log, and the socket that it inherits, if any.
            handle: the number by which it knows that socket.
        """
        if self._gone.is_set():
            return NotForked("the fork server has ended")
        try:
            request = msgspec.json.encode(ForkRequest(handle))
            socket.send_fds(self._control, [request], handles)
        except OSError as error:
            return NotForked(f"the fork server cannot be asked: {error.strerror}")
        asked: asyncio.Future[ForkedProcess | NotForked]
        asked = asyncio.get_running_loop().create_future()
        self._asked.append(asked)
        try:
            async with asyncio.timeout(FORKED_WITHIN_S):
                return await asked
        except TimeoutError:
            return NotForked("the fork server does not answer")

    async def stop(self) -> None:
        """End it, and with it what it has forked. May be repeated."""
        if self._gone.is_set():
            return
        try:
            self._control.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(FORK_SERVER_ENDS_WITHIN_S):
                await self._gone.wait()
        except (OSError, TimeoutError):
            os.kill(self.pid, signal.SIGKILL)
            self._note_gone()

    def _read(self) -> None:
        try:
            message = self._control.recv(MESSAGE_BYTES_MAX)
        except BlockingIOError:
            return
        except ConnectionResetError:  # it ended before it read what it was asked
            message = b""
        if not message:
            self._note_gone()
            return
        told = msgspec.json.decode(message, type=Forked | NotForked | Exited)
        if isinstance(told, Exited):
            self._forked.pop(told.pid).exited(told.code)
            return
        asked = self._asked.popleft()
        if isinstance(told, NotForked):
            if not asked.done():
                asked.set_result(told)
            return
        process = self._forked[told.pid] = ForkedProcess(told.pid)
        if asked.done():  # nobody waits for it any more
            signal_group(process, signal.SIGKILL)
        else:
            asked.set_result(process)

    def _note_gone(self) -> None:
        """Record its end; the kernel kills what it has forked."""
        asyncio.get_running_loop().remove_reader(self._control)
        self._control.close()
        os.waitpid(self.pid, 0)
        self._gone.set()
        for asked in self._asked:
            if not asked.done():
                asked.set_result(NotForked("the fork server has ended"))
        self._asked.clear()
        for process in self._forked.values():
            process.exited(-signal.SIGKILL)
        self._forked.clear()

    def __repr__(self) -> str:
        return f"<ForkServer {self.pid} with {len(self._forked)} forked>"
