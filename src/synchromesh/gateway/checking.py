"""Compiles and checks a gateway's definition: every mistake is reported before anything listens.

`check` returns the mistakes, `explain` says in words what is served, and `compiled` returns what
the engine runs on, or raises with every mistake.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from synchromesh.calls.contract import Operation
from synchromesh.calls.routes import ANY
from synchromesh.durations import duration
from synchromesh.errors import ConfigError, ContractError, SynchromeshError
from synchromesh.gateway.arguments import auth_mistakes, reading, sound
from synchromesh.gateway.branches import CompiledBranch, read_branches
from synchromesh.gateway.caching import CompiledCache, read_cache
from synchromesh.gateway.changes import name_of
from synchromesh.gateway.compiled import CompiledRoute
from synchromesh.gateway.compiled_beside import BesideReader
from synchromesh.gateway.cors import CompiledCors, read_cors
from synchromesh.gateway.described import read_described
from synchromesh.gateway.fallbacks import CompiledFallback, read_fallback
from synchromesh.gateway.forward import read_forward
from synchromesh.gateway.hosts import hosts_meet, is_host_pattern
from synchromesh.gateway.keys import is_scope
from synchromesh.gateway.leading import UpstreamPaths
from synchromesh.gateway.limits import burst_of, interval_of
from synchromesh.gateway.names import shared_names
from synchromesh.gateway.openapi import openapi
from synchromesh.gateway.principal import Auth
from synchromesh.gateway.router import Template, clashes, is_closer
from synchromesh.gateway.routes import (
    Aggregate,
    Forward,
    Gateway,
    Rate,
    Route,
)
from synchromesh.gateway.shapes import is_a, is_text
from synchromesh.priority import Priority, priority_of

T = TypeVar("T")

_BODILESS = ("GET", "DELETE")


@dataclass(frozen=True, slots=True)
class Reading:
    """A compiled gateway and its mistakes; with any mistake it is not served."""

    entries: tuple[CompiledRoute, ...]
    mistakes: tuple[str, ...]


def check(gateway: Gateway) -> tuple[str, ...]:
    """Return every mistake of a gateway, a sentence each; none where it can be served.

    It reads no file: whether those of keys are right is told by `synchromesh gateway check`.

    Example:
        >>> check(Gateway(routes=[]))
        ('the gateway has no routes; it would answer everything with 404',)
    """
    return read(gateway).mistakes


def compiled(gateway: Gateway) -> tuple[CompiledRoute, ...]:
    """Return the compiled routes.

    Raises:
        ConfigError: there are mistakes; the message names them all.
    """
    reading = read(gateway)
    if reading.mistakes:
        raise refusal_of(reading.mistakes)
    return reading.entries


def openapi_of(gateway: Gateway) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of a gateway, whether it serves one or not.

    Raises:
        ConfigError: there are mistakes; the message names them all.

    Example:
        >>> from typing import Protocol
        >>> from synchromesh.calls import Contract, query
        >>> class Inventory(Contract, Protocol, service="inventory", version="1.0"):
        ...     @query("GET /stock/{sku}")
        ...     async def stock(self, sku: str) -> int: ...
        >>> gateway = Gateway(routes=[Route("GET /stock/{sku}", Inventory.stock, public=True)])
        >>> list(openapi_of(gateway)["paths"])
        ['/stock/{sku}']
    """
    return openapi(gateway, compiled(gateway))


def refusal_of(mistakes: Sequence[str]) -> ConfigError:
    """Return the error that lists all mistakes."""
    lines = "".join(f"\n  {mistake}" for mistake in mistakes)
    return ConfigError(f"the gateway cannot be served, mistakes: {len(mistakes)}{lines}")


# -- reading ---------------------------------------------------------------------------------------


def read(gateway: Gateway) -> Reading:
    """Compile a gateway, and collect every mistake in it.

    Example:
        >>> read(Gateway(routes=[])).entries
        ()
    """
    gateway, mistakes = sound(gateway)
    # What could not be read may be what a route asks for.
    is_auth_whole = not any(each.startswith("auth") for each in mistakes)
    entries: list[CompiledRoute] = []
    ways: dict[tuple[str, str], UpstreamPaths] = defaultdict(UpstreamPaths)
    if not gateway.routes and not any(each.startswith("routes") for each in mistakes):
        mistakes.append("the gateway has no routes; it would answer everything with 404")
    wrong = {id(each): auth_mistakes(each) for each in gateway.auth}
    mistakes += [mistake for each in wrong.values() for mistake in each]
    mistakes += shared_names([each for each in gateway.auth if not wrong[id(each)]])
    noted: list[str] = []
    cors = None
    if gateway.cors is not None:
        given = gateway.cors
        cors = reading(lambda: read_cors(given, noted.append), noted, given, "its cors: ")
        mistakes += (f"the gateway: {each}" for each in noted)
    for route in gateway.routes:
        noted = []
        reader = _Reader(route, noted, ways, auth=gateway.auth, is_auth_whole=is_auth_whole)
        entry = reading(lambda: reader.entry(cors), noted, route)  # noqa: B023 - called at once
        mistakes += (f"{name_of(route)[:80]}: {each}" for each in noted)
        if entry is not None:
            entries.append(entry)
    if gateway.openapi is not None:
        has_auth = bool(gateway.auth) or not is_auth_whole
        entries += read_described(gateway, entries, mistakes, has_auth=has_auth)
    mistakes += _clashing(entries)
    return Reading(tuple(_guarded(entries, mistakes)), tuple(mistakes))


