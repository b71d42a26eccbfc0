"""Routing: matches method and path against templates. A pure machine.

A path is split at its slashes before anything in it is decoded, so that an encoded slash is a
character of a value and never a step. A segment given by name wins over a place, and two routes
that would each win somewhere on one path are refused (`clashes`).

Source: RFC 3986, sections 2.4 and 3.3.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar
from urllib.parse import quote, unquote

from synchromesh.calls.routes import Match, NoMatch, Routes
from synchromesh.errors import BadRequest, ConfigError

T = TypeVar("T")

_Places = frozenset[int]
_Indexed = tuple[int, tuple[str, ...]]

_ROUTE = re.compile(r"(GET|POST|PUT|PATCH|DELETE) (/[A-Za-z0-9_.~/{}-]*)")
_SEGMENT = re.compile(r"[A-Za-z0-9_.~-]*|\{[a-z_][a-z0-9_]*\}")


@dataclass(frozen=True, slots=True)
class Template:
    """A method and a path with parameters.

    Example:
        >>> Template.of("GET /stock/{sku}").places
        ('sku',)
    """

    method: str
    path: str

    @classmethod
    def of(cls, text: str) -> Template:
        """Parse a template.

        Raises:
            ConfigError: it is none.
        """
        matched = _ROUTE.fullmatch(text)
        if matched is None or not all(map(_SEGMENT.fullmatch, matched[2].split("/"))):
            raise ConfigError(
                f"{text[:80]!r} is not a route; write a method and a path, such as "
                '"GET /stock/{sku}"; a {place} is a whole segment of the path'
            )
        template = cls(matched[1], matched[2])
        if len(set(template.places)) < len(template.places):
            raise ConfigError(f"{text[:80]!r} names a place twice")
        return template

    @property
    def segments(self) -> tuple[str, ...]:
        """The segments of the path; "" for a parameter."""
        parts = self.path.split("/")[1:]
        return tuple("{}" if part.startswith("{") else part for part in parts)

    @property
    def places(self) -> tuple[str, ...]:
        """The names of the path's parameters, in order."""
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


def clashes(templates: Sequence[Template]) -> list[tuple[int, int, str]]:
    """Return the pairs of templates that clash, by their indexes in order, each with a path.

    Templates are compared a form at a time: what stands at the same steps by name is looked up in a
    table. It takes time that grows with their number and with what is found, not with all pairs.

    Example:
        >>> paths = ("GET /a/{x}/c", "GET /a/{x}", "GET /a/b/{y}")
        >>> clashes([Template.of(path) for path in paths])
        [(0, 2, '/a/b/c')]
    """
    alike: dict[tuple[str, int], dict[_Places, list[_Indexed]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for index, template in enumerate(templates):
        segments = template.segments
        places = frozenset(at for at, segment in enumerate(segments) if segment == "{}")
        alike[template.method, len(segments)][places].append((index, segments))
    pairs = [
        (min(pair), max(pair))
        for (_, length), forms in alike.items()
        for pair in _clashing(length, forms)
    ]
    return [
        (one, other, clash_of(templates[one], templates[other])) for one, other in sorted(pairs)
    ]


def _clashing(length: int, forms: dict[_Places, list[_Indexed]]) -> Iterator[tuple[int, int]]:
    """Yield the pairs of one method and length that clash; a form is where its places are."""
    for form in forms.values():
        for same in _table(form, range(length)).values():
            yield from combinations(same, 2)
    for (a, ones), (b, others) in combinations(forms.items(), 2):
        if a <= b or b <= a:
            continue  # the one with fewer places is the closer match wherever both match
        named = [at for at in range(length) if at not in a and at not in b]
        table = _table(others, named)
        for key, found in _table(ones, named).items():
            for one in found:
                for other in table.get(key, ()):
                    yield one, other


def _table(form: list[_Indexed], steps: Iterable[int]) -> dict[tuple[str, ...], list[int]]:
    """Return the indexes of templates by what they have at some steps."""
    table: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, segments in form:
        table[tuple([segments[at] for at in steps])].append(index)
    return table


def find(routes: Routes[T], method: str, path: str) -> Match[T] | NoMatch:
    """Find the target of a request by its path, percent-encoded and without a query.

    Other than for `Routes.find`, `%61` is `a`, and no place of a match is empty; the places are
    still percent-encoded.

    Raises:
        BadRequest: what is encoded is not UTF-8, or holds a control character.

    Example:
        >>> routes = Routes[str]()
        >>> routes.add("GET", "/stock/{sku}", "stock")
        >>> find(routes, "GET", "/%73tock/a%2Fb")
        Match(target='stock', places={'sku': 'a%2Fb'})
        >>> find(routes, "GET", "/stock/")
        NoMatch(allowed=())
    """
    if not path.startswith("/"):
        return NoMatch()
    found = routes.find(method, _canonical(path) if "%" in path else path)
    if isinstance(found, Match) and not all(found.places.values()):
        return NoMatch()
    return found


def _canonical(path: str) -> str:
    """Normalize percent-encoding: `%61` is `a` (RFC 3986, section 6.2.2.2)."""
    try:
        segments = [unquote(part, errors="strict") for part in path.split("/")]
    except UnicodeDecodeError as error:
        raise BadRequest("the path is not UTF-8 once it is decoded") from error
    if any(ord(c) < 0x20 or ord(c) == 0x7F for segment in segments for c in segment):
        raise BadRequest("the path holds a control character")
    return "/".join(quote(segment, safe="") for segment in segments)
