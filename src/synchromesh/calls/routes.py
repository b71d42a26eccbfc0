"""Routes: which operation a method and a path mean. A pure table, a tree of path segments."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from synchromesh.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Match(Generic[T]):
    """A matching route, and the values of its parameters, still percent-encoded."""

    target: T
    places: dict[str, str]


@dataclass(frozen=True, slots=True)
class NoMatch:
    """No matching route; `allowed` are the methods that the path does have."""

    allowed: tuple[str, ...] = ()


@dataclass(slots=True)
class _Node(Generic[T]):
    """One segment of paths; `targets` are those of the paths that end here, with their places."""

    literals: dict[str, _Node[T]] = field(default_factory=dict)
    place: _Node[T] | None = None
    targets: dict[str, tuple[T, tuple[str, ...]]] = field(default_factory=dict)


class Routes(Generic[T]):
    """Finds a target by method and path; a segment given by name wins over a place.

    Example:
        >>> routes = Routes[str]()
        >>> routes.add("GET", "/stock/{sku}", "stock")
        >>> routes.find("GET", "/stock/SX90")
        Match(target='stock', places={'sku': 'SX90'})
        >>> routes.find("PUT", "/stock/SX90")
        NoMatch(allowed=('GET',))
    """

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()

    def add(self, method: str, template: str, target: T) -> None:
        """Add a route; `{name}` is a place that holds one segment.

        Raises:
            ConfigError: the route is taken.
        """
        node, names = self._root, []
        for segment in template.split("/"):
            if segment.startswith("{"):
                names.append(segment[1:-1])
                if node.place is None:
                    node.place = _Node()
                node = node.place
            else:
                node = node.literals.setdefault(segment, _Node())
        taken = node.targets.get(method)
        if taken is not None:
            raise ConfigError(
                f"{method} {template} is taken by {taken[0]}; give one of the two another path, or "
                "mount its service under a prefix"
            )
        node.targets[method] = (target, tuple(names))

    def find(self, method: str, path: str) -> Match[T] | NoMatch:
        """Find the target of a request; path is percent-encoded and without a query."""
        allowed: set[str] = set()
        found = _find(self._root, path.split("/"), 0, method, (), allowed)
        return NoMatch(tuple(sorted(allowed))) if found is None else found


def _find(
    node: _Node[T],
    segments: list[str],
    at: int,
    method: str,
    held: tuple[str, ...],
    allowed: set[str],
) -> Match[T] | None:
    if at == len(segments):
        found = node.targets.get(method)
        if found is None:
            allowed.update(node.targets)
            return None
        target, names = found
        return Match(target, dict(zip(names, held, strict=True)))
    literal = node.literals.get(segments[at])
    if literal is not None:
        match = _find(literal, segments, at + 1, method, held, allowed)
        if match is not None:
            return match
    if node.place is None:
        return None
    return _find(node.place, segments, at + 1, method, (*held, segments[at]), allowed)
