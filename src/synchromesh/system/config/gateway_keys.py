"""The API keys of a gateway: hashes, in a private file of the run directory.

Commands change it while the system runs, and the gateway reads it again within a second.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import msgspec

from synchromesh.errors import ConfigError
from synchromesh.gateway import ApiKey, ApiKeys, Gateway, KeysFile
from synchromesh.gateway.keys import parse_keys
from synchromesh.gateway.names import reserved_prefixes
from synchromesh.gateway.principal import Auth, Folders, taken_name
from synchromesh.runtime import Disk
from synchromesh.system.config.rundir import RunDir, changing, refuse_shared, write_private


def folders_of(rundir: RunDir) -> Folders:
    """Return where the files of credentials are."""
    return Folders(system=rundir.folder, run=rundir.path)


def own_keys_path(auth: Auth, rundir: RunDir) -> Path | None:
    """Return the system's own file of keys; None for other kinds of credentials.

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
            return ApiKeysFile(path, disk, reserved_prefixes(gateway.auth))
    raise ConfigError(
        "the gateway has no API keys in the run directory; add ApiKeys() to its auth, with a file "
        "name alone"
    )


def keys_of_folder(gateway: Gateway, rundir: RunDir, disk: Disk) -> tuple[ApiKey, ...]:
    """Return the keys that commands have kept in the run directory; none where there are none.

    Raises:
        ConfigError: their file is wrong, or can be read by others.
    """
    paths = [own_keys_path(auth, rundir) for auth in gateway.auth]
    path = next((each for each in paths if each is not None), None)
    return () if path is None else ApiKeysFile(path, disk).read()


class ApiKeysFile:
    """The file of API keys, changed atomically and by one command at a time.

    Args:
        reserved: what the names of principals begin with that others give, and who does.
    """

    def __init__(
        self, path: Path, disk: Disk, reserved: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self._path = path
        self._disk = disk
        self._reserved = reserved

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

    def add(self, *made: ApiKey) -> None:
        """Add keys.

        Raises:
            ConfigError: a key or the file is wrong, a principal has a name that others give, or
                another command changes the file.
        """
        for key in made:
            if taken := taken_name(key.principal, self._reserved):
                raise ConfigError(taken)
        with changing(self._path, self._disk):
            self.write((*self.read(), *made))

    def remove(self, key_id: str) -> ApiKey:
        """Remove a key by its id and return it.

        Raises:
            ConfigError: there is no such key, or as for `add`.
        """
        with changing(self._path, self._disk):
            keys = self.read()
            for key in keys:
                if key.id == key_id:
                    self.write(each for each in keys if each is not key)
                    return key
        known = ", ".join(key.id for key in keys) or "none"
        raise ConfigError(f"there is no API key {key_id[:40]!r}; the ids are: {known}")

    def __repr__(self) -> str:
        return f"<ApiKeysFile {self._path.name}>"
