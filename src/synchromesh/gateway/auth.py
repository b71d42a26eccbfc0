"""Who asks: API keys, and the Protocols that other kinds of credentials implement.

A key is looked up by its id, and its hash compared with the one of the file, in constant time; both
cost microseconds, so that a flood of wrong keys keeps no valid one waiting. No key is ever written
to a log, a trace or an error.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

from synchromesh.errors import ConfigError, Unauthenticated
from synchromesh.gateway.keys import PREFIX, ApiKey, parse_keys, stored_hash
from synchromesh.http import Headers, RawPair
from synchromesh.runtime import Runtime

AUTHORIZATION = "authorization"
API_KEY = "x-api-key"

# What a field looks like that carries a key; the groups are the whole key and its id.
_KEY = rb"(sm_([a-z0-9]{4,32})_[A-Za-z0-9_-]{43})"
_FORMS = {
    AUTHORIZATION.encode(): re.compile(rb"(?i:bearer) +" + _KEY + rb" *").fullmatch,
    API_KEY.encode(): re.compile(_KEY).fullmatch,
}

# The inode, the size and the time of change of a file.
Stamp: TypeAlias = tuple[int, int, int]

_log = logging.getLogger("synchromesh.gateway")


@dataclass(frozen=True, slots=True)
class Principal:
    """Says who asks, and what they may do.

    Example:
        >>> Principal("shop", frozenset({"orders:write"})).name
        'shop'
    """

    name: str
    scopes: frozenset[str]


class Authenticator(Protocol):
    """Tells who asks, at work."""

    async def authenticate(self, headers: Headers) -> Principal | None:
        """Return who asks, or None where the headers carry no credential of this kind.

        Raises:
            Unauthenticated: there is one, and it is not valid.
        """
        ...

    async def close(self) -> None:
        """End what it runs. May be repeated."""
        ...


class Auth(Protocol):
    """Describes a way to tell who asks; a value in a gateway's definition."""

    def open(self, folder: Path, runtime: Runtime) -> Authenticator:
        """Read what it needs and go to work; a relative file is one of `folder`.

        Raises:
            ConfigError: what it needs is missing or wrong; the message names every mistake.
        """
        ...


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """Authenticates by API key: `Authorization: Bearer sm_...` or `X-Api-Key: sm_...`.

    Attributes:
        file: the keys, hashed; `make_key` makes one.

    Example:
        >>> ApiKeys().file
        'api-keys.json'
    """

    file: str = "api-keys.json"

    def open(self, folder: Path, runtime: Runtime) -> KeyRing:
        """Read the file of keys.

        Raises:
            ConfigError: it is missing or wrong.
        """
        path = folder / self.file
        # Before it is read: a change meanwhile is then seen as one.
        seen = _stamp(path)
        return KeyRing(_read(path), runtime, path=path, seen=seen)


def _read(path: Path) -> dict[str, ApiKey]:
    """Return the keys of a file by id. Raises ConfigError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"the API keys cannot be read from {path}: {error.strerror or error}; write a file "
            'such as {"keys": []} there, or name another one in ApiKeys'
        ) from error
    return parse_keys(data, str(path))


def _stamp(path: Path) -> Stamp | None:
    """Return what tells one state of a file from another; None where there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


class _Entry(NamedTuple):
    """A key as it is looked for: what its hash has to be, and whose it is."""

    hash: bytes
    principal: Principal
    key: ApiKey


def _entries(keys: Mapping[str, ApiKey]) -> dict[bytes, _Entry]:
    """Return what is looked for, by the id of the key."""
    return {
        key_id.encode(): _Entry(
            stored_hash(key), Principal(key.principal, frozenset(key.scopes)), key
        )
        for key_id, key in keys.items()
    }


class KeyRing:
    """Verifies the API keys of one file.

    Args:
        keys: by id, as `parse_keys` has checked them.
        runtime: tells the time, for keys that end.
        path: where `reread` looks; None where the keys are in no file.
        seen: what the file looked like when `keys` were read.
    """

    def __init__(
        self,
        keys: dict[str, ApiKey],
        runtime: Runtime,
        *,
        path: Path | None = None,
        seen: Stamp | None = None,
    ) -> None:
        self._keys = keys
        self._entries = _entries(keys)
        self._path = path
        self._seen = seen
        self._wall_us = runtime.wall_us

    async def authenticate(self, headers: Headers) -> Principal | None:
        """Return whose key it is, or None where the request carries no API key.

        Raises:
            Unauthenticated: the key is not valid, or there are several credentials.
        """
        text = _presented(headers)
        if text is None:
            return None
        key = text.encode("latin-1")
        found = _FORMS[API_KEY.encode()](key)
        entry = None if found is None else self._entries.get(found[2])
        if entry is None or not compare_digest(sha256(key).digest(), entry.hash):
            raise Unauthenticated(_WRONG)
        if entry.key.is_expired(self._wall_us()):
            raise Unauthenticated("the API key has expired; use a newer one")
        return entry.principal

    def known(self, fields: Sequence[RawPair]) -> Principal | None:
        """Return whose valid key it is; None leaves all else to `authenticate`."""
        found = None
        for name, value in fields:
            if name in _FORMS:
                if found is not None:
                    return None  # which of them counts is unclear
                found = _FORMS[name](value)
                if found is None:
                    return None
        if found is None:
            return None
        text, key_id = found.groups()
        entry = self._entries.get(key_id)
        if entry is None or not compare_digest(sha256(text).digest(), entry.hash):
            return None
        if entry.key.expires is not None and entry.key.is_expired(self._wall_us()):
            return None
        return entry.principal

    def reread(self) -> bool:
        """Read the file again where it has changed; return whether other keys are in force.

        A key that is gone from the file is refused from now on.
        A file that is missing or wrong changes nothing, and is logged once.
        """
        if self._path is None:
            return False
        now = _stamp(self._path)
        if now == self._seen:
            return False
        self._seen = now
        try:
            keys = _read(self._path)
        except ConfigError as error:
            _log.error("the API keys stay as they were: %s", error.message)
            return False
        if keys == self._keys:
            return False
        self._keys, self._entries = keys, _entries(keys)
        _log.info("the API keys have changed; there are %d", len(keys))
        return True

    async def close(self) -> None:
        """Do nothing: it runs nothing."""

    def __repr__(self) -> str:
        return f"<KeyRing {len(self._keys)} keys>"


_WRONG = "the API key is not valid; check that it was copied whole and is still in use"


def _presented(headers: Headers) -> str | None:
    """Return the API key of a request; two credentials would leave unclear which one counts."""
    credentials = [pair for pair in headers if pair[0] in (AUTHORIZATION, API_KEY)]
    if len(credentials) > 1:
        raise Unauthenticated("the request carries several credentials; send one")
    if not credentials:
        return None
    name, value = credentials[0]
    if name == API_KEY:
        return value
    scheme, _, token = value.partition(" ")
    token = token.strip(" ")
    return token if scheme.lower() == "bearer" and token.startswith(PREFIX) else None
