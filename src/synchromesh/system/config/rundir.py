"""The run directory `.synchromesh/`: databases, telemetry, the system's key, and `run.json`.

It belongs to its user alone (0700), as do the key and `run.json` (0600), for the token in it is the
right to command the system.
"""

from __future__ import annotations

import datetime as dt
import os
import pwd
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from synchromesh.errors import ConfigError
from synchromesh.runtime import Disk, FileLock

DIR_NAME = ".synchromesh"
KEY_BYTES = 32


class RunInfo(msgspec.Struct, frozen=True):
    """`run.json`: the address of a running system's control API, and its token.

    Attributes:
        pid: the process that runs it.
        control: the URL of its control socket.
        services: the URL of each service, or of each of its replicas, and of each external one.
        gateway: the URL of the way in from outside; "" where there is none.
        gateways: those of all of them, by name, where there are several.
        admin: the URL of the admin listener of that process.
        admin_of: those of the processes of its parts, where they have their own, by part.
    """

    pid: int
    system: str
    control: str
    token: str
    services: dict[str, str]
    gateway: str = ""
    admin: str = ""
    admin_of: dict[str, str] = {}
    gateways: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<RunInfo {self.system}, process {self.pid} at {self.control}>"  # without the token


class Blocked(msgspec.Struct, frozen=True):
    """A process whose event loop is blocked, and by what."""

    pid: int
    by: str


