"""An edge for each key: a function that calls many hosts has a breaker for each of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, ParamSpec, TypeVar

from synchromesh.errors import ConfigError
from synchromesh.runtime import RealThreads

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

# An edge is some kilobytes; who has more keys than these has the wrong ones.
KEYS_MAX = 1_000
_CHARS_MAX = 80


class Keyed(Generic[P, R]):
    """Holds a guarded function for each key, those of the keys that were called last.

    Args:
        make: returns the guarded function of an edge that is named so.
        key: returns the key of a call, given its arguments.
        name: of the function, for messages.
    """

    def __init__(
        self, make: Callable[[str], Callable[P, R]], key: Callable[..., Hashable], name: str
    ) -> None:
        self._make = make
        self._key = key
        self._name = name
        self._by_key: dict[Hashable, Callable[P, R]] = {}
        # Threads, and loops in several of them, call the same function.
        self._lock = RealThreads().lock()

    def of(self, *args: P.args, **kwargs: P.kwargs) -> Callable[P, R]:
        """Return the guarded function of the key that a call has.

        Raises:
            ConfigError: the key cannot be one.
        """
        key = self._key(*args, **kwargs)
        try:
            hash(key)
        except TypeError:
            raise ConfigError(
                f"the key of a call of {self._name} is {key!r}, which cannot be hashed; return a "
                "text, such as a host"
            ) from None
        by_key = self._by_key
        with self._lock:
            found = by_key.pop(key, None)
            if found is None:
                if len(by_key) >= KEYS_MAX:
                    del by_key[next(iter(by_key))]
                found = self._make(f"{self._name} [{str(key)[:_CHARS_MAX]}]")
            by_key[key] = found  # at the end: in front is who was not called for longest
        return found


def by_key(keyed: Keyed[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Return the async function that calls the one of its key."""

    async def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        return await keyed.of(*args, **kwargs)(*args, **kwargs)

    return guarded


def by_key_sync(keyed: Keyed[P, T]) -> Callable[P, T]:
    """Return what `by_key` does for a sync function."""

    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        return keyed.of(*args, **kwargs)(*args, **kwargs)

    return guarded
