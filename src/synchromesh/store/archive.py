"""Keeps what is forgotten in files: JSON lines, on the disk before anything is deleted."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from synchromesh.runtime import Runtime, Worker


def append_file(path: str, data: bytes) -> None:
    """Append to a private file, which is made with its folder, and flush both; raises OSError."""
    folder = Path(path).parent
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    to_file = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    for place, how, left in ((path, to_file, data), (str(folder), os.O_RDONLY, b"")):
        handle = os.open(place, how | os.O_CLOEXEC, 0o600)
        try:
            while left:
                left = left[os.write(handle, left) :]
            os.fsync(handle)
        finally:
            os.close(handle)


class _Lines:
    """Lines on their way to a file."""

    def __init__(self, path: str, data: bytes, written: asyncio.Future[None]) -> None:
        self.path = path
        self.data = data
        self.written = written
        self.error: BaseException | None = None


class Archive:
    """Appends lines to files, in a worker; what was archived and not yet deleted comes twice.

    Args:
        place: the file for what is forgotten, such as "sagas", at a time in microseconds.
        append: appends to a file, and returns once that is on the disk; raises OSError.

    Example:
        >>> from synchromesh.testing import SimRuntime, run
        >>> async def main(runtime: SimRuntime) -> list[tuple[str, bytes]]:
        ...     files: list[tuple[str, bytes]] = []
        ...     append = lambda path, data: files.append((path, data))
        ...     archive = Archive(runtime, lambda what, _: f"/{what}.jsonl", append)
        ...     await archive.write("sagas", 0, [b'{"id":"a"}'])
        ...     await archive.close()
        ...     return files
        >>> run(main)
        [('/sagas.jsonl', b'{"id":"a"}\\n')]
    """

    def __init__(
        self,
        runtime: Runtime,
        place: Callable[[str, int], str],
        append: Callable[[str, bytes], None] = append_file,
    ) -> None:
        self._append = append
        self._place = place
        self._worker: Worker[_Lines] = runtime.worker("synchromesh-archive", self._work)

    async def write(self, what: str, at_us: int, lines: Sequence[bytes]) -> None:
        """Append lines and return once they are on the disk.

        Raises:
            OSError: the file cannot be written.
        """
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        data = b"".join(line + b"\n" for line in lines)
        self._worker.put(_Lines(self._place(what, at_us), data, written))
        await written

    async def close(self) -> None:
        """Write what waits, and end. Idempotent."""
        await self._worker.close()

    def _work(self, jobs: list[_Lines]) -> Callable[[], None]:
        for job in jobs:
            try:
                self._append(job.path, job.data)
            except OSError as error:
                job.error = error
        return lambda: self._conclude(jobs)

    def _conclude(self, jobs: list[_Lines]) -> None:
        for job in jobs:
            if job.written.done():
                continue
            if job.error is None:
                job.written.set_result(None)
            else:
                job.written.set_exception(job.error)

    def __repr__(self) -> str:
        return "<Archive>"
