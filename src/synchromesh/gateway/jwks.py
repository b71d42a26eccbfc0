"""The keys that an issuer of tokens publishes, kept as they change.

They come from a file, or from a URL, whose answers the issuer changes whenever it likes: a token of
a key that is not known has them fetched once more, though never twice within some seconds, so that
made-up tokens make no traffic, and few wait for that. Whatever goes wrong later, the last keys that
were good stay.
Sources: RFC 7517 (JWK Set), OpenID Connect Discovery 1.0.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import msgspec

from synchromesh.clock import loop_now
from synchromesh.errors import CallError, ConfigError, Shed
from synchromesh.gateway.tokens import PublishedKeys, read_keys
from synchromesh.http import HttpPool, PoolLimits
from synchromesh.network import Network
from synchromesh.tls import ClientContexts
from synchromesh.watched import WatchedFile

EVERY_S = 600.0
FAILED_S = 5.0
UNKNOWN_S = 10.0
WITHIN_S = 5.0
WAITING_MAX = 64

_LIMITS = PoolLimits(connections_max=2, body_bytes_max=512 * 1024)
_DISCOVERY = "/.well-known/openid-configuration"

_log = logging.getLogger("synchromesh.gateway")


class FetchSchedule:
    """Says when keys are fetched: every ten minutes, sooner after a failure or an unknown key.

    Example:
        >>> schedule = FetchSchedule()
        >>> schedule.is_due(0.0, for_unknown=False)
        True
        >>> schedule.began(0.0); schedule.ended(0.1, is_good=True)
        >>> schedule.is_due(9.0, for_unknown=True), schedule.is_due(10.0, for_unknown=True)
        (False, True)
    """

    def __init__(self) -> None:
        self._began_s = self._before_s = float("-inf")
        self._next_s = float("-inf")
        self._failures = 0

    def is_due(self, now: float, *, for_unknown: bool) -> bool:
        """Return whether to fetch now; for an unknown key that may be long before its time."""
        return now >= self._next_s or (for_unknown and now >= self._began_s + UNKNOWN_S)

    @property
    def is_soon_again(self) -> bool:
        """Whether the last fetch began soon after another: an issuer that gives no answer."""
        return self._began_s < self._before_s + UNKNOWN_S

    def began(self, now: float) -> None:
        """Note that a fetch has begun: none begins beside it."""
        self._before_s, self._began_s = self._began_s, now
        self._next_s = float("inf")

    def ended(self, now: float, *, is_good: bool) -> None:
        """Note how a fetch ended."""
        self._failures = 0 if is_good else self._failures + 1
        pause_s = EVERY_S if is_good else min(FAILED_S * 2.0 ** (self._failures - 1), 60.0)
        self._next_s = now + pause_s


class KeySource(Protocol):
    """Where the keys of an issuer come from."""

    @property
    def keys(self) -> PublishedKeys | None:
        """The last keys that were good; None before the first have come."""
        ...

    def refresh(self) -> None:
        """Look whether they are to be read again; called once a second."""
        ...

    async def renewed(self) -> None:
        """Wait for newer keys, a few seconds at most, where some may be had now.

        Raises:
            Shed: too many wait already.
        """
        ...

    async def close(self) -> None:
        """End what it runs. May be repeated."""
        ...


class FileKeys:
    """Keys from a file, which is read again within a second when it changes."""

    def __init__(self, path: Path) -> None:
        self._file = WatchedFile(path, "the keys of tokens", _read_file)
        for reason in self._file.value.unused:
            _log.warning("%s: %s", path, reason)

    @property
    def keys(self) -> PublishedKeys:
        """The keys."""
        return self._file.value

    def refresh(self) -> None:
        """Read the file again where it has changed."""
        self._file.reread()

    async def renewed(self) -> None:
        """Read the file again where it has changed."""
        self._file.reread()

    async def close(self) -> None:
        """Do nothing: it runs nothing."""


def _read_file(path: Path) -> PublishedKeys:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"the keys of tokens cannot be read from {path}: {error.strerror or error}; write the "
            "issuer's JWK Set there, or name its URL in JWT(jwks=...)"
        ) from error
    return read_keys(data, str(path))


Get = Callable[[str], Awaitable[bytes]]


class UrlKeys:
    """Keys from a URL, fetched in the background.

    Args:
        url: of the JWK Set; "" asks the issuer for it.
        issuer: whose keys they are.
        get: fetches a URL.
    """

    def __init__(self, url: str, issuer: str, get: Get) -> None:
        self._url, self._issuer, self._get = url, issuer, get
        self._schedule = FetchSchedule()
        self._fetch: asyncio.Task[None] | None = None
        self._waiting = 0
        self._keys: PublishedKeys | None = None

    @property
    def keys(self) -> PublishedKeys | None:
        """The last keys that were good; None before the first have come."""
        return self._keys

    def refresh(self) -> None:
        """Begin a fetch where one is due."""
        self._begin(for_unknown=False)

    async def renewed(self) -> None:
        """Wait for a fetch, if one is under way or may begin now, and the last is not just over.

        Raises:
            Shed: so many wait already that most of their tokens will be made up.
        """
        self._begin(for_unknown=True)
        if self._fetch is None or self._schedule.is_soon_again:
            return
        if self._waiting >= WAITING_MAX:
            raise Shed(
                "the keys of the token's issuer are being fetched; try again", retry_after_s=2
            )
        self._waiting += 1
        try:
            # Not cancelled with one of those who wait for it.
            await asyncio.wait([self._fetch], timeout=WITHIN_S)
        finally:
            self._waiting -= 1

    async def close(self) -> None:
        """Cancel a fetch that is under way."""
        if self._fetch is not None:
            self._fetch.cancel()
            await asyncio.gather(self._fetch, return_exceptions=True)

    def _begin(self, *, for_unknown: bool) -> None:
        loop = asyncio.get_running_loop()
        if self._fetch is None and self._schedule.is_due(loop.time(), for_unknown=for_unknown):
            self._schedule.began(loop.time())
            self._fetch = loop.create_task(self._fetched(), name=f"keys of {self._issuer}")

    async def _fetched(self) -> None:
        is_good = False
        try:
            url = self._url or await self._discovered()
            keys = read_keys(await self._get(url), url)
            for reason in keys.unused:
                _log.warning("%s: %s", url, reason)
            is_good, self._keys = True, keys
        except (CallError, ConfigError) as error:
            kept = "none came yet" if self._keys is None else "the last ones stay"
            _log.error("no keys of %s could be fetched, and %s: %s", self._issuer, kept, error)
        except Exception:  # noqa: BLE001
            # Nobody waits for the task: what it ends with would be lost.
            _log.exception("the keys of %s could not be read", self._issuer)
        finally:
            self._fetch = None
            self._schedule.ended(loop_now(), is_good=is_good)

    async def _discovered(self) -> str:
        """Ask the issuer where its keys are."""
        url = self._issuer.rstrip("/") + _DISCOVERY
        try:
            said = msgspec.json.decode(await self._get(url), type=_Discovery)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigError(f"{url} names no jwks_uri: {error}") from error
        if said.issuer != self._issuer:
            raise ConfigError(f"{url} is of another issuer than {self._issuer!r}")
        mistake = mistake_of(said.jwks_uri)
        if mistake:
            raise ConfigError(f"the jwks_uri in {url} {mistake}")
        return said.jwks_uri


class _Discovery(msgspec.Struct):
    issuer: str
    jwks_uri: str


def mistake_of(url: str) -> str:
    """Return why keys cannot be fetched from a URL; "" where they can.

    Example:
        >>> mistake_of("http://id.servo.works/keys")
        'is no https:// URL; keys that anybody on the way can change prove nothing'
        >>> mistake_of("https://id.servo.works/keys")
        ''
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "is no URL"
    if not host or parts.username is not None or parts.fragment:
        return "is no URL of a host, without a user and a fragment"
    is_local = host in ("localhost", "127.0.0.1", "::1")
    if parts.scheme == "https" or (parts.scheme == "http" and is_local):
        return ""
    return "is no https:// URL; keys that anybody on the way can change prove nothing"


class Fetcher:
    """Fetches URLs by GET, each whole and within a few seconds.

    Raises:
        CallError: there was no answer.
        ConfigError: there was one, and it was not 200.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._contexts = ClientContexts()

    async def __call__(self, url: str) -> bytes:
        """Return the body of the answer."""
        parts = urlsplit(url)
        is_secured = parts.scheme == "https"
        network = self._network
        if is_secured:
            network = network.secured(client=self._contexts)
        port = parts.port or (443 if is_secured else 80)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        host = parts.hostname or ""
        shown = f"[{host}]" if ":" in host else host
        authority = shown if parts.port is None else f"{shown}:{port}"
        async with HttpPool(network=network, limits=_LIMITS) as pool:
            answer = await pool.request(
                host,
                port,
                "GET",
                target,
                [("host", authority), ("accept", "application/json")],
                timeout_s=WITHIN_S,
                is_idempotent=True,
            )
        if answer.status != 200:
            raise ConfigError(f"{url} answered {answer.status}, and 200 is expected")
        return answer.body
