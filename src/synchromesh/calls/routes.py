"""Routes: what a method and a path mean. A pure table, a tree of path segments."""

from __future__ import annotations

from dataclasses import dataclass, field
from sys import intern
from typing import Any, Final, Generic, TypeVar

from synchromesh.errors import ConfigError

T = TypeVar("T")

# Stands for every method but those that echo a request or open a tunnel.
ANY: Final = "ANY"
ANY_METHODS: Final = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
_NEVER: Final = frozenset({"CONNECT", "TRACE"})


@dataclass(frozen=True, slots=True)
class Match(Generic[T]):
    """A matching route, and the values of its parameters, percent-encoded."""

    target: T
    places: dict[str, str]


@dataclass(frozen=True, slots=True)
class NoMatch:
    """No matching route; `allowed` are the methods that the path does have."""

    allowed: tuple[str, ...] = ()


# A search in a large table waits for memory above all: what many nodes have in common is one
# object, also that they have nothing.
_NOTHING: Final[dict[str, Any]] = {}


def _nothing() -> dict[str, Any]:
    return _NOTHING


@dataclass(slots=True)
class _Node(Generic[T]):
    """One segment of paths; `targets` are those of the paths that end here, with their places.

    `rests` are those of the paths that go on from here with whatever follows.
    """

    literals: dict[str, _Node[T]] = field(default_factory=_nothing)
    place: _Node[T] | None = None
    targets: dict[str, tuple[T, tuple[str, ...]]] = field(default_factory=_nothing)
    rests: dict[str, tuple[T, tuple[str, ...]]] = field(default_factory=_nothing)


class Routes(Generic[T]):
    """Finds a target by method and path.

    A segment given by name wins over a place, a place over a rest, `{name...}`, which holds all
    segments that follow, at least one. A method wins over `ANY` on the same path.

    Args:
        has_empty_places: a place holds an empty segment, too; a rest always may.

    Example:
        >>> routes = Routes[str]()
        >>> routes.add("GET", "/stock/{sku}", "stock")
        >>> routes.find("GET", "/stock/SX90")
        Match(target='stock', places={'sku': 'SX90'})
        >>> routes.find("PUT", "/stock/SX90")
        NoMatch(allowed=('GET', 'HEAD'))
        >>> routes.add("ANY", "/app/{path...}", "app")
        >>> routes.find("PUT", "/app/a//b")
        Match(target='app', places={'path': 'a//b'})
    """

    def __init__(self, *, has_empty_places: bool = True) -> None:
        self._root: _Node[T] = _Node()
        # By method and path, those without places: each wins over all others on its path.
        self._plain: dict[tuple[str, str], Match[T]] = {}
        self._places: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._has_empty_places = has_empty_places
        # What was looked for last: a request is looked for where its head is judged, and again by
        # whoever answers it.
        self._last: tuple[tuple[str, str, str], Match[T] | NoMatch] | None = None

    def add(self, method: str, template: str, target: T) -> None:
        """Add a route; `{name}` is a place of one segment, `{name...}` at its end a rest.

        Raises:
            ConfigError: the route is taken.
        """
        node, names, is_rest = self._root, [], False
        for segment in template.split("/"):
            if segment.endswith("...}"):
                names.append(intern(segment[1:-4]))
                is_rest = True
                break
            if segment.startswith("{"):
                names.append(intern(segment[1:-1]))
                if node.place is None:
                    node.place = _Node()
                node = node.place
            else:
                node.literals = node.literals or {}
                node = node.literals.setdefault(intern(segment), _Node())
        if is_rest:
            targets = node.rests = node.rests or {}
        else:
            targets = node.targets = node.targets or {}
        taken = targets.get(method)
        if taken is not None:
            raise ConfigError(
                f"{method} {template} is taken by {taken[0]}; give one of the two another path, or "
                "mount its service under a prefix"
            )
        places = tuple(names)
        targets[intern(method)] = (target, self._places.setdefault(places, places))
        self._last = None
        if not names:
            self._plain[method, template] = Match(target, {})

    def find(self, method: str, path: str, raw: str = "") -> Match[T] | NoMatch:
        """Find the target of a request; path is percent-encoded and without a query.

        HEAD is where GET is, unless it has a route of its own (RFC 9110, section 9.3.2). A rest is
        given as it is in `raw`, which is the same path as it came; "" where path is that.
        """
        plain = self._plain.get((method, path))
        if plain is not None:
            return plain
        asked = (method, path, raw)
        last = self._last
        if last is not None and last[0] == asked:
            return last[1]
        search: _Search[T] = _Search(method, path.split("/"), raw or path, self._has_empty_places)
        found = search.below(self._root, 0, ()) or NoMatch(tuple(sorted(search.allowed)))
        self._last = (asked, found)
        return found


class _Search(Generic[T]):
    """One look for a request; `allowed` are the methods that its path has and that is not."""

    __slots__ = ("_has_empty_places", "_method", "_raw", "_segments", "allowed")

    def __init__(self, method: str, segments: list[str], raw: str, has_empty_places: bool) -> None:
        self._method = method
        self._segments = segments
        self._raw = raw
        self._has_empty_places = has_empty_places
        self.allowed: set[str] = set()

    def below(self, node: _Node[T], at: int, held: tuple[str, ...]) -> Match[T] | None:
        """Return the closest match of the segments from one on; `held` is what places hold."""
        segments = self._segments
        if at == len(segments):
            return self._match(node.targets, held) if node.targets else None
        segment = segments[at]
        literal = node.literals.get(segment)
        match = None if literal is None else self.below(literal, at + 1, held)
        if match is None and node.place is not None and (segment or self._has_empty_places):
            match = self.below(node.place, at + 1, (*held, segment))
        if match is None and node.rests:
            match = self._match(node.rests, (*held, self._raw.split("/", at)[at]))
        return match

    def _match(
        self, targets: dict[str, tuple[T, tuple[str, ...]]], held: tuple[str, ...]
    ) -> Match[T] | None:
        found = targets.get(self._method)
        if found is None and self._method == "HEAD":
            found = targets.get("GET")
        if found is None and self._method not in _NEVER:
            found = targets.get(ANY)
        if found is not None:
            return Match(found[0], dict(zip(found[1], held, strict=True)))
        self.allowed.update(targets, ("HEAD",) if "GET" in targets else ())
        if ANY in self.allowed:
            self.allowed.remove(ANY)
            self.allowed.update(ANY_METHODS)
        return None
