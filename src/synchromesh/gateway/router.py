"""Which route a request means: method and path against templates. A pure machine.

A path is split at its slashes before anything in it is decoded, so that an encoded slash is a
character of a value and never a step. A segment given by name wins over a place, and two routes
that would each win somewhere on one path are refused (`clash_of`).

Source: RFC 3986, sections 2.4 and 3.3.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Generic, TypeVar
from urllib.parse import quote, unquote

from synchromesh.calls.routes import Match, NoMatch, Routes
from synchromesh.errors import BadRequest, ConfigError

T = TypeVar("T")

_ROUTE = re.compile(r"(GET|POST|PUT|PATCH|DELETE) (/[A-Za-z0-9_.~/{}-]*)")
_SEGMENT = re.compile(r"[A-Za-z0-9_.~-]*|\{[a-z_][a-z0-9_]*\}")


@dataclass(frozen=True, slots=True)
class Template:
    """A method and a path with places.

    Example:
        >>> Template.of("GET /stock/{sku}").places
        ('sku',)
    """

    method: str
    path: str

    @classmethod
    def of(cls, text: str) -> Template:
        """Read a template.

        Raises:
            ConfigError: it is none.
        """
        matched = _ROUTE.fullmatch(text)
        if matched is None or not all(map(_SEGMENT.fullmatch, matched[2].split("/"))):
            raise ConfigError(
                f"{text[:80]!r} is no route; write a method and a path, such as "
                '"GET /stock/{sku}"; a {place} is a whole segment of the path'
            )
        template = cls(matched[1], matched[2])
        if len(set(template.places)) < len(template.places):
            raise ConfigError(f"{text[:80]!r} names a place twice")
        return template

    @property
    def segments(self) -> tuple[str, ...]:
        """What stands between the slashes; "" for a place."""
        parts = self.path.split("/")[1:]
        return tuple("{}" if part.startswith("{") else part for part in parts)

    @property
    def places(self) -> tuple[str, ...]:
        """The names of the places, in order."""
        return tuple(p[1:-1] for p in self.path.split("/") if p.startswith("{"))


def clash_of(one: Template, other: Template) -> str:
    """Return a path for which neither of two templates is the better match, or "".

    Example:
        >>> clash_of(Template.of("GET /a/{x}/c"), Template.of("GET /a/b/{y}"))
        '/a/b/c'
        >>> clash_of(Template.of("GET /a/{x}"), Template.of("GET /a/b"))
        ''
    """
    if one.method != other.method or len(one.segments) != len(other.segments):
        return ""
    path, wins = "", {"one": False, "other": False}
    for a, b in zip(one.segments, other.segments, strict=True):
        if a == "{}" != b:
            wins["other"] = True
        elif b == "{}" != a:
            wins["one"] = True
        elif a != b:
            return ""
        path += "/" + (("x" if b == "{}" else b) if a == "{}" else a)
    return path if wins["one"] == wins["other"] else ""


class Router(Generic[T]):
    """Finds the target of a request.

    Example:
        >>> router = Router[str]()
        >>> router.add(Template.of("GET /stock/{sku}"), "stock")
        >>> router.find("GET", "/stock/a%2Fb")
        Match(target='stock', places={'sku': 'a%2Fb'})
        >>> router.find("PUT", "/stock/SX90")
        NoMatch(allowed=('GET',))
    """

    def __init__(self) -> None:
        self._routes: Routes[T] = Routes()

    def add(self, template: Template, target: T) -> None:
        """Add a route.

        Raises:
            ConfigError: the same method and path are there already.
        """
        self._routes.add(template.method, template.path, target)

    def find(self, method: str, path: str) -> Match[T] | NoMatch:
        """Find the target of a request by its path, percent-encoded and without a query.

        The places of a match are still percent-encoded; none of them is empty.

        Raises:
            BadRequest: what is encoded is not UTF-8, or holds a control character.
        """
        if not path.startswith("/"):
            return NoMatch()
        found = self._routes.find(method, _canonical(path) if "%" in path else path)
        if isinstance(found, Match) and not all(found.places.values()):
            return NoMatch()
        return found


def _canonical(path: str) -> str:
    """Encode what has to be encoded and nothing else: `%61` is `a` (RFC 3986, section 6.2.2.2)."""
    try:
        segments = [unquote(part, errors="strict") for part in path.split("/")]
    except UnicodeDecodeError as error:
        raise BadRequest("the path is not UTF-8 once it is decoded") from error
    if any(ord(c) < 0x20 or ord(c) == 0x7F for segment in segments for c in segment):
        raise BadRequest("the path holds a control character")
    return "/".join(quote(segment, safe="") for segment in segments)
