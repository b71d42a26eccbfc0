"""Routing: matches method and path against templates. A pure machine.

A path is split at its slashes before anything in it is decoded, so that an encoded slash is a
character of a value and never a step. A segment given by name wins over a place, a place over a
rest, and two routes that would each win somewhere on one path are refused (`clashes`).

Source: RFC 3986, sections 2.4 and 3.3.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, zip_longest
from typing import Protocol, TypeVar
from urllib.parse import quote, unquote

from synchromesh.calls.routes import ANY, Match, NoMatch
from synchromesh.errors import BadRequest, ConfigError

T = TypeVar("T")

_Indexed = tuple[int, tuple[str, ...]]

_ROUTE = re.compile(r"(GET|POST|PUT|PATCH|DELETE|ANY) (/[A-Za-z0-9_.~/{}-]*)")
_SEGMENT = re.compile(r"[A-Za-z0-9_.~-]*|\{[a-z_][a-z0-9_]*\}")
_REST = re.compile(r"\{([a-z_][a-z0-9_]*)\.\.\.\}")


@dataclass(frozen=True, slots=True)
class Template:
    """A method, or ANY, and a path with parameters; the last may be a rest, `{name...}`.

    Example:
        >>> Template.of("GET /stock/{sku}").places
        ('sku',)
        >>> Template.of("ANY /app/{path...}").places
        ('path',)
    """

    method: str
    path: str

    @classmethod
    def of(cls, text: str) -> Template:
        """Parse a template.

        Raises:
            ConfigError: it is none.
        """
        text = str(text)
        matched = _ROUTE.fullmatch(text)
        *parts, last = matched[2].split("/") if matched else [""]
        if not (
            matched
            and all(map(_SEGMENT.fullmatch, parts))
            and (_SEGMENT.fullmatch(last) or _REST.fullmatch(last))
        ):
            raise ConfigError(
                f"{text[:80]!r} is not a route; write a method and a path, such as "
                '"GET /stock/{sku}"; a {place} is a whole segment of the path, and a {rest...} all '
                "that follows, at its end"
            )
        template = cls(matched[1], matched[2])
        if len(set(template.places)) < len(template.places):
            raise ConfigError(f"{text[:80]!r} names a place twice")
        return template

    @property
    def steps(self) -> tuple[str, ...]:
        """The segments of the path without its rest; "{}" for a parameter."""
        parts = self.path.split("/")[1:]
        if self.has_rest:
            del parts[-1]
        return tuple("{}" if part.startswith("{") else part for part in parts)

    @property
    def has_rest(self) -> bool:
        """Whether the last parameter takes all that follows."""
        return self.path.endswith("...}")

    @property
    def places(self) -> tuple[str, ...]:
        """The names of the path's parameters, in order."""
        return tuple(
            part[1:-1].removesuffix("...") for part in self.path.split("/") if part.startswith("{")
        )


@dataclass(frozen=True, slots=True)
class _Form:
    """What templates have in common that differ in their names alone.

    Attributes:
        method: theirs.
        length: the segments before the rest, or all.
        places: which of them are places.
        has_rest: whether a rest follows.
    """

    method: str
    length: int
    places: frozenset[int]
    has_rest: bool

    @classmethod
    def of(cls, template: Template) -> _Form:
        """Return the form of a template."""
        segments = template.steps
        places = frozenset(at for at, segment in enumerate(segments) if segment == "{}")
        return cls(template.method, len(segments), places, template.has_rest)

    def meets(self, other: _Form) -> bool:
        """Tell whether one path, under one method, can have both forms."""
        if self.method != other.method and ANY not in (self.method, other.method):
            return False
        return (
            (self.has_rest or self.length >= other.length + other.has_rest)
            and (other.has_rest or other.length >= self.length + self.has_rest)
        )  # fmt: skip

    def is_closer_somewhere(self, other: _Form) -> bool:
        """Tell whether it names what is a place of the other's, or more than that before a rest."""
        if other.has_rest and not (self.has_rest and self.length <= other.length):
            return True
        return any(at not in self.places for at in other.places if at < self.length)

    def clashes(self, other: _Form) -> bool:
        """Tell whether neither of two that meet is the closer one; equal ones by their method."""
        if self == other:
            return True
        return self.is_closer_somewhere(other) and other.is_closer_somewhere(self)


