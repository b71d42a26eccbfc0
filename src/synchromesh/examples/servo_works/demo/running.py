"""The system as a process of its own, as whoever operates it sees it: started, killed, asked."""

import asyncio
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfile, copytree, ignore_patterns
from typing import Any
from urllib.parse import urlsplit

import msgspec
from audit import opened
from gateway import gateway as definition
from shop import Rates

from synchromesh.codec import to_datetime
from synchromesh.errors import ConfigError, SynchromeshError
from synchromesh.gateway import make_key
from synchromesh.http import HttpPool
from synchromesh.runtime import RealRuntime
from synchromesh.system.config.gateway_keys import keys_file_of
from synchromesh.system.config.rundir import RunDir, RunInfo
from synchromesh.system.supervise.children import begin_child
from synchromesh.system.supervise.postgres_engine import PostgresEngine

SHIPPED = Path(__file__).parents[1]
COMMAND = (sys.executable, "-m", "synchromesh.cli")
# Nobody waits that long but for what never comes.
START_WITHIN_S = 300.0
STOP_WITHIN_S = 120.0
ASK_WITHIN_S = 10.0
POLL_S = 0.02
FINDING, USER_MISTAKE = 1, 2
SERVICES = ("orders", "inventory", "billing", "production")
# Which of them have replicas in a system that has outgrown SQLite; quoting has three anyway.
REPLICATED = (*SERVICES, "configurator", "fleet")
UNFINISHED = (
    "select id from sm_saga where status in ('queued', 'running', 'compensating') order by id"
)


class SystemEnded(Exception):
    """Raised when the system ended by itself or did not come up; `is_mistake`: by its own word."""

    def __init__(self, message: str, *, is_mistake: bool = False) -> None:
        super().__init__(message)
        self.is_mistake = is_mistake


class NotInTime(Exception):
    """Raised when something that was waited for did not happen within its bound."""


