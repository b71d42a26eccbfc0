"""Balancers: which of the listed endpoints the next call goes to."""

from __future__ import annotations

from collections.abc import Sequence

from synchromesh.discovery.endpoint import Endpoint
from synchromesh.errors import NoInstance


class RoundRobin:
    """Gives each endpoint a call in turn, by the order of instance names.

    It remembers the name it gave last, not an index: when instances come or go, the turns of the
    others stay as they were.

    Example:
        >>> a, b = (Endpoint(name, "billing", f"sim://{name}") for name in "ab")
        >>> balancer = RoundRobin("billing")
        >>> [balancer.pick((a, b)).instance for _ in range(3)]
        ['a', 'b', 'a']
    """

    __slots__ = ("_last", "_service")

    def __init__(self, service: str) -> None:
        self._service = service
        self._last = ""

    def pick(
        self, endpoints: Sequence[Endpoint], excluded: frozenset[str] = frozenset()
    ) -> Endpoint:
        """Return the endpoint whose turn it is, passing over the instances in `excluded`.

        Raises:
            NoInstance: no endpoint is listed, or all of them are excluded.
        """
        following: Endpoint | None = None
        first: Endpoint | None = None
        for endpoint in endpoints:
            name = endpoint.instance
            if name in excluded:
                continue
            if first is None or name < first.instance:
                first = endpoint
            if name > self._last and (following is None or name < following.instance):
                following = endpoint
        chosen = following if following is not None else first
        if chosen is None:
            raise NoInstance(self._why(endpoints))
        self._last = chosen.instance
        return chosen

    def __repr__(self) -> str:
        return f"<RoundRobin {self._service} after {self._last!r}>"

    def _why(self, endpoints: Sequence[Endpoint]) -> str:
        if not endpoints:
            return (
                f"no instance of service {self._service!r} is ready: none is registered, or all "
                "drain; start one, or look why it does not register"
            )
        names = ", ".join(endpoint.instance for endpoint in endpoints[:5])
        more = f" and {len(endpoints) - 5} more" if len(endpoints) > 5 else ""
        return (
            f"no instance of service {self._service!r} is left to try: {names}{more} "
            "failed this call already; retry later"
        )
