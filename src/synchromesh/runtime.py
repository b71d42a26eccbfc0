"""The environment of a running system: wall clock, randomness, ids, threads, disk, network.

Machines get `now` and `rng` as arguments; shells read the loop's clock; all else comes from a
`Runtime` that is handed down, never imported. `RealRuntime` is the world; `synchromesh.testing` has
one that is simulated, which is what lets the whole system run under a seed.

This module imports neither asyncio nor sqlite3 before they are used, so that `import synchromesh`
stays cheap.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from synchromesh.network import Network, RealNetwork

if TYPE_CHECKING:
    import sqlite3

# When who waits for work in a thread is told that it still runs, and how often it is cut.
STILL_AFTER_S, STILL_EVERY_S, CUT_EVERY_S = 1.0, 20.0, 0.05

T = TypeVar("T")
J = TypeVar("J")
J_contra = TypeVar("J_contra", contravariant=True)


class Worker(Protocol[J_contra]):
    """A single thread of work that owns a resource exclusively, such as a database connection."""

    def put(self, job: J_contra) -> None:
        """Queue a job; never blocks. Jobs run in the order in which they were put."""
        ...

    async def close(self) -> None:
        """Run what is queued, then end. May be repeated."""
        ...


class Disk(Protocol):
    """Opens databases, and locks each for one process."""

    def connect(
        self, path: str, *, read_only: bool = False, is_private: bool = False
    ) -> sqlite3.Connection:
        """Open a SQLite file in autocommit mode; the connection may be used from any one thread.

        The file is created unless `read_only`; one that `is_private` for its owner alone. Raises
        what `sqlite3.connect` raises.
        """
        ...

    def connect_copy(self, path: str) -> sqlite3.Connection:
        """Create a SQLite file in a folder of backups, which is a real one also in simulation."""
        ...

    def file_id(self, path: str) -> tuple[int, int] | None:
        """Return the identity of the file at `path`; None where there is none."""
        ...

    def quarantine(self, path: str) -> None:
        """Move a SQLite file that is damaged, and its log, to `<path>.damaged`."""
        ...

    def try_lock(self, path: str) -> FileLock | None:
        """Lock `path` for this process, or return None at once while another process holds it."""
        ...

    def owner_of(self, path: str) -> str:
        """Describe the lock's holder for an error message, as far as known ("process 4711")."""
        ...


class FileLock(Protocol):
    """An exclusive lock on a file; released at the latest when the process ends."""

    def release(self) -> None:
        """Release the lock. May be repeated."""
        ...


class Runtime(Protocol):
    """What a process takes from its environment."""

    @property
    def rng(self) -> random.Random:
        """Randomness that may be guessed: for jitter, and ids of traces and records."""
        ...

    @property
    def secret_rng(self) -> random.Random:
        """Cryptographic randomness: for keys, credentials and blinded comparisons."""
        ...

    @property
    def network(self) -> Network:
        """The network."""
        ...

    def wall_us(self) -> int:
        """Return the wall clock, microseconds since 1970-01-01 UTC; it may jump: no durations."""
        ...

    def new_id(self) -> str:
        """Return a new UUIDv7 (RFC 9562) as text: unique, and ascending by time."""
        ...

    def worker(self, name: str, work: Callable[[list[J]], Callable[[], None]]) -> Worker[J]:
        """Start a worker that runs `work` over each batch of queued jobs.

        `work` runs in the worker (a thread; in simulation on the loop) and returns what is to be
        run on the loop afterwards. It must not raise.
        """
        ...


class DiskRuntime(Runtime, Protocol):
    """A runtime with files, for embedded databases and the run directory."""

    @property
    def disk(self) -> Disk:
        """The disk that holds the databases."""
        ...

    @property
    def threads(self) -> Threads:
        """What code in workers, which has no loop, takes from its environment."""
        ...

    async def blocking(
        self, work: Callable[[], T], *, cut: Callable[[], None], still: Callable[[], None]
    ) -> T:
        """Run work that blocks, and return its result; the loop goes on meanwhile.

        In simulation it is one moment, on the loop.

        Args:
            cut: has it end early; called again and again where the caller is cancelled, who waits
                until it has ended: nothing that it uses is in use afterwards.
            still: called on the loop after a second, and then every 20 s, while it runs.
        """
        ...