def _clashing(entries: Sequence[CompiledRoute]) -> Iterator[str]:
    """Find routes of which neither is the closer; of two hosts the closer one decides."""
    by_host: dict[str, list[CompiledRoute]] = defaultdict(list)
    for entry in entries:
        by_host[entry.host].append(entry)
    for same_host in by_host.values():
        for at, other_at, path in clashes([entry.template for entry in same_host]):
            one, other = same_host[at], same_host[other_at]
            same = one.template.steps == other.template.steps
            why = "have the same path" if same else f"both match {path}, and neither is the closer"
            yield f"{one.name} and {other.name} {why}; give one of them another path"


def _guarded(entries: Sequence[CompiledRoute], mistakes: list[str]) -> Iterator[CompiledRoute]:
    """Yield the routes, a `Forward` with what guards the paths of routes that ask for more.

    Routes are looked up by what their paths begin with, and by what they ask for.
    """
    below: dict[tuple[str, ...], dict[frozenset[str], list[CompiledRoute]]]
    below = defaultdict(lambda: defaultdict(list))
    for entry in entries:
        if entry.page is None and not entry.is_public:
            steps = entry.template.steps
            for length in range(len(steps) + 1):
                below[steps[:length]][entry.scopes].append(entry)
    for entry in entries:
        passage, template = entry.passage, entry.template
        if passage is None or not template.places:
            yield entry
            continue
        steps = template.steps
        named = steps[: steps.index("{}")] if "{}" in steps else steps
        more = [
            other
            for scopes, others in below.get(named, {}).items()
            if entry.is_public or scopes - entry.scopes
            for other in others
            if other.template.method == template.method
            or ANY in (other.template.method, template.method)
            if hosts_meet(other.host, entry.host)
        ]
        if more and passage.has_slashes:
            mistakes.append(
                f"{entry.name}: encoded_slashes would lead past {more[0].name}, which "
                "asks for more; drop it, or let both ask for the same"
            )
        is_guarded = any(is_closer(other.template, template) for other in more)
        yield entry.guarded() if is_guarded else entry


class _WaysOf(dict[str, tuple[UpstreamPaths, ...]]):
    """The ways to an upstream, on a host: what leads there on any host does so on this one."""

    def __init__(self, ways: dict[tuple[str, str], UpstreamPaths], host: str) -> None:
        super().__init__()
        self._every, self._hosts = ways, dict.fromkeys((host, ""))

    def __missing__(self, to: str) -> tuple[UpstreamPaths, ...]:
        return tuple(self._every[to, host] for host in self._hosts)


