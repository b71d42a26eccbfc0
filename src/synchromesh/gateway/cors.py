"""Cross-origin requests (CORS): which pages of other origins may read answers, and send what.

A browser asks before it sends what no form could (the preflight), and shows an answer to a page
only if that says so. It is the browser that is told; whoever is no browser is kept out by
credentials alone.

A pure machine. Source: the Fetch standard, section 3.2.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final, TypeAlias

from synchromesh.durations import duration
from synchromesh.errors import ConfigError
from synchromesh.gateway.shapes import is_a

Fields: TypeAlias = tuple[tuple[str, str], ...]

ANYBODY: Final = "*"
ORIGIN: Final = "origin"
WANTED_METHOD: Final = "access-control-request-method"
WANTED_HEADERS: Final = "access-control-request-headers"
# A field whose name begins so is the gateway's to say where a route has a `Cors`.
SAID_BY_US: Final = "access-control-"
MAX_AGE_S: Final = 86_400

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")
_METHOD = re.compile(r"[A-Z]{1,32}")
# What any page may send without asking.
_SAFE: Final = frozenset({"accept", "accept-language", "content-language", "content-type", "range"})
_ORIGIN_FIELD: Final = ORIGIN.encode()
_VARY: Final = ("vary", "origin")
_VARY_ASKED: Final = ("vary", f"origin, {WANTED_METHOD}, {WANTED_HEADERS}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cors:
    """Says which pages of other origins may use a route, and what of an answer they may read.

    Attributes:
        origins: of those pages, such as {"https://shop.example"}, each exactly as a browser sends
            it; {"*"} for all, and an empty set for none.
        credentials: whether a browser may send its cookies and client certificate along, and show
            the answer then. Not with "*". A key or a token that the page itself sends needs none of
            it.
        headers: which request headers a page may set, besides those that any may.
        exposed: which headers of an answer a page may read, besides those that any may.
        max_age: for how long a browser need not ask again; at most a day.

    Example:
        >>> Cors(origins={"https://shop.example"}).max_age
        '10m'
    """

    origins: AbstractSet[str]
    credentials: bool = False
    headers: Collection[str] = (
        "authorization", "content-type", "idempotency-key", "if-match", "if-none-match",
        "traceparent", "tracestate", "x-api-key", "x-request-id",
    )  # fmt: skip
    exposed: Collection[str] = (
        "content-disposition", "etag", "idempotency-key", "location", "ratelimit",
        "ratelimit-policy", "retry-after",
        "synchromesh-fallback", "synchromesh-partial", "synchromesh-trace", "x-request-id",
    )  # fmt: skip
    max_age: str = "10m"


class CompiledCors:
    """A `Cors` as the engine asks it.

    Attributes:
        is_open: whether pages of all origins may use it.
        said: what answers say, by the origin of the page that asks.
        said_to_others: what they say to everybody else.
        wire, others: the same, as lines.
    """

    def __init__(self, cors: Cors, max_age_s: float) -> None:
        self._headers = frozenset(cors.headers)
        self._max_age_s = int(max_age_s)
        more: list[tuple[str, str]] = []
        if cors.credentials:
            more.append(("access-control-allow-credentials", "true"))
        self._credentials = tuple(more)
        if cors.exposed:
            more.append(("access-control-expose-headers", ", ".join(sorted(cors.exposed))))
        self.is_open = ANYBODY in cors.origins
        if self.is_open:
            # The same to everybody, so that it does not vary.
            self.said: dict[str, Fields] = {}
            self.said_to_others: Fields = (("access-control-allow-origin", ANYBODY), *more)
        else:
            self.said = {
                origin: (("access-control-allow-origin", origin), *more, _VARY)
                for origin in cors.origins
            }
            self.said_to_others = (_VARY,)
        self.wire = {origin.encode(): _lines(said) for origin, said in self.said.items()}
        self.others = _lines(self.said_to_others)

    def fields(self, origins: Iterable[str]) -> Fields:
        """Return what an answer says, by the values of `Origin`; of several none counts."""
        asking = list(origins)
        return (
            self.said.get(asking[0], self.said_to_others)
            if len(asking) == 1
            else self.said_to_others
        )

    def lines(self, pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
        """Return the same as lines, by the fields of a request as they came."""
        asking = [value for name, value in pairs if name == _ORIGIN_FIELD]
        return self.wire.get(asking[0], self.others) if len(asking) == 1 else self.others

    def preflight(self, origin: str, method: str, headers: str) -> Fields | str:
        """Return what a browser is told that asks before it sends, or why it may not, in words.

        Args:
            origin: of the page.
            method: that it wants to use; there is a route for it.
            headers: that it wants to set, with commas.
        """
        allowed = ANYBODY if self.is_open else origin
        if not self.is_open and origin not in self.said:
            return "pages of this origin may not use it"
        if not _METHOD.fullmatch(method):
            return "no method has this name"
        for name in (part.strip(" \t").lower() for part in headers.split(",")):
            if name and name not in self._headers and name not in _SAFE:
                return f"a page may not set the header {name[:60]!r} here"
        said = [("access-control-allow-origin", allowed), *self._credentials]
        said.append(("access-control-allow-methods", method))
        if self._headers:
            said.append(("access-control-allow-headers", ", ".join(sorted(self._headers))))
        said.append(("access-control-max-age", str(self._max_age_s)))
        return (*said, _VARY_ASKED)

    def __repr__(self) -> str:
        who = "everybody" if self.is_open else ", ".join(sorted(self.said))
        return f"<CompiledCors for {who}>"


def _lines(fields: Fields) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in fields).encode("ascii")


def read_cors(cors: Cors, note: Callable[[str], None]) -> CompiledCors | None:
    """Return a `Cors` as the engine asks it, None for one of no origins; note what is wrong."""
    if not is_a(cors, Cors):
        note('its cors is none; write one such as Cors(origins={"https://shop.example"})')
        return None
    mistakes = [
        f'{name} is a text; write a set of texts, such as {{"..."}}'
        for name in ("origins", "headers", "exposed")
        if is_a(getattr(cors, name), str)
    ]
    if not mistakes:
        mistakes += _wrong_texts(cors)
    if ANYBODY in cors.origins:
        if cors.credentials:
            mistakes.append(
                'origins {"*"} with credentials would show every page what a user may see; name '
                "the origins, or drop credentials"
            )
        if len(cors.origins) > 1:
            mistakes.append('origins has "*" and others; "*" is all of them: write it alone')
    max_age_s = 0.0
    try:
        max_age_s = duration(cors.max_age, "max_age")
    except ConfigError as error:
        mistakes.append(error.message)
    if max_age_s > MAX_AGE_S:
        mistakes.append(f"max_age is {cors.max_age}; browsers keep it for a day at most")
    for mistake in mistakes:
        note(f"its cors: {mistake}")
    return CompiledCors(cors, max_age_s) if cors.origins and not mistakes else None


def _wrong_texts(cors: Cors) -> Iterable[str]:
    for origin in sorted(map(str, cors.origins)):
        if origin != ANYBODY and not _ORIGIN.fullmatch(origin):
            yield (
                f"{origin[:60]!r} is no origin; write scheme, host and port as a browser sends "
                'them, such as "https://shop.example"'
            )
    for name in sorted(map(str, [*cors.headers, *cors.exposed])):
        if name == ANYBODY or not _NAME.fullmatch(name):
            yield f'{name[:40]!r} is no header in lower case; name each, such as "x-part"'
