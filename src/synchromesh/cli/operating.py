"""The control of the system of a folder: of `dev` that runs here, or of replicas on any hosts."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from synchromesh.cli.control import ControlClient
from synchromesh.cli.output import print_error
from synchromesh.errors import (
    ConfigError,
    DiscoveryError,
    MissingExtra,
    RemoteFailed,
    SynchromeshError,
)
from synchromesh.system.config.rundir import RunDir, user

if TYPE_CHECKING:
    from synchromesh.system.config.schema import SystemConfig
    from synchromesh.system.control.spread import AllReplicas
    from synchromesh.system.control.successors import Followed, RestartReport

T = TypeVar("T")

FINDING = 1


class ReplicasClient:
    """A client of all replicas of a system that nobody supervises, like a `ControlClient`."""

    def __init__(self, config: SystemConfig, folder: Path) -> None:
        self._config = config
        self._folder = folder

    def is_anybody_there(self) -> bool:
        """Return whether a replica is registered."""

        async def look(replicas: AllReplicas) -> bool:
            return bool(replicas.replicas)

        return self._run(look)

    def restart(
        self, name: str, *, within_s: float, note: Callable[[Followed], None]
    ) -> RestartReport:
        """Restart replicas one by one; `note` is told of each."""
        return self._run(lambda replicas: replicas.restart(name, within_s=within_s, note=note))

    def get(self, path: str) -> Any:
        """Send a GET request and return the answer."""
        return self._ask("GET", path, b"")

    def post(self, path: str, body: object, *, within_s: float = 0.0) -> Any:  # noqa: ARG002
        """Send a POST request and return the answer; each verb has a bound of its own."""
        import msgspec

        return self._ask("POST", path, msgspec.json.encode(body))

    def _ask(self, method: str, path: str, body: bytes) -> Any:
        """Return the answer as it would come over HTTP."""
        import msgspec

        answer = self._run(lambda replicas: replicas.answer(method, path, body))
        return msgspec.json.decode(msgspec.json.encode(answer))

    def _run(self, ask: Callable[[AllReplicas], Coroutine[Any, Any, T]]) -> T:
        """Ask the replicas.

        Raises:
            ConfigError: nobody is there to be asked, or what was asked for is wrong.
            RemoteFailed: a replica failed.
        """
        import asyncio

        from synchromesh.system.control.spread import all_replicas

        async def asking() -> T:
            async with all_replicas(self._config, self._folder, user()) as replicas:
                return await ask(replicas)

        try:
            return asyncio.run(asking())
        except (ConfigError, MissingExtra, RemoteFailed):
            raise
        except SynchromeshError as error:
            if error.status >= 500:
                raise RemoteFailed(error.message) from error
            raise


def client_of(folder: Path) -> ControlClient | ReplicasClient | None:
    """Return a client of the system of a folder; None where it is stopped.

    A registry that cannot be asked who runs is told of, and taken for one in which nobody is.
    """
    if RunDir(folder).is_running():
        return ControlClient(folder)
    client = _client_elsewhere(folder)
    try:
        return client if client is not None and client.is_anybody_there() else None
    except (ConfigError, DiscoveryError) as error:
        print_error(f"replicas were not asked: {error.message}")
        return None


def control_of(folder: Path) -> ControlClient | ReplicasClient:
    """Return a client of the system of a folder.

    Raises:
        ConfigError: no system runs in the folder, and its replicas could not be found elsewhere.
    """
    if (client := _client_elsewhere(folder)) is not None:
        return client
    try:
        return ControlClient(folder)
    except ConfigError:
        if (folder / "synchromesh.toml").exists():
            _configuration(folder)  # what is wrong with it is why nobody was found
        raise


def here_alone(folder: Path, instead: str) -> ControlClient:
    """Return a client of the system that runs in a folder, for a verb that replicas have not.

    Args:
        instead: what to do where the system is replicas that nobody supervises, a sentence.

    Raises:
        ConfigError: no system runs in the folder.
    """
    if _client_elsewhere(folder) is not None:
        raise ConfigError(
            f"no system runs in this folder, and replicas by synchromesh run have no such verb: "
            f"{instead}"
        )
    return ControlClient(folder)


def is_elsewhere(folder: Path) -> bool:
    """Return whether a system is configured to be replicas elsewhere, and does not run here."""
    return _client_elsewhere(folder) is not None


def say_silent(answer: dict[str, Any]) -> int:
    """Say which replicas did not do what all of them were to; return the exit code."""
    silent = answer.get("silent", ())
    for each in silent:
        print_error(f"not done by {each}")
    return FINDING if silent else 0


def _client_elsewhere(folder: Path) -> ReplicasClient | None:
    """Return a client of replicas elsewhere; None where none can be, or a system runs here."""
    # Where nothing is configured, nothing is loaded to say that nothing runs.
    if RunDir(folder).is_running() or not (folder / "synchromesh.toml").exists():
        return None
    try:
        config = _configuration(folder)
    except ConfigError:
        return None  # that nothing runs here is said
    return ReplicasClient(config, folder) if config.engine.nats and config.system.key else None


def _configuration(folder: Path) -> SystemConfig:
    from synchromesh.system.config.reading import load_config

    return load_config(folder, environment=os.environ)