class _Reader:
    """Compiles one route, and collects its mistakes, without its name."""

    def __init__(
        self,
        route: Route | Aggregate | Forward,
        mistakes: list[str],
        ways: dict[tuple[str, str], UpstreamPaths],
        *,
        auth: Sequence[Auth],
        is_auth_whole: bool,
    ) -> None:
        self._route = route
        self._ways = ways
        self._note = mistakes.append
        self._auth = auth
        self._has_auth = bool(auth) or not is_auth_whole
        kinds = [getattr(each, "kind", None) for each in auth]
        # Who has written one without a kind knows what it is called.
        self._kinds = None if None in kinds or not is_auth_whole else set(map(str, kinds))

    def entry(self, cors: CompiledCors | None) -> CompiledRoute | None:
        """Return the route as the engine runs it; None where its path cannot be read.

        `cors` is what it has where it says nothing of its own.
        """
        route = self._route
        template = self._tried(lambda: Template.of(route.route))
        if template is None:
            return None
        if template.has_rest and not isinstance(route, Forward):
            self._note("only a Forward takes the rest of a path; name each segment here")
        self._read_access()
        host = self._read_host()
        deadline_s = self._tried(lambda: duration(route.deadline, "its deadline")) or 1.0
        interval_s, burst = self._read_rate()
        priority = self._tried(lambda: priority_of(route.priority))
        parts: dict[str, CompiledBranch] = {}
        stand_in, passage, split, mirror = None, None, None, None
        if isinstance(route, Route):
            if is_a(route.operation, Operation):
                self._read_operation(route.operation, template)
                stand_in = self._read_fallback(route)
            else:
                self._note("leads to no operation; name one of a contract, such as Orders.place")
        elif isinstance(route, Forward):
            ways = _WaysOf(self._ways, host)
            passage = read_forward(route, template, self._note, ways[str(route.to)])
            beside = BesideReader(passage, template, ways, self._note)
            split, mirror = beside.split(route.split), beside.mirror(route.mirror)
        else:
            parts = read_branches(route, template, deadline_s, self._note)
        return CompiledRoute(
            template=template,
            scopes=frozenset(route.scopes),
            kinds=frozenset(route.by),
            is_public=route.public,
            deadline_s=deadline_s,
            interval_s=interval_s,
            burst=burst,
            operation=route.operation if isinstance(route, Route) else None,
            stand_in=stand_in,
            parts=parts,
            passage=passage,
            split=split,
            mirror=mirror,
            priority=Priority.INTERACTIVE if priority is None else priority,
            cors=cors if route.cors is None else read_cors(route.cors, self._note),
            host=host,
            cache=self._read_cache(template),
            is_strict=self._read_strict(template),
        )

    def _tried(self, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except SynchromeshError as error:
            self._note(error.message)
        return None

    def _read_host(self) -> str:
        host = self._route.host
        if is_a(host, str) and (not host or is_host_pattern(host)):
            return host
        self._note(
            f"its host {str(host)[:80]!r} is none; write it in lower case, without a port, as "
            '"shop.example.com", or "*.example.com" for all below it'
        )
        return ""

    def _read_strict(self, template: Template) -> bool:
        is_strict = getattr(self._route, "strict", False)
        if not is_a(is_strict, bool):
            self._note(f"strict is {is_strict!r}; write True or False")
        elif is_strict and template.method in _BODILESS:
            self._note(f"strict is about a body, and a {template.method} has none; drop it")
        return bool(is_strict)

    def _read_cache(self, template: Template) -> CompiledCache | None:
        route = self._route
        if isinstance(route, Forward) or route.cache is None:
            return None
        operation = route.operation if isinstance(route, Route) else None
        if template.method != "GET" or getattr(operation, "is_command", False):
            self._note("has a cache, and only what a query answers by GET can be kept; drop it")
            return None
        return read_cache(route.cache, self._auth, self._note, is_public=route.public)

    def _read_access(self) -> None:
        route = self._route
        if is_a(route.scopes, str):
            self._note(f'scopes is a text; write a set of texts, such as {{"{route.scopes}"}}')
            return
        for scope in sorted(map(str, route.scopes)):
            if not is_scope(scope):
                self._note(f'{scope[:40]!r} is no scope; write one such as "orders:write"')
        if is_a(route.by, str):
            self._note(f'by is a text; write a set of texts, such as {{"{route.by}"}}')
        elif route.public and route.by:
            self._note("is public and says by what it knows who asks; drop one of the two")
        elif self._kinds is not None:
            for kind in sorted(set(route.by) - self._kinds):
                known = ", ".join(sorted(self._kinds)) or "none"
                self._note(f"by names {kind[:40]!r}, and the gateway's auth knows: {known}")
        if route.public and route.scopes:
            self._note("is public and asks for scopes; nobody would be asked: drop one of the two")
        if not route.public and not self._has_auth:
            self._note(
                "needs a principal, and the gateway has no auth to know one by; add one, such as "
                "auth=[ApiKeys()], or say public=True"
            )

    def _read_rate(self) -> tuple[float, int]:
        rate = self._route.rate
        if rate is None:
            return 0.0, 0
        if not is_a(rate, Rate):
            self._note(f'its rate is {rate!r}; write one such as Rate("20/s", burst=40)')
            return 0.0, 0
        try:
            interval_s = interval_of(rate.limit)
        except ConfigError as error:
            self._note(f"its limit: {error.message}")
            return 0.0, 0
        burst = burst_of(rate.limit) if rate.burst is None else rate.burst
        if burst < 1:
            self._note(f"its rate has a burst of {burst}; make it 1 or more")
        return interval_s, burst

    def _read_fallback(self, route: Route) -> CompiledFallback | None:
        operation = route.operation
        if route.fallback is None:
            return None
        if operation.is_command:
            self._note(
                f"{operation.full_name} is a command; a fallback must never stand for a write: "
                "drop it"
            )
            return None
        try:
            result = operation.shape.result
        except ContractError:
            return None  # what is wrong there has been said
        return read_fallback(route.fallback, result, self._note)

    def _read_operation(self, operation: Operation[..., Any], template: Template) -> None:
        try:
            shape = operation.shape
        except ContractError as error:
            self._note(error.message)
            return
        name, places = operation.full_name, set(template.places)
        if template.method != operation.method:
            self._note(f"{name} is a {operation.method} in its contract; write that method here")
            return
        unknown = sorted(places - set(shape.hints))
        if unknown:
            known = ", ".join(shape.hints) or "none"
            self._note(f"{{{unknown[0]}}} is no parameter of {name}; it has: {known}")
            return
        if template.method not in _BODILESS and places != set(operation.places):
            wanted = ", ".join(f"{{{place}}}" for place in operation.places) or "none"
            self._note(f"{name} has these places in its contract: {wanted}; have the same here")
        for place in template.places:
            if not is_text(shape.hints[place]):
                self._note(f"{{{place}}} of {name} is no plain value; a path cannot carry it")