class RunDir:
    """The files of one system's runs below its folder, or at a path of their own."""

    def __init__(self, folder: Path, path: Path | None = None) -> None:
        self.folder = folder
        self.path = path or folder / DIR_NAME
        self.data = self.path / "data"
        self.telemetry = self.path / "telemetry"
        self._info = self.path / "run.json"
        self._key = self.path / "system.key"
        self._engines = self.path / "engines.json"
        self._console = self.path / "console.port"
        self.clients = self.path / "clients.json"

    def create(self) -> None:
        """Create the directory, private to this user; what exists is kept.

        Raises:
            ConfigError: the folder cannot be made or written, or belongs to somebody else.
        """
        # A system's own folder has to be there.
        is_apart = self.path.parent != self.folder
        try:
            for path in (self.path, self.data, self.telemetry):
                path.mkdir(mode=0o700, parents=is_apart, exist_ok=True)
                path.chmod(0o700)
            # Version control must not take in the key, whatever the system's own rules say.
            write_private(self.path / ".gitignore", b"*\n")
        except FileExistsError as error:
            raise ConfigError(
                f"{error.filename} is a file, and the run directory needs a folder there; "
                "move the file away"
            ) from error
        except OSError as error:
            raise ConfigError(
                f"the run directory {self.path} cannot be used: {error.strerror}; "
                "make the folder writable"
            ) from error

    def lock(self, disk: Disk, part: str = "") -> FileLock:
        """Lock the directory for the one process that runs this system, or only a part of it.

        Raises:
            ConfigError: another process runs it, or the lock cannot be written.
        """
        place = str(self.path / (f"run-{part}" if part else "system"))
        try:
            lock = disk.try_lock(place)
        except OSError as error:
            raise _unwritable(Path(f"{place}.lock"), error) from error
        if lock is None:
            what = repr(part) if part else "the system"
            raise ConfigError(
                f"{what} in {self.path.parent} is already run by {disk.owner_of(place)}; "
                "stop it first, or use it"
            )
        return lock

    def key(self) -> bytes:
        """Return the signing key, generated at the first start.

        Raises:
            ConfigError: it can be read by others, or is damaged.
        """
        if not self._key.exists():
            write_private(self._key, secrets.token_bytes(KEY_BYTES))
        refuse_shared(self._key)
        key = self._key.read_bytes()
        if len(key) != KEY_BYTES:
            raise ConfigError(
                f"{self._key} is damaged: it has {len(key)} bytes, not {KEY_BYTES}; remove it, "
                "and the next start makes another"
            )
        return key

    def database(self, service: str) -> str:
        """Return the path of a service's database."""
        return str(self.data / f"{service}.db")

    def archive(self, service: str, what: str, at_us: int) -> str:
        """Return the file of a month for what a service forgets."""
        at = dt.datetime.fromtimestamp(at_us / 1e6, dt.UTC)
        return str(self.path / "archive" / service / f"{what}-{at:%Y-%m}.jsonl")

    def forget_logs(self, before_us: int) -> None:
        """Remove the files of telemetry that nobody has written since a time."""
        with suppress(OSError):
            for path in self.telemetry.iterdir():
                if path.is_file() and path.stat().st_mtime * 1e6 < before_us:
                    path.unlink()

    @property
    def own_nats(self) -> str:
        """A reference to the address of the NATS server that `dev` starts in this folder."""
        return f"file:{(self.path / 'nats').absolute() / 'url'}"

    def note_engines(self, names: Sequence[str]) -> None:
        """Note which servers were started with the system; the next note goes before it."""
        if sorted(names) != self.engines():
            write_private(self._engines, msgspec.json.encode(sorted(names)))

    def engines(self) -> list[str]:
        """Return which servers were started with the system when it ran last."""
        try:
            return msgspec.json.decode(self._engines.read_bytes(), type=list[str])
        except (OSError, msgspec.MsgspecError):
            return []

    def note_console(self, port: int) -> None:
        """Note where the console listens: after a restart its pages find it there again."""
        write_private(self._console, b"%d" % port)

    def console_port(self) -> int:
        """Return where the console listened last; 0 where that is not known."""
        try:
            port = int(self._console.read_bytes())
        except (OSError, ValueError):
            return 0
        return port if 0 < port < 65536 else 0

    def publish(self, info: RunInfo) -> None:
        """Write `run.json` atomically."""
        write_private(self._info, msgspec.json.format(msgspec.json.encode(info), indent=2))

    def withdraw(self) -> None:
        """Remove `run.json` once the system has stopped. May be repeated."""
        self._info.unlink(missing_ok=True)

    def note_blocked(self, name: str, by: str) -> None:
        """Say for others what blocks the event loop of this process; "" once nothing does.

        Args:
            name: the part that the process is; "" for a whole system.
        """
        path = self._blocked(name)
        with suppress(OSError, ConfigError):  # it is in the log too
            if by:
                write_private(path, msgspec.json.encode(Blocked(os.getpid(), by)))
            else:
                path.unlink(missing_ok=True)

    def blocked_by(self, name: str, pid: int) -> str:
        """Return what blocks the event loop of a process; "" where nothing is known to."""
        try:
            noted = msgspec.json.decode(self._blocked(name).read_bytes(), type=Blocked)
        except (OSError, msgspec.MsgspecError):
            return ""
        return noted.by if noted.pid == pid else ""

    def _blocked(self, name: str) -> Path:
        return self.telemetry / (f"blocked-{name}.json" if name else "blocked.json")

    def is_running(self) -> bool:
        """Return whether a process runs the system; one that was killed has left `run.json`."""
        try:
            os.kill(self.read().pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        except ConfigError:
            # One that cannot be read is named by whoever needs what is in it.
            return self._info.exists()
        return True

    def read(self) -> RunInfo:
        """Read `run.json`.

        Raises:
            ConfigError: no system runs here, or the file can be read by others.
        """
        try:
            refuse_shared(self._info)
            return msgspec.json.decode(self._info.read_bytes(), type=RunInfo)
        except FileNotFoundError:
            raise ConfigError(
                f"no system runs in {self.path.parent}; start one there with: synchromesh dev, "
                "or go to the folder of the one that runs"
            ) from None
        except (OSError, msgspec.MsgspecError) as error:
            raise ConfigError(
                f"{self._info} cannot be read ({error}); restart the system"
            ) from error


def user() -> str:
    """Return the name of who runs this, or their number where they have none."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def refuse_shared(path: Path) -> None:
    """Raise `ConfigError` for a secret file that other users may read."""
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise ConfigError(f"{path} can be read by others; make it private: chmod 600 {path}")


@contextmanager
def changing(path: Path, disk: Disk) -> Iterator[None]:
    """Have a private file for one command at a time, from before it is read until it is written.

    Raises:
        ConfigError: another command has it, or nothing can be written there.
    """
    try:
        lock = disk.try_lock(str(path))
    except OSError as error:
        raise ConfigError(f"{path}.lock cannot be written: {error.strerror}") from error
    if lock is None:
        raise ConfigError(f"another command changes {path}; try again")
    try:
        yield
    finally:
        lock.release()


def write_private(path: Path, data: bytes) -> None:
    """Write a private file atomically.

    Raises:
        ConfigError: it cannot be written.
    """
    temporary = path.with_suffix(".new")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(handle, "wb") as file:
            # One that a power cut left keeps the rights that it had.
            os.fchmod(handle, 0o600)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{path} cannot be written: {error.strerror}; make room on the disk, or make it writable"
    )
