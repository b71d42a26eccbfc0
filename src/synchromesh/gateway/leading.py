"""Where answers lead: what an upstream says of its own places, as it is seen from outside.

An upstream names itself in `Location` and the like, by its own address and its own paths. Clients
can reach neither: they would learn an internal address and follow it nowhere. So what leads to the
upstream becomes a path of the gateway, without a host: that cannot be wrong behind a proxy. What
leads elsewhere stays as it is. A pure machine.

Source: RFC 9110, sections 8.7 and 10.2.2; RFC 3986, section 4.2; RFC 6265, section 5.2; RFC 8288.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from synchromesh.calls.routes import ANY, Match, Routes
from synchromesh.errors import BadRequest, ConfigError
from synchromesh.gateway.router import find

_URL = re.compile(r"(?:(?i:(https?|wss?)):)?//([^/?#\\]*)([^?#]*)(.*)", re.DOTALL)
_PATH = re.compile(r"(/(?![/\\])[^?#]*)(.*)", re.DOTALL)
_URL_IS = re.compile(r"[ \t]*(?:url[ \t]*=[ \t]*)?[\"']?", re.IGNORECASE)
# Clients drop what cannot be seen, and take a backslash for a slash: `/<tab>\\host` is `//host`.
_HOST = re.compile(r"/[\x00-\x20\x7f]*[/\\]")
_TARGET = re.compile(r"<([^<>]*)>")
_PLACE = re.compile(r"\{([a-z_][a-z0-9_]*)(?:\.\.\.)?\}")
_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}


@dataclass(frozen=True, slots=True)
class UpstreamPaths:
    """Knows the paths by which the routes of a gateway lead to one upstream.

    Example:
        >>> ways = UpstreamPaths()
        >>> ways.add("/app/{path...}", "/{path...}")
        >>> ways.outside("/a/b")
        '/app/a/b'
    """

    _routes: Routes[str] = field(default_factory=lambda: Routes(has_empty_places=False))

    def add(self, route: str, path: str) -> None:
        """Add a route, and the path that the upstream has it at; the first for a path counts."""
        try:
            self._routes.add(ANY, path, route)
        except ConfigError:
            return

    def outside(self, path: str) -> str | None:
        """Return the path of the gateway that leads to one of the upstream; None for none."""
        try:
            found = find(self._routes, "GET", path)
        except BadRequest:
            return None
        if not isinstance(found, Match):
            return None
        return _PLACE.sub(lambda place: found.places[place[1]], found.target)


class Leading:
    """Tells what fields of the answers of one instance are outside.

    Args:
        ways: of the route that was asked, and then all of the upstream's.
        url: of the instance.

    Example:
        >>> ways = UpstreamPaths()
        >>> ways.add("/app/{path...}", "/{path...}")
        >>> leading = Leading((ways,), "http://10.0.0.7:8000")
        >>> leading.of("location", "http://10.0.0.7:8000/login?next=%2F")
        '/app/login?next=%2F'
        >>> leading.of("set-cookie", "id=1; Path=/; Domain=10.0.0.7; HttpOnly")
        'id=1; Path=/app; HttpOnly'
    """

    __slots__ = ("_host", "_own", "_prefix", "_ways")

    def __init__(self, ways: tuple[UpstreamPaths, ...], url: str) -> None:
        parts = urlsplit(url)
        self._ways = ways
        self._host = (parts.hostname or "").rstrip(".")
        self._own = (self._host, parts.port or _PORTS.get(parts.scheme, 80))
        self._prefix = parts.path.rstrip("/")

    def of(self, name: str, value: str) -> str:
        """Return a field of `FIELDS` as it is outside."""
        return FIELDS[name](self, value)

    def raw(self, name: bytes, value: bytes) -> bytes:
        """Return the same of a field as it came."""
        return FIELDS[name.decode("ascii")](self, value.decode("latin-1")).encode("latin-1")

    def __repr__(self) -> str:
        return f"<Leading from {self._host}:{self._own[1]}>"

    def _reference(self, text: str) -> str:
        """Return a reference; one that is relative to the asked path is so outside, too."""
        url = _URL.fullmatch(text)
        if url is not None:
            scheme, authority, path, more = url.groups()
            if not self._is_own(authority, scheme):
                return text
            path = path or "/"
            outside = self._outside(path) or path
        else:
            own = _PATH.fullmatch(text)
            if own is None:
                return text
            path, more = own.groups()
            outside = self._outside(path) or path
        # Two slashes would make a host of what follows.
        return f"/.{outside}{more}" if _HOST.match(outside) else outside + more

    def _outside(self, path: str) -> str | None:
        if self._prefix:
            if path != self._prefix and not path.startswith(self._prefix + "/"):
                return None
            path = path[len(self._prefix) :] or "/"
        for ways in self._ways:
            outside = ways.outside(path)
            if outside is not None:
                return outside
        return None

    def _is_own(self, authority: str, scheme: str | None) -> bool:
        try:
            parts = urlsplit(f"//{authority}")
            host, port = (parts.hostname or "").rstrip("."), parts.port
        except ValueError:
            return False
        if port is None:
            port = self._own[1] if scheme is None else _PORTS[scheme.lower()]
        return (host, port) == self._own

    def _refresh(self, text: str) -> str:
        delay, mark, rest = text.partition(";")
        begun = _URL_IS.match(rest)
        assert begun is not None, "it matches nothing, too"
        target = rest[begun.end() :].rstrip(" \t\"'")
        end = rest[begun.end() + len(target) :]
        return f"{delay}{mark}{begun[0]}{self._reference(target)}{end}"

    def _link(self, text: str) -> str:
        return _TARGET.sub(lambda target: f"<{self._reference(target[1])}>", text)

    def _cookie(self, text: str) -> str:
        pair, *attributes = text.split(";")
        # A browser takes such a cookie with the path "/" alone.
        is_bound = pair.strip(" \t").lower().startswith("__host-")
        kept = [pair]
        for attribute in attributes:
            name, _, value = attribute.partition("=")
            name, value = name.strip(" \t").lower(), value.strip(" \t")
            if name == "domain" and value.removeprefix(".").lower() == self._host:
                continue  # it is the gateway's then, which its client may call as it likes
            if name == "path" and value.startswith("/") and not is_bound:
                kept.append(f" Path={self._cookie_path(value)}")
            else:
                kept.append(attribute)
        return ";".join(kept)

    def _cookie_path(self, path: str) -> str:
        outside = self._outside(path) or self._outside(f"{path}/")
        return path if outside is None else outside.rstrip("/") or "/"


FIELDS: Final[dict[str, Callable[[Leading, str], str]]] = {
    "content-location": Leading._reference,
    "link": Leading._link,
    "location": Leading._reference,
    "refresh": Leading._refresh,
    "set-cookie": Leading._cookie,
}
