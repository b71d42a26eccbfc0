"""Processes of a benchmark: peers' servers, and a system of ours as `synchromesh dev` runs it.

The product is measured as users run it, by its command line and its configuration: nothing of its
inside is touched.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.request import Request, urlopen

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".bench"
STARTS_WITHIN_S = 30.0
STOPS_WITHIN_S = 15.0


class NotStarted(Exception):
    """A server did not come up; its message has the end of what it printed."""


def installed() -> dict[str, str]:
    """Return the environment of what is measured: as installed, with bytecode that is kept."""
    ours = {"PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": str(CACHE / "bytecode")}
    return {n: v for n, v in os.environ.items() if n != "PYTHONDONTWRITEBYTECODE"} | ours


def free_port() -> int:
    """Return a port of loopback that nothing listens on."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nothing listens on, each of them another one."""
    with ExitStack() as enter:
        probes = [enter.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [probe.getsockname()[1] for probe in probes]


def last_core() -> set[int]:
    """Return the core that load and upstreams are pinned to, away from what is measured."""
    return {max(os.sched_getaffinity(0))}


class Server:
    """A process that listens; `with` stops it, by its id, with all that it started."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        port: int = 0,
        cores: set[int] | None = None,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
        stdout: int | None = None,
    ) -> None:
        self.name = name
        self.port = port
        self._log = tempfile.TemporaryFile("w+b")  # noqa: SIM115  closed in __exit__
        self.process = subprocess.Popen(
            command,
            cwd=folder or ROOT,
            env={**installed(), **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=stdout or self._log,
            stderr=self._log,
            start_new_session=True,
            preexec_fn=None if cores is None else lambda: os.sched_setaffinity(0, cores),
        )

    @property
    def pid(self) -> int:
        """The process's id."""
        return self.process.pid

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def wait(self) -> Self:
        """Return once its port accepts connections."""
        give_up_s = time.monotonic() + STARTS_WITHIN_S
        while time.monotonic() < give_up_s and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1.0).close()
            except OSError:
                time.sleep(0.02)
            else:
                return self
        raise self.failed("does not listen")

    def failed(self, how: str) -> NotStarted:
        """Return an error with the end of what the process printed."""
        self._log.seek(0)
        said = self._log.read()[-2000:].decode(errors="replace")
        return NotStarted(f"{self.name} {how} (exit code {self.process.poll()}):\n{said}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOPS_WITHIN_S)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._log.close()


class System:
    """A system of ours that runs: where it listens, and which process does what."""

    def __init__(self, folder: Path, server: Server, urls: Mapping[str, Any]) -> None:
        self.folder = folder
        self.server = server
        self.gateway: str = urls["gateway"] or ""

    def pids(self) -> dict[str, int]:
        """Return the process of each service, and of the "gateway"."""
        told = json.loads(synchromesh(self.folder, "status", "--json"))
        found = {name: service["pid"] for name, service in told["services"].items()}
        if told["gateway"]:
            found["gateway"] = told["gateway"]["pid"]
        return found

    def ask(self, path: str, body: object = None) -> Any:
        """Send a request to the gateway and return its decoded answer; POST where it has a body."""
        data = None if body is None else json.dumps(body).encode()
        request = Request(self.gateway + path, data, {"Content-Type": "application/json"})
        with urlopen(request, timeout=120) as response:
            return json.load(response)


def synchromesh(folder: Path, *words: str) -> str:
    """Run a verb of the command line in a system's folder and return what it printed."""
    command = [sys.executable, "-m", "synchromesh.cli", "--folder", str(folder), *words]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=installed(),
        timeout=60,
        check=False,
    )
    if done.returncode not in (0, 1):  # 1 is a finding, such as a saga that needs a person
        raise NotStarted(f"synchromesh {' '.join(words)}: {done.stderr or done.stdout}")
    return done.stdout


@contextmanager
def running(
    config: str | Path,
    *,
    split: bool = False,
    settings: Sequence[str] = (),
    words: Sequence[str] = (),
) -> Iterator[System]:
    """Run a system until the block ends: of the text of a `synchromesh.toml`, or of a folder.

    `words` are more options of `dev`.
    """
    with tempfile.TemporaryDirectory(prefix="synchromesh-bench-") as made:
        if isinstance(config, Path):
            folder = config
        else:
            folder = Path(made)
            (folder / "synchromesh.toml").write_text(config)
        words = ["--folder", str(folder), "dev", "--json", *(["--split"] if split else []), *words]
        for setting in settings:
            words += ["--set", setting]
        command = [sys.executable, "-m", "synchromesh.cli", *words]
        with Server("synchromesh dev", command, stdout=subprocess.PIPE) as server:
            yield System(folder, server, _announced(server))


def _announced(server: Server) -> dict[str, Any]:
    """Read the URLs that `dev --json` prints once it is up."""
    assert server.process.stdout is not None
    text = b""
    for line in server.process.stdout:
        text += line
        try:
            urls: dict[str, Any] = json.loads(text)
        except ValueError:
            continue
        return urls
    raise server.failed("ended before it was up")
