"""Balancers: which of the listed endpoints the next call goes to."""

from __future__ import annotations

from bisect import bisect_right

from synchromesh.discovery.endpoint import Endpoint
from synchromesh.errors import NoInstance


class RoundRobin:
    """Gives each endpoint a call in turn, by the order of instance names.

    It remembers the name it gave last, not an index: when instances come or go, the turns of the
    others stay as they were. A pick takes constant time, and the first from a list that has changed
    as long as to sort it.

    Example:
        >>> a, b = (Endpoint(name, "billing", f"sim://{name}") for name in "ab")
        >>> balancer = RoundRobin("billing")
        >>> [balancer.pick((a, b)).instance for _ in range(3)]
        ['a', 'b', 'a']
    """

    __slots__ = ("_last", "_listed", "_next", "_order", "_service")

    def __init__(self, service: str) -> None:
        self._service = service
        self._last = ""
        self._listed: tuple[Endpoint, ...] = ()
        self._order: list[Endpoint] = []
        self._next = 0

    def pick(
        self, endpoints: tuple[Endpoint, ...], excluded: frozenset[str] = frozenset()
    ) -> Endpoint:
        """Return the endpoint whose turn it is, passing over the instances in `excluded`.

        Raises:
            NoInstance: no endpoint is listed, or all of them are excluded.
        """
        # A tuple does not change: the same one, which is kept alive here, lists the same.
        if endpoints is not self._listed:
            self._sort(endpoints)
        order, at = self._order, self._next
        for _ in order:
            chosen = order[at]
            at = (at + 1) % len(order)
            if chosen.instance not in excluded:
                self._next, self._last = at, chosen.instance
                return chosen
        raise NoInstance(self._why(endpoints))

    def _sort(self, endpoints: tuple[Endpoint, ...]) -> None:
        by_name = {endpoint.instance: endpoint for endpoint in reversed(endpoints)}
        names = sorted(by_name)
        self._listed, self._order = endpoints, [by_name[name] for name in names]
        self._next = bisect_right(names, self._last) % len(names) if names else 0

    def __repr__(self) -> str:
        return f"<RoundRobin {self._service} after {self._last!r}>"

    def _why(self, endpoints: tuple[Endpoint, ...]) -> str:
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