class Threads(Protocol):
    """What code in threads, without a loop, takes from its environment."""

    def time(self) -> float:
        """Return a monotonic clock in seconds."""
        ...

    def sleep(self, seconds: float) -> None:
        """Block the calling thread."""
        ...

    def lock(self) -> AbstractContextManager[object]:
        """Return a new mutex, held by `with`."""
        ...


# -- the real world ------------------------------------------------------------------------------


def uuid7(wall_us: int, rng: random.Random) -> str:
    """Return a UUIDv7 (RFC 9562, section 5.7) with microseconds in `rand_a`, so that ids ascend.

    Example:
        >>> uuid7(1_700_000_000_000_000, random.Random(1))[:15]
        '018bcfe5-6800-7'
    """
    millis, micros = divmod(wall_us, 1000)
    rand_a = (micros << 2) | rng.getrandbits(2)
    bits = (millis & 0xFFFFFFFFFFFF) << 80 | 0x7 << 76 | rand_a << 64 | 0b10 << 62
    text = f"{bits | rng.getrandbits(62):032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


# Seeded by the kernel. A draw is no system call, and so does not give up the interpreter's lock and
# wait for it again. A child process that is forked is seeded anew, or both would make equal ids.
_PRNG = random.Random()  # noqa: S311 - what nobody may guess is drawn from `secret_rng`
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_PRNG.seed)


class RealRuntime:
    """The real environment: the system's clock, the kernel's randomness, threads, files, sockets.

    Example:
        >>> runtime = RealRuntime()
        >>> runtime.new_id() < runtime.new_id()  # UUIDv7: they ascend
        True
    """

    def __init__(self) -> None:
        self._rng = _PRNG
        self._secret_rng = random.SystemRandom()
        self._disk = RealDisk()
        self._network = RealNetwork()

    @property
    def rng(self) -> random.Random:
        """A generator of this process, seeded by the kernel."""
        return self._rng

    @property
    def secret_rng(self) -> random.Random:
        """The kernel's random numbers."""
        return self._secret_rng

    @property
    def disk(self) -> Disk:
        """Files."""
        return self._disk

    @property
    def threads(self) -> Threads:
        """The system's clock, and blocking sleeps and locks of threads."""
        return RealThreads()

    @property
    def network(self) -> Network:
        """TCP."""
        return self._network

    def wall_us(self) -> int:
        """Return the system's clock in microseconds since 1970-01-01 UTC."""
        return time.time_ns() // 1000

    def new_id(self) -> str:
        """Return a new UUIDv7."""
        return uuid7(self.wall_us(), self._rng)

    def worker(self, name: str, work: Callable[[list[J]], Callable[[], None]]) -> Worker[J]:
        """Start a thread that runs `work` over each batch of queued jobs."""
        return ThreadWorker(name, work)

    async def blocking(
        self, work: Callable[[], T], *, cut: Callable[[], None], still: Callable[[], None]
    ) -> T:
        """Run work in a thread of its own, as `DiskRuntime` says."""
        import asyncio
        import concurrent.futures
        import threading

        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - the caller gets it, whatever it is
                future.set_exception(error)

        # A daemon, as those of workers.
        threading.Thread(target=run, name="work", daemon=True).start()
        ended = asyncio.wrap_future(future)
        wait_s = STILL_AFTER_S
        try:
            while not (await asyncio.wait([ended], timeout=wait_s))[0]:
                still()
                wait_s = STILL_EVERY_S
        except asyncio.CancelledError:
            while not ended.done():
                # Between two statements there is nothing to cut.
                cut()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([ended], timeout=CUT_EVERY_S)
            ended.exception()  # seen, whatever it is
            raise
        return ended.result()