class RunningSystem:
    """servo-works in a folder, run by `synchromesh dev` as a child process.

    The child dies with this process, however that dies, and does not get the Ctrl-C of a terminal.

    Args:
        folder: made by `copy_shipped`.
        pool: how its HTTP interfaces are reached; whoever made it closes it.
        flags: of `synchromesh dev`, such as "--split".
        engine: "postgres", which keeps its databases, or "all"; "" for SQLite files.

    Attributes:
        log: where its processes write their logs.
    """

    def __init__(self, folder: Path, pool: HttpPool, *flags: str, engine: str = "") -> None:
        self._flags = (*flags, "--engine", engine) if engine else flags
        self.folder = folder
        self.data = folder / ".synchromesh" / "data"
        self._place = PostgresEngine(folder / ".synchromesh").url if engine else self.data
        self.log = folder / ".synchromesh" / "telemetry" / "log.jsonl"
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pool = pool
        self._process: Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self._info: RunInfo | None = None
        self._turn = 0

    @property
    def pid(self) -> int | None:
        """The process; None while none runs."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the process and return once every service answers.

        Raises:
            SystemEnded: it ended instead; the message has its last words.
            NotInTime: it did neither within five minutes.
        """
        with (self.folder / "dev.log").open("ab") as output:
            self._process = process = await asyncio.create_subprocess_exec(
                *COMMAND, "dev", *self._flags,
                cwd=self.folder, stdin=DEVNULL, stdout=output, stderr=output,
                start_new_session=True, preexec_fn=begin_child(),
            )  # fmt: skip
        self._watch = asyncio.create_task(self._watch_over(process))
        try:
            async with asyncio.timeout(START_WITHIN_S):
                self._info = await self._published(process)
        except TimeoutError:
            raise NotInTime(
                f"the system did not come up within {START_WITHIN_S:g} s; see {self.folder}/dev.log"
            ) from None

    async def kill(self) -> None:
        """End the process as a power cut would."""
        process = self._release()
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()

    async def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Stop the process as Ctrl-C would, and return its exit code; 0 where none runs.

        Raises:
            NotInTime: it did not stop within two minutes, and was killed.
        """
        process = self._release()
        if process is None or process.returncode is not None:
            return 0 if process is None else process.returncode or 0
        process.send_signal(number)
        try:
            async with asyncio.timeout(STOP_WITHIN_S):
                return await process.wait()
        except TimeoutError:
            raise NotInTime(
                f"the system did not stop within {STOP_WITHIN_S:g} s and was killed"
            ) from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    def url(self, service: str) -> str:
        """Return where a service is; after a restart it is somewhere else."""
        assert self._info is not None
        return self._info.services[service]

    @property
    def gateways(self) -> list[str]:
        """Where the ways in from outside are; after a restart of the system, somewhere else."""
        assert self._info is not None
        return list(self._info.gateways.values()) or [self._info.gateway]

    @property
    def gateway(self) -> str:
        """One of the ways in, in turn."""
        self._turn += 1
        return self.gateways[self._turn % len(self.gateways)]

    async def ask(
        self, method: str, path: str, body: object = None, within_s: float = ASK_WITHIN_S
    ) -> Any:
        """Ask the control socket. Raises ConfigError where it does not answer as it should."""
        assert self._info is not None
        headers = {"authorization": f"Bearer {self._info.token}"}
        return await self._request(self._info.control, method, path, body, headers, within_s)

    async def run(self, *words: str) -> Any:
        """Run `synchromesh WORDS --json` in the folder, as a person would, and return its answer.

        Raises:
            ConfigError: it is no success and no finding, or said nothing.
        """
        process = await asyncio.create_subprocess_exec(
            *COMMAND, *words, "--json", cwd=self.folder, stdin=DEVNULL, stdout=PIPE, stderr=PIPE
        )
        said, error = await process.communicate()
        if process.returncode not in (0, FINDING) or not said:
            told = error.decode(errors="replace").strip()
            raise ConfigError(f"synchromesh {' '.join(words)} ended {process.returncode}: {told}")
        return msgspec.json.decode(said)

    async def status(self) -> Any:
        """Return the system's status, once every service and the gateway answer for themselves.

        Raises:
            NotInTime: one has not for five minutes.
        """
        found: Any = None

        async def is_whole() -> bool:
            nonlocal found
            found = await self.ask("GET", "/status")
            return not _down(found)

        if not await until(is_whole, START_WITHIN_S):
            down = _down(found)
            raise NotInTime(f"{', '.join(down)} did not come up within {START_WITHIN_S:g} s")
        return found

    async def processes(self) -> dict[str, int]:
        """Return the process of each service and gateway, or replica of one, once all are up."""
        status = await self.status()
        parts = {**status["services"], **_gateways(status)}
        return {name: int(each["pid"]) for name, each in parts.items()}

    async def processes_of(self, service: str) -> dict[str, int]:
        """Return the process of a service, or of each of its replicas, once all are up."""
        every = await self.processes()
        return {name: pid for name, pid in every.items() if name.partition("#")[0] == service}

    async def restarts(self) -> dict[str, int]:
        """Return how often each child, such as "service/orders", was started again by itself."""
        children = (await self.status())["children"]
        return {name: int(child["restarts"]) for name, child in children.items()}

    async def make_keys(
        self, principals: Iterable[str], *scopes: str, expires_in_s: float | None = None
    ) -> dict[str, str]:
        """Make an API key to the gateway for each principal, as `gateway key add` does.

        A gateway that runs knows of them within a second; one that starts later, at once.
        """
        runtime, rundir = RealRuntime(), RunDir(self.folder)
        rundir.create()
        file = keys_file_of(definition, rundir, runtime.disk)
        keys, expires = {}, None
        if expires_in_s is not None:
            expires = to_datetime(runtime.wall_us() + int(expires_in_s * 1e6))
        for principal in sorted(principals):
            keys[principal], made = make_key(
                principal, scopes, rng=runtime.secret_rng, expires=expires
            )
            file.add(made)
        return keys

    async def set_faults(self, mode: str, delay_s: float | None = None) -> None:
        """Turn the fault switch of the credit provider."""
        wanted = {"mode": mode} if delay_s is None else {"mode": mode, "delay_s": delay_s}
        await self._request(self.url("credit_provider"), "POST", "/_faults", wanted, {})

    def in_flight(self) -> tuple[str, ...]:
        """Return the sagas that have not ended, as the databases have them; none must run."""
        with opened(self._place, SERVICES) as databases:
            return tuple(
                str(saga_id)
                for database in databases.values()
                for (saga_id,) in database.execute(UNFINISHED)
            )

    async def is_settled(self) -> bool:
        """Return True where all runs, no saga is under way and every message has been taken."""
        status = await self.ask("GET", "/status")
        return not any(
            not _is_up(each)
            or each["sagas"].get("running", 0)
            or each["sagas"].get("compensating", 0)
            or any(each["behind"].values())
            for each in status["services"].values()
        )

    async def recovered(self, service: str = "") -> int:
        """Return how many sagas a service, or all, continued since its processes came up."""
        status = await self.status()
        return sum(
            each["sagas_since_start"].get("recovered", 0)
            for name, each in status["services"].items()
            if service in ("", name.partition("#")[0])
        )

    async def _published(self, process: Process) -> RunInfo:
        while True:
            if process.returncode is not None:
                raise self._end(process.returncode)
            try:
                info = RunDir(self.folder).read()
            except ConfigError:
                info = None
            # A killed system leaves its run.json behind; only that of this process counts.
            if info is not None and info.pid == process.pid:
                return info
            await asyncio.sleep(POLL_S)

    async def _watch_over(self, process: Process) -> None:
        code = await process.wait()
        if self._process is process and not self.ended.done():
            self.ended.set_exception(self._end(code))
            self.ended.exception()  # whoever waits for it is told; nobody has to

    def _end(self, code: int) -> SystemEnded:
        said = (self.folder / "dev.log").read_text(errors="replace").strip().splitlines()
        last = "\n".join(said[-5:]) or "it said nothing"
        return SystemEnded(
            f"the system ended by itself with exit code {code}; its last words:\n{last}",
            is_mistake=code == USER_MISTAKE,
        )

    def _release(self) -> Process | None:
        process, self._process = self._process, None
        return process

    async def _request(
        self,
        url: str,
        method: str,
        path: str,
        body: object,
        headers: dict[str, str],
        within_s: float = ASK_WITHIN_S,
    ) -> Any:
        place = urlsplit(url)
        data = b"" if body is None else msgspec.json.encode(body)
        if data:
            headers = {**headers, "content-type": "application/json"}
        try:
            response = await self._pool.request(
                place.hostname or "", place.port or 80, method, path, headers.items(), data,
                timeout_s=within_s, is_idempotent=True,
            )  # fmt: skip
        except SynchromeshError as error:
            raise ConfigError(f"{method} {url}{path} was not answered: {error.message}") from error
        if response.status != 200:
            said = response.body[:200].decode(errors="replace")
            raise ConfigError(f"{method} {url}{path} was answered {response.status}: {said}")
        return msgspec.json.decode(response.body)


def _down(status: dict[str, Any]) -> list[str]:
    """Return the services, and the gateways, that do not answer for themselves."""
    down = [name for name, each in status["services"].items() if not _is_up(each)]
    return [*down, *(name for name in _gateways(status) if name not in status["clients"])]


def _gateways(status: dict[str, Any]) -> dict[str, Any]:
    """Return the gateways by name."""
    alone = {"gateway": status["gateway"]} if status["gateway"] else {}
    return status["gateways"] or alone


def _is_up(service: dict[str, Any]) -> bool:
    """Return whether it is the service that tells its status, and it is well."""
    return bool(service["instances"]) and bool(service["health"]["is_healthy"])


async def until(holds: Callable[[], bool | Awaitable[bool]], within_s: float) -> bool:
    """Look again and again; return True once it holds, False where it does not in time."""
    until_s = asyncio.get_running_loop().time() + within_s
    while True:
        held = holds()
        if held if isinstance(held, bool) else await held:
            return True
        if asyncio.get_running_loop().time() > until_s:
            return False
        await asyncio.sleep(POLL_S)


@contextmanager
def databases_in(folder: Path) -> Iterator[Path | str]:
    """Return where the databases of a system that has stopped are: a folder, or a server's URL.

    A server that was stopped with it is started meanwhile.
    """
    rundir = RunDir(folder)
    if PostgresEngine.name not in rundir.engines():
        yield rundir.data
        return
    engine = PostgresEngine(rundir.path)
    with asyncio.Runner() as runner:
        runner.run(engine.start())
        try:
            yield engine.url
        finally:
            runner.run(engine.stop())


def with_replicas(number: int, services: Iterable[str] = REPLICATED) -> tuple[str, ...]:
    """Return the flags of `synchromesh dev` for so many of each service, and of the gateway.

    Example:
        >>> with_replicas(2, ["orders"])
        ('--set', 'services.orders.replicas=2', '--set', 'gateway.replicas=2')
    """
    parts = [*(f"services.{name}" for name in services), "gateway"]
    return tuple(word for part in parts for word in ("--set", f"{part}.replicas={number}"))


def copy_shipped(folder: Path) -> None:
    """Copy servo-works as it ships into a folder; the shipped one may be read-only."""
    ignored = ignore_patterns("__pycache__", ".synchromesh", "demo", "simulation", "universes")
    copytree(SHIPPED, folder, ignore=ignored, copy_function=copyfile, dirs_exist_ok=True)
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(0o700)


def set_rates(folder: Path, rates: Rates) -> None:
    """Set the gateway's rate limits, in a folder made by `copy_shipped`."""
    (folder / "data" / "rates.json").write_bytes(msgspec.json.encode(rates))
