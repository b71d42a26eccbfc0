"""What the running processes of services take, as they declare it where they are registered.

A publisher delivers what its own code says that a service takes, and what a process of that service
that runs says itself: each of the two may be of the newer release, and what one of them takes and
the other does not know is held rather than passed over, so that its key stays in order (O1, O5).

The registry is where a publisher hears of it, whichever machine the process runs on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from synchromesh.discovery.endpoint import Endpoint

# The key of the fact about an endpoint.
TAKES = "takes"


def declaration_of(names: Iterable[str]) -> tuple[str, str]:
    """Return the fact about an endpoint that says which public events its process takes.

    Example:
        >>> declaration_of({"shop.sold", "shop.returned"})
        ('takes', 'shop.returned shop.sold')
    """
    return TAKES, " ".join(sorted(names))


class Declared:
    """Keeps what the processes of each service declare that they take; a pure machine.

    A service of which no process is listed takes what it took last: it is away, and will be back.

    Attributes:
        events: public events, by their stored names, that each service takes; services of which no
            process has declared anything yet are left out.

    Example:
        >>> declared = Declared()
        >>> place = Endpoint("stock", "stock", "http://stock:1", (declaration_of({"shop.sold"}),))
        >>> declared.note("stock", [place])
        >>> declared.note("stock", [])
        >>> declared
        <Declared stock: shop.sold>
    """

    def __init__(self) -> None:
        self.events: dict[str, frozenset[str]] = {}
        self._listeners: list[Callable[[], None]] = []

    def note(self, service: str, endpoints: Iterable[Endpoint]) -> None:
        """Note the processes of a service that are listed now; listeners are told of a change."""
        said = [value for each in endpoints for key, value in each.metadata if key == TAKES]
        if not said:
            return
        events = frozenset(name for value in said for name in value.split())
        if self.events.get(service) != events:
            self.events[service] = events
            for listener in [*self._listeners]:
                listener()

    def remember(self, service: str, events: frozenset[str]) -> None:
        """Note what a service took last, of which nothing else is known: it is away."""
        self.events.setdefault(service, events)

    def added_to(self, known: Mapping[str, frozenset[str]]) -> dict[str, frozenset[str]]:
        """Return what each service takes, by either: what is known of it, or what it declares."""
        none: frozenset[str] = frozenset()
        names = sorted({*known, *self.events})
        found = {name: known.get(name, none) | self.events.get(name, none) for name in names}
        return {name: events for name, events in found.items() if events}

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call a function after each change; return what ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def __repr__(self) -> str:
        told = (f"{name}: {', '.join(sorted(taken))}" for name, taken in self.events.items())
        return f"<Declared {'; '.join(told) or 'nothing'}>"
