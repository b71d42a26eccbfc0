"""Who asks: API keys, and the Protocols that other kinds of credentials implement.

A key is looked up by its id and compared with a slow, salted hash in a worker beside the loop; its
verdict is kept under a digest that only this process can make, so that a warm request pays for one
fast hash. No key is ever written to a log, a trace or an error.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

from synchromesh.errors import ConfigError, Shed, Unauthenticated
from synchromesh.gateway.keys import PREFIX, ApiKey, is_key, parse_keys, split_key
from synchromesh.http import Headers, RawPair
from synchromesh.runtime import Runtime, Worker

AUTHORIZATION = "authorization"
API_KEY = "x-api-key"

_AUTHORIZATION, _API_KEY = AUTHORIZATION.encode(), API_KEY.encode()

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
            Shed: too many are being verified.
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
        kept_max: verdicts that are kept, of valid and of wrong keys each.
        pending_max: keys that wait to be verified at once; one more is answered 503.

    Example:
        >>> ApiKeys().file
        'api-keys.json'
    """

    file: str = "api-keys.json"
    kept_max: int = 1024
    pending_max: int = 32

    def open(self, folder: Path, runtime: Runtime) -> KeyRing:
        """Read the file of keys.

        Raises:
            ConfigError: it is missing or wrong.
        """
        path = folder / self.file
        # Before it is read: a change meanwhile is then seen as one.
        seen = _stamp(path)
        return KeyRing(_read(path), self, runtime, path=path, seen=seen)


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


class _Verification(NamedTuple):
    secret: str
    key: ApiKey
    verdict: asyncio.Future[bool]


