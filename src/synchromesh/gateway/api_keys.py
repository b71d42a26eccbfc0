"""Tells who asks by API keys.

A key is looked up by its id, and its hash compared with the one of the file, in constant time; both
cost microseconds, so that a flood of wrong keys keeps no valid one waiting. No key is ever written
to a log, a trace or an error.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from typing import ClassVar, NamedTuple

from synchromesh.errors import ConfigError, Unauthenticated
from synchromesh.gateway.keys import KIND, PREFIX, ApiKey, parse_keys, stored_hash
from synchromesh.gateway.principal import (
    API_KEY,
    AUTHORIZATION,
    Folders,
    KeptVerdict,
    bearer_of,
    credential_of,
    taken_name,
)
from synchromesh.http import Headers, HttpExchange, HttpRequest, KeptFields
from synchromesh.identity import Principal
from synchromesh.runtime import Runtime
from synchromesh.watched import WatchedFile

_log = logging.getLogger("synchromesh.gateway")

# What a field looks like that carries a key; the groups are the whole key and its id.
_KEY = rb"(sm_([a-z0-9]{4,32})_[A-Za-z0-9_-]{43})"
_FORMS = {
    AUTHORIZATION.encode(): re.compile(rb"(?i:bearer) +" + _KEY + rb" *").fullmatch,
    API_KEY.encode(): re.compile(_KEY).fullmatch,
}


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """Authenticates by API key: `Authorization: Bearer sm_...` or `X-Api-Key: sm_...`.

    Attributes:
        file: the keys, hashed; `make_key` makes one.

    Example:
        >>> ApiKeys().file
        'api-keys.json'
    """

    kind: ClassVar[str] = KIND

    file: str = "api-keys.json"

    def security_schemes(self) -> Mapping[str, Mapping[str, object]]:
        """Return how a client sends its key."""
        told = "An API key of the gateway, `sm_...`."
        return {
            "ApiKey": {"type": "apiKey", "in": "header", "name": API_KEY, "description": told},
            "ApiKeyBearer": {"type": "http", "scheme": "bearer", "description": told},
        }

    def open(self, folders: Folders, runtime: Runtime) -> KeyRing:
        """Read the file of keys.

        Raises:
            ConfigError: it is missing or wrong.
        """
        file = WatchedFile(folders.run / self.file, "the API keys", _read)
        return KeyRing(file.value, runtime, file=file)


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


class _Entry(NamedTuple):
    """A key as it is looked for: what its hash has to be, and whose it is."""

    hash: bytes
    principal: Principal
    key: ApiKey


def _entries(keys: Mapping[str, ApiKey]) -> dict[bytes, _Entry]:
    """Return what is looked for, by the id of the key."""
    return {
        key_id.encode(): _Entry(
            stored_hash(key), Principal(key.principal, frozenset(key.scopes), ApiKeys.kind), key
        )
        for key_id, key in keys.items()
    }


class KeyRing:
    """Verifies the API keys of one file.

    Args:
        keys: by id, as `parse_keys` has checked them.
        runtime: tells the time, for keys that end.
        file: where they are looked for again; None where they are in no file.
    """

    def __init__(
        self,
        keys: dict[str, ApiKey],
        runtime: Runtime,
        *,
        file: WatchedFile[dict[str, ApiKey]] | None = None,
    ) -> None:
        self._file = file
        self._reserved: Mapping[str, str] = {}
        # Another one for each set of keys, and never changed: verdicts rest on it (`holds`).
        self._entries = _entries(keys)
        self._wall_us = runtime.wall_us

    async def authenticate(self, request: HttpRequest) -> Principal | None:
        """Return whose key it is, or None where the request carries no API key.

        Raises:
            Unauthenticated: the key is not valid, or there are several credentials.
        """
        text = _presented(request.headers)
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

    def known(self, exchange: HttpExchange) -> Principal | None:
        """Return whose valid key it is; None leaves all else to `authenticate`."""
        found = None
        for name, value in exchange.pairs:
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
        expires, until_us = entry.key.expires, None
        if expires is not None:
            until_us = expires.timestamp() * 1e6
            if until_us <= self._wall_us():
                return None
        fields = exchange.pairs
        if isinstance(fields, KeptFields):
            fields.verdict = KeptVerdict(entry.principal, self, self._entries, until_us)
        return entry.principal

    def holds(self, verdict: KeptVerdict) -> bool:
        """Tell whether a verdict still counts: no key has come or gone, and its own has not ended.

        What was hashed for it are the same bytes, so that they need not be hashed again.
        """
        return verdict.basis is self._entries and (
            verdict.until_us is None or self._wall_us() < verdict.until_us
        )

    def reserve(self, reserved: Mapping[str, str]) -> None:
        """Take no key from now on whose principal has a name that others give.

        Args:
            reserved: what such names begin with, and who gives them.

        Raises:
            ConfigError: there is such a key already; the message names each.
        """
        self._reserved = reserved
        self._refuse_taken(entry.key for entry in self._entries.values())

    def add(self, key: ApiKey) -> None:
        """Accept a key that is in no file, until the file is read again.

        Raises:
            ConfigError: its principal has a name that others give.
        """
        self._refuse_taken([key])
        self._entries = {**self._entries, **_entries({key.id: key})}

    def replace(self, keys: Mapping[str, ApiKey]) -> None:
        """Accept these keys and no others from now on, and look at no file any more.

        One whose principal has a name that others give is left out, and logged: what was withdrawn
        beside it is withdrawn.
        """
        self._entries, self._file = _entries(self._without_taken(keys)), None

    def refresh(self) -> None:
        """Read the file again where it has changed: a key that is gone is refused from now on."""
        if self._file is not None and self._file.reread():
            self._entries = _entries(self._without_taken(self._file.value))

    async def close(self) -> None:
        """Do nothing: it runs nothing."""

    def _without_taken(self, keys: Mapping[str, ApiKey]) -> dict[str, ApiKey]:
        found = {}
        for key_id, key in keys.items():
            if why := taken_name(key.principal, self._reserved):
                _log.error("API key %r is not accepted: %s", key_id, why)
            else:
                found[key_id] = key
        return found

    def _refuse_taken(self, keys: Iterable[ApiKey]) -> None:
        taken = ((key, taken_name(key.principal, self._reserved)) for key in keys)
        mistakes = [f"API key {key.id!r}: {why}" for key, why in taken if why]
        if mistakes:
            raise ConfigError("; ".join(mistakes))

    def __repr__(self) -> str:
        return f"<KeyRing {len(self._entries)} keys>"


_WRONG = "the API key is not valid; check that it was copied whole and is still in use"


def _presented(headers: Headers) -> str | None:
    found = credential_of(headers)
    if found is None:
        return None
    name, value = found
    if name == API_KEY:
        return value
    token = bearer_of(value)
    return token if token is not None and token.startswith(PREFIX) else None
