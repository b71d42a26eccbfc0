"""`synchromesh dev --reload`: takes up changed code once no more changes come.

With a process for each service those are replaced whose code has changed. A system of one process
is checked in another one first, then stopped in good order and started anew, at the same addresses:
what was acknowledged is in its databases. A broken edit replaces nothing, and is shown.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from synchromesh.cli.output import visible
from synchromesh.errors import MissingExtra, SynchromeshError
from synchromesh.system.config.rundir import RunInfo
from synchromesh.system.config.schema import FILE_NAME, SystemConfig

if TYPE_CHECKING:
    from synchromesh.system import System

QUIET_S = 0.3
IGNORED = frozenset({"__pycache__", "node_modules", "venv", "build", "dist", "site"})
# Set for a process that has started itself anew: there is nobody else to be told of a mistake.
AGAIN = "SYNCHROMESH_DEV_AGAIN"


def is_watched(folder: Path, path: str) -> bool:
    """Say whether a change there may be one of code: no caches, databases or run directory.

    Example:
        >>> is_watched(Path("/shop"), "/shop/services/orders.py")
        True
        >>> is_watched(Path("/shop"), "/shop/.synchromesh/data/orders.db-wal")
        False
    """
    try:
        parts = Path(path).relative_to(folder).parts
    except ValueError:
        return False
    if any(part.startswith(".") or part in IGNORED for part in parts):
        return False
    # Of a folder that was moved in only the folder is named.
    return Path(path).suffix in (".py", ".toml", "")


async def quiet_changes(folder: Path) -> AsyncIterator[None]:
    """Yield each time that something has changed, once nothing has for a while."""
    changes = _awatch()(
        folder, watch_filter=lambda _, path: is_watched(folder, path), step=50, debounce=100
    )
    coming = asyncio.ensure_future(anext(changes))
    try:
        while True:
            await coming
            while True:
                # A file that is being written is reported again and again.
                coming = asyncio.ensure_future(anext(changes))
                done, _ = await asyncio.wait([coming], timeout=QUIET_S)
                if not done:
                    break
                await coming
            yield
    finally:
        coming.cancel()


def _awatch() -> Callable[..., AsyncGenerator[object, None]]:
    try:
        from watchfiles import awatch
    except ImportError as error:
        raise MissingExtra("reload", needed_for="dev --reload") from error
    return awatch


class Reloader:
    """Takes up changed code of a running system.

    Args:
        settings: those of the command line, for the check of the new code.

    Attributes:
        is_over: whether all of it has to start anew, once it has stopped.

    Raises:
        MissingExtra: the extra `reload` is not installed.
    """

    def __init__(
        self,
        system: System,
        config: SystemConfig,
        folder: Path,
        settings: Sequence[str],
        *,
        is_split: bool,
    ) -> None:
        _awatch()
        self._system = system
        self._config = config
        self._folder = folder
        self._settings = settings
        self._is_split = is_split
        self._file = digest_of(folder)
        self._refused: dict[str, str] = {}
        self._kept: list[str] = []
        self.is_over = False

    async def run(self, stop: asyncio.Event) -> None:
        """Wait for changes and take them up; set `stop` once the whole system has to start anew."""
        async for _ in quiet_changes(self._folder):
            changed = self._system.code_changed
            is_whole = digest_of(self._folder) != self._file
            if is_whole or (changed and not self._is_split):
                _say(f"{', '.join(_files(changed)) or FILE_NAME} changed")
                if await self._is_sound():
                    break
            elif changed:
                await self._replace(changed)
        self._kept, self.is_over = _kept(self._config, self._system.info), True
        stop.set()

    def start_anew(self) -> NoReturn:
        """Become a new interpreter that runs the same command, at the addresses of before."""
        _become([*sys.orig_argv, *self._kept])

    async def _replace(self, changed: dict[str, list[str]]) -> None:
        """Replace what has changed, one after the other; a contract may change on both sides."""
        reason = "its code and another's changed together" if len(changed) > 1 else ""
        for name, files in changed.items():
            state = "".join(_digest(self._folder / file) for file in files)
            if self._refused.get(name) == state:
                continue  # it was tried, and is as it was
            _say(f"{name}: {', '.join(files)} changed")
            try:
                refused = await self._system.replace(name, reason)
            except SynchromeshError as error:
                refused = [error.message]
            self._refused[name] = state if refused else ""
            if refused:
                _say(f"{name} runs on with what it had: {'; '.join(refused)}", is_bad=True)
            else:
                _say(f"{name} runs anew")

    async def _is_sound(self) -> bool:
        """Check the new code in another process, and say what is wrong with it."""
        flags = [word for setting in self._settings for word in ("--set", setting)]
        command = (*COMMAND, "--folder", str(self._folder), "config", "check", *flags)
        checking = await asyncio.create_subprocess_exec(
            *command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        _, said = await checking.communicate()
        if checking.returncode == 0:
            return True
        self._file = digest_of(self._folder)
        _say(f"it runs on with what it had: {said.decode(errors='replace').strip()}", is_bad=True)
        return False


COMMAND = (sys.executable, "-m", "synchromesh.cli")


def digest_of(folder: Path) -> str:
    """Return a digest of the system's file of configuration."""
    return _digest(folder / FILE_NAME)


def try_again(folder: Path, error: SynchromeshError) -> NoReturn:
    """Show why a new start failed, wait for a change, and start anew."""
    _say(f"it is not started: {error.message}; waiting for a change", is_bad=True)

    async def changes() -> None:
        async for _ in quiet_changes(folder):
            return

    asyncio.run(changes())
    _become(list(sys.orig_argv))


def _become(words: list[str]) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os.environ[AGAIN] = "1"
    os.execv(sys.executable, [sys.executable, *words[1:]])  # noqa: S606  our own command


def _kept(config: SystemConfig, info: RunInfo) -> list[str]:
    """Return the settings that keep addresses which were any free ones."""
    ports = {
        f"services.{name}.port": info.services[name]
        for name, section in config.services.items()
        if not section.port and name in info.services
    }
    if info.gateway and not config.gateway.port and not info.gateways:
        ports["gateway.port"] = info.gateway
    if not config.system.control_port:
        ports["system.control_port"] = info.control
    if info.admin and not config.admin.port:
        ports["admin.port"] = info.admin
    return [w for key, url in ports.items() for w in ("--set", f"{key}={url.rpartition(':')[2]}")]


def _files(changed: dict[str, list[str]]) -> list[str]:
    return sorted({file for files in changed.values() for file in files})


def _digest(path: Path) -> str:
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except OSError:
        return ""


def _say(text: str, *, is_bad: bool = False) -> None:
    click.echo(click.style(f"reload: {visible(text)}", fg="red" if is_bad else "cyan"), err=True)
