"""Tells who asks by a function of the application's own: sessions, signed links, introspection.

It may wait, within a bound. That it failed says nothing of the credential: then nobody is told that
it was wrong, and the client is asked to come again.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import msgspec

from synchromesh.durations import duration
from synchromesh.errors import (
    ConfigError,
    Forbidden,
    RateLimited,
    Shed,
    SynchromeshError,
    Unauthenticated,
)
from synchromesh.gateway.principal import Folders, is_name
from synchromesh.gateway.shapes import is_a
from synchromesh.http import HttpRequest
from synchromesh.identity import Principal, checked
from synchromesh.runtime import Runtime

WITHIN_MAX_S = 30.0
KEPT_MAX_S = 3600.0

_log = logging.getLogger("synchromesh.gateway")


@dataclass(frozen=True, slots=True)
class AuthFunction:
    """Authenticates by a function of your own.

    It gets the request, without its body, and returns who asks, or None where the request carries
    no credential of its kind. It raises `Unauthenticated` where there is one that is not valid, or
    `Forbidden` or `RateLimited`. Whatever else it raises, and where it takes too long, is answered
    503. The name that it returns
    is taken as it is: keep it apart from those of keys and tokens.

    Attributes:
        function: tells who asks; it is run for each request, unless `kept` says otherwise.
        kind: of the credential, as `Principal.kind` says and a route's `by` asks for.
        within: how long it may take.
        at_once: how many may wait for it; one more is answered 503.
        kept: how long a principal is kept, for requests whose fields `kept_by` are the same; "0s"
            keeps none. What was refused, and what failed, is never kept.
        kept_by: the names of the fields that it looks at, in lower case; also where it keeps none,
            for caches that ask by which fields answers differ.
        kept_max: how many principals are kept.
        scheme: the Security Scheme Object of OpenAPI that tells clients of it.

    Example:
        >>> async def by_session(request: HttpRequest) -> Principal | None:
        ...     who = {"7f3a": "ada"}.get(request.headers.get("x-session", ""))
        ...     return Principal(f"session:{who}") if who else None
        >>> AuthFunction(by_session, kind="session").mistakes()
        ()
    """

    function: Callable[[HttpRequest], Awaitable[Principal | None]]
    kind: str = "own"
    within: str = "1s"
    at_once: int = 256
    kept: str = "0s"
    kept_by: AbstractSet[str] = frozenset()
    kept_max: int = 10_000
    scheme: Mapping[str, object] = field(default_factory=lambda: {"type": "http", "scheme": "own"})

    def open(self, folders: Folders, runtime: Runtime) -> OwnAuthenticator:
        """Return it at work; it reads no file.

        Raises:
            ConfigError: a bound is wrong, or the function is not async.
        """
        del folders, runtime
        mistakes = self.mistakes()
        if mistakes:
            raise ConfigError("; ".join(mistakes))
        return OwnAuthenticator(self)

    def security_schemes(self) -> Mapping[str, Mapping[str, object]]:
        """Return what clients are told of it."""
        return {self.kind: self.scheme}

    def fields(self) -> AbstractSet[str]:
        """Return the fields of a request that tell who asks."""
        return self.kept_by or {"authorization", "cookie"}

    def mistakes(self) -> tuple[str, ...]:
        """Return what is wrong with it, a sentence each."""
        name = getattr(self.function, "__name__", repr(self.function))
        return tuple(f"AuthFunction {name}: {mistake}" for mistake in self._mistakes())

    def _mistakes(self) -> Iterator[str]:
        called = getattr(self.function, "__call__", None)  # noqa: B004 - of an object, too
        if not any(map(inspect.iscoroutinefunction, (self.function, called))):
            yield "its function is not async; write async def"
        if not self.kind.isidentifier():
            yield f'kind is {self.kind!r}; write a word such as "session"'
        for name, text, least, most in (
            ("within", self.within, 0.001, WITHIN_MAX_S),
            ("kept", self.kept, 0.0, KEPT_MAX_S),
        ):
            try:
                length_s = _seconds(text, name)
            except SynchromeshError as error:
                yield error.message
                continue
            if not least <= length_s <= most:
                yield f"{name} is {text}, and up to {most:g} s are possible"
            elif name == "kept" and length_s and not self.kept_by:
                yield "kept needs kept_by, the fields of a request that the function looks at"
        if self.at_once < 1 or self.kept_max < 1:
            yield "at_once and kept_max are numbers of 1 or more"
        odd = [each for each in self.kept_by if each != each.lower() or not each]
        if odd:
            yield f"kept_by: {odd[0]!r} is no name of a field in lower case"


class OwnAuthenticator:
    """Asks a function who asks, and bounds it."""

    def __init__(self, asked: AuthFunction) -> None:
        self._asked = asked
        self._within_s, self._kept_s = _seconds(asked.within), _seconds(asked.kept)
        self._kept_by = sorted(asked.kept_by)
        self._under_way = 0
        self._kept: dict[tuple[tuple[str, ...], ...], tuple[Principal, float]] = {}

    async def authenticate(self, request: HttpRequest) -> Principal | None:
        """Return whom the function names.

        Raises:
            Unauthenticated, Forbidden, RateLimited: the function says so.
            Shed: it failed, took too long, returned what is no principal, or too many wait for it.
        """
        if not self._kept_s:
            return await self._ask(request)
        loop = asyncio.get_running_loop()
        key = tuple(request.headers.get_all(name) for name in self._kept_by)
        kept = self._kept.get(key)
        if kept is not None and loop.time() < kept[1]:
            return kept[0]
        principal = await self._ask(request)
        if principal is not None:
            self._kept.pop(key, None)
            while len(self._kept) >= self._asked.kept_max:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = principal, loop.time() + self._kept_s
        return principal

    def refresh(self) -> None:
        """Do nothing: what is kept ends by itself."""

    async def close(self) -> None:
        """Forget whom it knew."""
        self._kept.clear()

    def __repr__(self) -> str:
        return f"<OwnAuthenticator {self._asked.kind}, {self._under_way} under way>"

    async def _ask(self, request: HttpRequest) -> Principal | None:
        asked = self._asked
        if self._under_way >= asked.at_once:
            raise Shed("too many wait to be identified; try again", retry_after_s=1)
        self._under_way += 1
        try:
            async with asyncio.timeout(self._within_s):
                bare = msgspec.structs.replace(request, body=b"", stream=None)
                found = await asked.function(bare)
        except (Unauthenticated, Forbidden, RateLimited):
            raise
        except TimeoutError as error:
            _log.warning("%s took longer than %s", self._named, asked.within)
            raise _unknown() from error
        except Exception as error:
            # What it says may hold the credential: only where it came from is told.
            _log.error("%s failed: %s", self._named, _place_of(error))
            raise _unknown() from error
        finally:
            self._under_way -= 1
        if found is None:
            return None
        if not is_a(found, Principal) or not is_name(found.name):
            _log.error("%s returned no Principal with a name of 1 to 128 characters", self._named)
            raise _unknown()
        try:
            return checked(msgspec.structs.replace(found, kind=asked.kind))
        except ValueError as error:
            _log.error("%s returned a Principal that cannot be taken: %s", self._named, error)
            raise _unknown() from error

    @property
    def _named(self) -> str:
        return f"the authenticator {getattr(self._asked.function, '__name__', self._asked.kind)}"


def _unknown() -> Shed:
    return Shed("who asks could not be found out; try again", retry_after_s=1)


def _place_of(error: BaseException) -> str:
    traceback, place = error.__traceback__, ""
    while traceback is not None:
        code = traceback.tb_frame.f_code
        place = f" at {code.co_filename}:{traceback.tb_lineno} in {code.co_name}"
        traceback = traceback.tb_next
    return f"{type(error).__name__}{place}"


def _seconds(text: str, option: str = "") -> float:
    return 0.0 if text == "0s" else duration(text, option)