class KeyRing:
    """Verifies the API keys of one file.

    Must be made where a loop runs, and closed.

    Args:
        path: where `reread` looks; None where the keys are in no file.
        seen: what the file looked like when `keys` were read.
    """

    def __init__(
        self,
        keys: dict[str, ApiKey],
        options: ApiKeys,
        runtime: Runtime,
        *,
        path: Path | None = None,
        seen: Stamp | None = None,
    ) -> None:
        self._keys = keys
        self._path = path
        self._seen = seen
        self._options = options
        self._runtime = runtime
        # Made anew by each process: what is kept is of no use outside it.
        self._blind = runtime.secret_rng.randbytes(32)
        self._good: OrderedDict[bytes, ApiKey] = OrderedDict()
        self._bad: OrderedDict[bytes, None] = OrderedDict()
        # The same verdicts by the digest of the raw field that they came in, for the fast way.
        self._known: dict[bytes, tuple[Principal, ApiKey]] = {}
        # By the name of the field: what stands in another one is another credential.
        self._blinded = {
            name: hashlib.blake2b(name, key=self._blind, digest_size=32)
            for name in (_AUTHORIZATION, _API_KEY)
        }
        self._pending: dict[bytes, asyncio.Future[bool]] = {}
        self._worker: Worker[_Verification] = runtime.worker("gateway keys", _verify)

    async def authenticate(self, headers: Headers) -> Principal | None:
        """Return whose key it is, or None where the request carries no API key.

        Raises:
            Unauthenticated: the key is not valid, or there are several credentials.
            Shed: too many keys are being verified.
        """
        text = _presented(headers)
        if text is None:
            return None
        digest = hashlib.blake2b(text.encode(), key=self._blind, digest_size=32).digest()
        key = self._good.get(digest)
        if key is None:
            key = await self._verified(text, digest)
        else:
            self._good.move_to_end(digest)
        if key.is_expired(self._runtime.wall_us()):
            raise Unauthenticated("the API key has expired; use a newer one")
        principal = Principal(key.principal, frozenset(key.scopes))
        self._remember(headers, principal, key)
        return principal

    def known(self, fields: Sequence[RawPair]) -> Principal | None:
        """Return whose key it is where that was found out before; None leaves it open.

        The digest is one that only this process can make: how long a look takes says nothing of the
        keys that are kept.
        """
        blinded = None
        for name, value in fields:
            if name in self._blinded:
                if blinded is not None:
                    return None  # which of them counts is unclear
                # A copy of a keyed hash is half the price of a new one.
                blinded = self._blinded[name].copy()
                blinded.update(value)
        if blinded is None:
            return None
        known = self._known.get(blinded.digest())
        if known is None:
            return None
        principal, key = known
        if key.expires is not None and key.is_expired(self._runtime.wall_us()):
            return None
        return principal

    def reread(self) -> bool:
        """Read the file again where it has changed; return whether other keys are in force.

        A key that is gone from the file is refused from now on, also where it was verified before.
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
        self._keys = keys
        # What was found good may have ended, and what was found wrong may be right now.
        self._good.clear()
        self._known.clear()
        self._bad.clear()
        self._pending.clear()
        _log.info("the API keys have changed; there are %d", len(keys))
        return True

    async def close(self) -> None:
        """End the worker. May be repeated."""
        await self._worker.close()

    def __repr__(self) -> str:
        return f"<KeyRing {len(self._keys)} keys, {len(self._good)} verified>"

    def _remember(self, headers: Headers, principal: Principal, key: ApiKey) -> None:
        """Keep a verdict by the one field that the key came in; `_presented` saw to it."""
        name = API_KEY if API_KEY in headers else AUTHORIZATION
        hashed = self._blinded[name.encode()].copy()
        hashed.update(headers.get(name, "").encode("latin-1"))
        if len(self._known) >= self._options.kept_max:
            self._known.clear()  # each is found again by the digest of its text
        self._known[hashed.digest()] = principal, key

    async def _verified(self, text: str, digest: bytes) -> ApiKey:
        parts = split_key(text)
        # An id is no secret: an unknown one is refused without the cost of a hash.
        key = None if parts is None else self._keys.get(parts[0])
        if parts is None or key is None or digest in self._bad:
            raise Unauthenticated(_WRONG)
        pending = self._pending.get(digest)
        if pending is None:
            if len(self._pending) >= self._options.pending_max:
                raise Shed("too many API keys are being verified; try again soon", retry_after_s=1)
            pending = asyncio.get_running_loop().create_future()
            self._worker.put(_Verification(parts[1], key, pending))
            self._pending[digest] = pending
            pending.add_done_callback(functools.partial(self._keep, digest, key))
        # Shielded: others may wait for the same verdict.
        if not await asyncio.shield(pending) or self._keys.get(key.id) != key:
            raise Unauthenticated(_WRONG)
        return key

    def _keep(self, digest: bytes, key: ApiKey, verdict: asyncio.Future[bool]) -> None:
        if self._pending.get(digest) is verdict:
            del self._pending[digest]
        if verdict.cancelled() or self._keys.get(key.id) != key:
            return
        if verdict.result():
            self._good[digest] = key
            while len(self._good) > self._options.kept_max:
                self._good.popitem(last=False)
        else:
            self._bad[digest] = None
            while len(self._bad) > self._options.kept_max:
                self._bad.popitem(last=False)


_WRONG = "the API key is not valid; check that it was copied whole and is still in use"


def _verify(batch: list[_Verification]) -> Callable[[], None]:
    verdicts = [(job.verdict, is_key(job.secret, job.key)) for job in batch]

    def tell() -> None:
        for future, verdict in verdicts:
            if not future.done():
                future.set_result(verdict)

    return tell


def _presented(headers: Headers) -> str | None:
    """Return the API key of a request; two credentials would leave unclear which one counts."""
    credentials = [*headers.get_all(AUTHORIZATION), *headers.get_all(API_KEY)]
    if len(credentials) > 1:
        raise Unauthenticated("the request carries several credentials; send one")
    if API_KEY in headers:
        return credentials[0]
    scheme, _, token = headers.get(AUTHORIZATION, "").partition(" ")
    token = token.strip(" ")
    return token if scheme.lower() == "bearer" and token.startswith(PREFIX) else None