class RealThreads:
    """The system's clock, and blocking sleeps and locks of threads."""

    def time(self) -> float:
        """Return the monotonic clock, which is also that of asyncio's loops."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Block the calling thread."""
        if seconds > 0:
            time.sleep(seconds)

    def lock(self) -> AbstractContextManager[object]:
        """Return a `threading.Lock`."""
        import threading

        return threading.Lock()


class ThreadWorker:
    """A thread with a queue; each round takes a batch of up to `batch_max` jobs."""

    def __init__(
        self, name: str, work: Callable[[list[Any]], Callable[[], None]], *, batch_max: int = 512
    ) -> None:
        import asyncio
        import queue
        import threading

        self._loop = asyncio.get_running_loop()
        self._work = work
        self._batch_max = batch_max
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._ended = asyncio.Event()
        self._is_closed = False
        # A daemon: a process that is told to die must not wait for a disk that hangs.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, job: Any) -> None:
        """Queue a job."""
        if self._is_closed:
            raise RuntimeError(f"worker {self._thread.name!r} is closed")
        self._queue.put(job)

    async def close(self) -> None:
        """Run what is queued, then end the thread."""
        if not self._is_closed:
            self._is_closed = True
            self._queue.put(_END)
        await self._ended.wait()

    def _run(self) -> None:
        ended = False
        while not ended:
            batch = [self._queue.get()]
            while len(batch) < self._batch_max and not self._queue.empty():
                batch.append(self._queue.get())
            if batch[-1] is _END:
                ended = True
                batch.pop()
            if batch:
                self._tell(self._work(batch))
        self._tell(self._ended.set)

    def _tell(self, done: Callable[[], None]) -> None:
        import contextlib

        # The loop is closed only when nobody waits for answers any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(done)


_END = object()


class RealDisk:
    """SQLite files, each owned by the process that holds the POSIX lock on `<file>.lock`.

    POSIX record locks end with their process however it dies, are not inherited by children, and
    need no thread to be tried (`flock` would be kept by any child that inherited the descriptor).
    They do not exclude the process itself, so it also keeps a list of its own.
    """

    # Of the process, not of one instance: a second lock would be granted, and its release end both.
    _held: ClassVar[set[str]] = set()

    def connect(
        self, path: str, *, read_only: bool = False, is_private: bool = False
    ) -> sqlite3.Connection:
        """Open a file in autocommit mode."""
        import sqlite3

        if is_private:
            # SQLite gives the files beside it the rights that it has.
            with contextlib.suppress(OSError):  # told by what follows
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))

        mode = "ro" if read_only else "rwc"
        uri = f"{Path(path).absolute().as_uri()}?mode={mode}"
        return sqlite3.connect(
            uri, uri=True, isolation_level=None, check_same_thread=False, cached_statements=256
        )

    def connect_copy(self, path: str) -> sqlite3.Connection:
        """Create a file as any other."""
        return self.connect(path)

    def file_id(self, path: str) -> tuple[int, int] | None:
        """Return the device and inode; while a file is open, no other one gets its inode."""
        try:
            found = os.stat(path)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def quarantine(self, path: str) -> None:
        """Move a file with its write-ahead log; an earlier quarantine is overwritten."""
        for suffix in ("", "-wal", "-shm"):
            try:
                os.replace(f"{path}{suffix}", f"{path}.damaged{suffix}")
            except FileNotFoundError:
                continue

    def try_lock(self, path: str) -> FileLock | None:
        """Take the POSIX lock on `<path>.lock`, or return None."""
        import fcntl

        real = str(Path(path).resolve())
        if real in self._held:
            return None
        handle = os.open(f"{real}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            return None
        os.ftruncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
        self._held.add(real)
        return _RealLock(handle, lambda: self._held.discard(real))

    def owner_of(self, path: str) -> str:
        """Return which process wrote its id into the lock file."""
        if str(Path(path).resolve()) in self._held:
            return "this process"
        try:
            return f"process {int(Path(f'{path}.lock').read_text()[:20])}"
        except (OSError, ValueError):
            return "another process"


class _RealLock:
    def __init__(self, handle: int, forget: Callable[[], None]) -> None:
        self._handle: int | None = handle
        self._forget = forget

    def release(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
            self._forget()
