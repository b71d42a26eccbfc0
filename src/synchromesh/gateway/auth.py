"""Who asks: API keys, and the Protocols that other kinds of credentials implement.

A key is looked up by its id and compared with a slow, salted hash in a lane beside the loop; its
verdict is kept under a digest that only this process can make, so that a warm request pays for one
fast hash. No key is ever written to a log, a trace or an error.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from synchromesh.errors import ConfigError, Shed, Unauthenticated
from synchromesh.gateway.keys import PREFIX, ApiKey, is_key, parse_keys, split_key
from synchromesh.http import Headers
from synchromesh.runtime import Lane, Runtime

AUTHORIZATION = "authorization"
API_KEY = "x-api-key"


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
    """Knows principals by API keys, sent as `Authorization: Bearer sm_...` or `X-Api-Key: sm_...`.

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
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"the API keys cannot be read from {path}: {error.strerror or error}; write a file "
                'such as {"keys": []} there, or name another one in ApiKeys'
            ) from error
        return KeyRing(parse_keys(data, str(path)), self, runtime)


class _Verification(NamedTuple):
    secret: str
    key: ApiKey
    verdict: asyncio.Future[bool]


class KeyRing:
    """Verifies the API keys of one file.

    Must be made where a loop runs, and closed.
    """

    def __init__(self, keys: dict[str, ApiKey], options: ApiKeys, runtime: Runtime) -> None:
        self._keys = keys
        self._options = options
        self._runtime = runtime
        # Made anew by each process: what is kept is of no use outside it.
        self._blind = runtime.rng.randbytes(32)
        self._good: OrderedDict[bytes, ApiKey] = OrderedDict()
        self._bad: OrderedDict[bytes, None] = OrderedDict()
        self._pending: dict[bytes, asyncio.Future[bool]] = {}
        self._lane: Lane[_Verification] = runtime.lane("gateway keys", _verify)

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
        return Principal(key.principal, frozenset(key.scopes))

    async def close(self) -> None:
        """End the lane. May be repeated."""
        await self._lane.close()

    def __repr__(self) -> str:
        return f"<KeyRing {len(self._keys)} keys, {len(self._good)} verified>"

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
            self._lane.put(_Verification(parts[1], key, pending))
            self._pending[digest] = pending
            pending.add_done_callback(functools.partial(self._keep, digest, key))
        # Shielded: others may wait for the same verdict.
        if not await asyncio.shield(pending):
            raise Unauthenticated(_WRONG)
        return key

    def _keep(self, digest: bytes, key: ApiKey, verdict: asyncio.Future[bool]) -> None:
        self._pending.pop(digest, None)
        if verdict.cancelled():
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
