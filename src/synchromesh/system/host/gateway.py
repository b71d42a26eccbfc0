"""The gateway of a system: checked before anything listens, served by a server of its own.

Its API keys are a file of the run directory, hashed, for this user alone; commands change it while
the system runs, and the gateway reads it again within a second.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from socket import AF_INET, AF_INET6, create_server, socket

import msgspec

from synchromesh.calls import Caller, Operation
from synchromesh.errors import ConfigError
from synchromesh.gateway import (
    Aggregate,
    ApiKey,
    ApiKeys,
    Forward,
    Gateway,
    GatewayEngine,
    KeysFile,
    Route,
)
from synchromesh.gateway.auth import Auth
from synchromesh.gateway.check import CompiledRoute, Reading, read, refusal_of
from synchromesh.gateway.keys import parse_keys
from synchromesh.http import HttpServer
from synchromesh.runtime import BACKLOG, Disk, DiskRuntime, Network, Runtime
from synchromesh.system.config.rundir import RunDir, refuse_shared, write_private
from synchromesh.system.config.schema import SystemConfig
from synchromesh.telemetry import Tracer


class ServedGateway:
    """Serves the gateway of a system; `start`, then `drain`, then `close`.

    Args:
        network: where it listens.
        externals: the services that are not ours; they are not told who asks.
    """

    def __init__(
        self,
        definition: Gateway,
        *,
        caller: Caller,
        tracer: Tracer,
        runtime: DiskRuntime,
        rundir: RunDir,
        network: Network,
        externals: Iterable[str],
    ) -> None:
        self._definition = definition
        self._externals = frozenset(externals)
        self._caller = caller
        self._tracer = tracer
        self._runtime = runtime
        self._rundir = rundir
        self._network = network
        self._engine: GatewayEngine | None = None
        self._server: HttpServer | None = None
        self._url = ""

    @property
    def url(self) -> str:
        """Where clients reach it; "" before it has started."""
        return self._url

    async def start(self, host: str, port: int, entries: Sequence[CompiledRoute]) -> None:
        """Read the keys and listen; a file of keys that is missing is made, with no keys in it.

        Args:
            entries: what `check_gateway` made of the definition.

        Raises:
            ConfigError: the keys have mistakes, or it cannot listen there.
        """
        for auth in self._definition.auth:
            path = own_keys_path(auth, self._rundir)
            if path is not None and not path.exists():
                ApiKeysFile(path, self._runtime.disk).write(())
        self._engine = await GatewayEngine.open(
            self._definition,
            caller=self._caller,
            tracer=self._tracer,
            runtime=self._runtime,
            folder=self._rundir.path,
            externals=self._externals,
            entries=entries,
        )
        self._server = HttpServer(self._engine, network=self._network, streaming=self._engine)
        await self._server.start(host, port)
        self._url = self._server.url

    async def run(self) -> None:
        """Keep the keys as their files are; a supervised loop."""
        assert self._engine is not None
        await self._engine.run()

    async def drain(self, within_s: float) -> None:
        """Take no more requests, and answer what was taken; what is left after that is cut."""
        if self._server is not None:
            await self._server.drain(within_s)

    async def close(self) -> None:
        """Stop listening, and end what verifies keys. May be repeated."""
        if self._server is not None:
            await self._server.close()
        if self._engine is not None:
            await self._engine.close()

    def __repr__(self) -> str:
        return f"<ServedGateway {len(self._definition.routes)} routes>"


def open_socket(host: str, port: int) -> socket:
    """Return a socket for the gateway's processes to accept on, whichever of them runs.

    Clients that come before there is one wait in it.

    Raises:
        ConfigError: it cannot listen there.
    """
    family = AF_INET6 if ":" in host else AF_INET
    try:
        return create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"the gateway cannot listen on {host}:{port}: {error.strerror or error}; stop what "
            "listens there, or choose another [gateway] port, or 0 to take a free one"
        ) from error


async def check_gateway(
    gateway: Gateway, config: SystemConfig, rundir: RunDir, runtime: Runtime
) -> tuple[CompiledRoute, ...]:
    """Check a gateway whole: routes, args, the services that it leads to, and its keys.

    Returns what `ServedGateway.start` is to serve, so that a start reads the definition once.

    Nothing is written, and nothing listens. Must run where a loop runs.

    Raises:
        ConfigError: there are mistakes; the message names them all.
    """
    reading = await read_gateway(gateway, config, rundir, runtime)
    if reading.mistakes:
        raise refusal_of(reading.mistakes)
    return reading.entries


async def read_gateway(
    gateway: Gateway, config: SystemConfig, rundir: RunDir, runtime: Runtime
) -> Reading:
    """Read a gateway with every mistake that `check_gateway` would name, each a sentence."""
    reading = read(gateway)
    mistakes = [
        *reading.mistakes,
        *_unknown_services(gateway, {*config.services, *config.external}),
    ]
    for auth in gateway.auth:
        try:
            path = own_keys_path(auth, rundir)
            if path is not None:
                if not path.exists():
                    continue
                refuse_shared(path)
            await auth.open(rundir.path, runtime).close()
        except ConfigError as error:
            mistakes.append(error.message)
    return Reading(reading.entries, tuple(mistakes))


def _unknown_services(gateway: Gateway, known: set[str]) -> Iterator[str]:
    for route in gateway.routes:
        if isinstance(route, Forward) and route.to not in known:
            yield (
                f"{route.route}: leads to {route.to!r}, and the system has neither a service nor "
                f"an external one of that name; it has: {', '.join(sorted(known))}"
            )
        for operation in _operations_of(route):
            # What is none is named by the check of the definition.
            if isinstance(operation, Operation) and operation.service not in known:
                yield (
                    f"{route.route}: leads to {operation.full_name}, and the system has no "
                    f"service {operation.service!r}; it has: {', '.join(sorted(known))}"
                )


def _operations_of(route: object) -> list[object]:
    if isinstance(route, Route):
        return [route.operation]
    if isinstance(route, Aggregate):
        return [getattr(branch, "operation", None) for branch in route.branches.values()]
    return []


def own_keys_path(auth: Auth, rundir: RunDir) -> Path | None:
    """Return the file of keys that is the system's own; None for other kinds of credentials.

    A file outside the run directory belongs to whoever put it there.
    """
    if not isinstance(auth, ApiKeys):
        return None
    path = rundir.path / auth.file
    return path if path.parent == rundir.path else None


def keys_file_of(gateway: Gateway, rundir: RunDir, disk: Disk) -> ApiKeysFile:
    """Return the file that commands keep the keys of a gateway in.

    Raises:
        ConfigError: the gateway has no API keys, or keeps them elsewhere.
    """
    for auth in gateway.auth:
        path = own_keys_path(auth, rundir)
        if path is not None:
            return ApiKeysFile(path, disk)
    raise ConfigError(
        "the gateway has no API keys in the run directory; add ApiKeys() to its auth, with a file "
        "name alone"
    )


class ApiKeysFile:
    """The file of API keys, changed by one command at a time, and whole or not at all."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self._path = path
        self._disk = disk

    def read(self) -> tuple[ApiKey, ...]:
        """Return the keys; none where there is no file.

        Raises:
            ConfigError: the file is wrong, or can be read by others.
        """
        try:
            refuse_shared(self._path)
            data = self._path.read_bytes()
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise ConfigError(f"{self._path} cannot be read: {error.strerror}") from error
        return tuple(parse_keys(data, str(self._path)).values())

    def write(self, keys: Iterable[ApiKey]) -> None:
        """Replace the keys.

        Raises:
            ConfigError: a key is wrong, or the file cannot be written.
        """
        data = msgspec.json.format(msgspec.json.encode(KeysFile(tuple(keys))), indent=2)
        parse_keys(data, str(self._path))
        write_private(self._path, data + b"\n")

    def add(self, key: ApiKey) -> None:
        """Add a key.

        Raises:
            ConfigError: the key or the file is wrong, or another command changes the file.
        """
        with self._alone():
            self.write((*self.read(), key))

    def remove(self, key_id: str) -> ApiKey:
        """Remove a key by its id and return it.

        Raises:
            ConfigError: there is no such key, or as for `add`.
        """
        with self._alone():
            keys = self.read()
            for key in keys:
                if key.id == key_id:
                    self.write(each for each in keys if each is not key)
                    return key
        known = ", ".join(key.id for key in keys) or "none"
        raise ConfigError(f"there is no API key {key_id[:40]!r}; the ids are: {known}")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            lock = self._disk.try_lock(str(self._path))
        except OSError as error:
            raise ConfigError(f"{self._path}.lock cannot be written: {error.strerror}") from error
        if lock is None:
            raise ConfigError(f"another command changes {self._path}; try again")
        try:
            yield
        finally:
            lock.release()

    def __repr__(self) -> str:
        return f"<ApiKeysFile {self._path.name}>"