def clash_of(one: Template, other: Template) -> str:
    """Return a path for which neither of two templates is the better match, or "".

    Example:
        >>> clash_of(Template.of("GET /a/{x}/c"), Template.of("GET /a/b/{y}"))
        '/a/b/c'
        >>> clash_of(Template.of("GET /a/{x}"), Template.of("GET /a/b"))
        ''
        >>> clash_of(Template.of("GET /{x}/c"), Template.of("ANY /a/{path...}"))
        '/a/c'
    """
    form, other_form = _Form.of(one), _Form.of(other)
    if not form.meets(other_form) or not form.clashes(other_form):
        return ""
    path = ""
    for a, b in zip_longest(one.steps, other.steps, fillvalue="{}"):
        if a != b and "{}" not in (a, b):
            return ""
        path += "/" + (("x" if b == "{}" else b) if a == "{}" else a)
    return path if not (form.has_rest and other_form.has_rest) else f"{path}/x"


def meets(one: Template, other: Template) -> bool:
    """Tell whether there is a request that either would match.

    Example:
        >>> meets(Template.of("ANY /app/{path...}"), Template.of("PUT /app/{name}"))
        True
        >>> meets(Template.of("GET /app/{name}"), Template.of("GET /{name}"))
        False
    """
    return _Form.of(one).meets(_Form.of(other)) and all(
        a == b or "{}" in (a, b) for a, b in zip(one.steps, other.steps, strict=False)
    )


def is_closer(one: Template, other: Template) -> bool:
    """Tell whether there is a path that either would match, and the first has it.

    Example:
        >>> is_closer(Template.of("GET /app/admin"), Template.of("ANY /app/{path...}"))
        True
        >>> is_closer(Template.of("GET /app/admin"), Template.of("PUT /app/{path...}"))
        False
    """
    return meets(one, other) and _Form.of(one).is_closer_somewhere(_Form.of(other))


def clashes(templates: Sequence[Template]) -> list[tuple[int, int, str]]:
    """Return the pairs of templates that clash, by their indexes in order, each with a path.

    Templates are compared a form at a time: what stands at the same steps by name is looked up in a
    table. It takes time that grows with their number and with what is found, not with all pairs.

    Example:
        >>> paths = ("GET /a/{x}/c", "GET /a/{x}", "GET /a/b/{y}")
        >>> clashes([Template.of(path) for path in paths])
        [(0, 2, '/a/b/c')]
    """
    forms: dict[_Form, list[_Indexed]] = defaultdict(list)
    for index, template in enumerate(templates):
        forms[_Form.of(template)].append((index, template.steps))
    pairs = sorted({(min(pair), max(pair)) for pair in _clashing(forms)})
    return [(one, other, clash_of(templates[one], templates[other])) for one, other in pairs]


def _clashing(forms: dict[_Form, list[_Indexed]]) -> Iterator[tuple[int, int]]:
    """Yield the pairs of templates that clash, in any order."""
    for form, alike in forms.items():
        for same in _table(alike, range(form.length)).values():
            yield from combinations(same, 2)
    for (form, ones), (other_form, others) in combinations(forms.items(), 2):
        if not form.meets(other_form) or not form.clashes(other_form):
            continue
        steps = range(min(form.length, other_form.length))
        named = [at for at in steps if at not in form.places and at not in other_form.places]
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


class Finding(Protocol[T]):
    """Finds the target of a request; `Routes` does."""

    def find(self, method: str, path: str, raw: str = "") -> Match[T] | NoMatch:
        """Find the target of a request, as `Routes.find` does."""
        ...


def find(routes: Finding[T], method: str, path: str) -> Match[T] | NoMatch:
    """Find the target of a request by its path, percent-encoded and without a query.

    Other than for `Routes.find`, `%61` is `a`. Places are still percent-encoded, and a rest is as
    it came.

    Raises:
        BadRequest: what is encoded is not UTF-8, or holds a control character.

    Example:
        >>> from synchromesh.calls.routes import Routes
        >>> routes = Routes[str](has_empty_places=False)
        >>> routes.add("GET", "/stock/{sku}", "stock")
        >>> find(routes, "GET", "/%73tock/a%2Fb")
        Match(target='stock', places={'sku': 'a%2Fb'})
        >>> find(routes, "GET", "/stock/")
        NoMatch(allowed=())
    """
    if not path.startswith("/"):
        return NoMatch()
    return routes.find(method, _canonical(path) if "%" in path else path, path)


def _canonical(path: str) -> str:
    """Normalize percent-encoding: `%61` is `a` (RFC 3986, section 6.2.2.2)."""
    try:
        segments = [unquote(part, errors="strict") for part in path.split("/")]
    except UnicodeDecodeError as error:
        raise BadRequest("the path is not UTF-8 once it is decoded") from error
    if any(ord(c) < 0x20 or ord(c) == 0x7F for segment in segments for c in segment):
        raise BadRequest("the path holds a control character")
    return "/".join(quote(segment, safe="") for segment in segments)
