"""What stops, degrades or waits where a service goes: by what is declared and what was observed.

A pure machine. Routes, branches, fallbacks, sagas and subscriptions are declared. What a handler or
a saga calls is code: that is known as far as spans have shown it, and what a handler does with a
call that fails only where one has failed. The rest is said to be unknown, and not guessed.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from synchromesh.gateway.outlining import BranchOutline, RouteOutline
from synchromesh.telemetry.observed import ObservedCall

DECLARED, OBSERVED = "declared", "observed"


class Effect(enum.Enum):
    """What becomes of something while a service is away; the worst comes first."""

    STOPS = "stops"
    DEPENDS = "stops or degrades"  # its code decides, and no call of its has failed yet
    WAITS = "waits"
    DEGRADES = "degrades"


_ORDER = list(Effect)


class Hit(msgspec.Struct, frozen=True):
    """One thing that is hit.

    Attributes:
        what: a route, "saga orders.place_order", or "orders, taking shop.sold".
        effect: what becomes of it.
        why: by which way it depends on the service.
        by: whether that way is all "declared", or some of it was only "observed".
    """

    what: str
    effect: str
    why: str
    by: str


class Blast(msgspec.Struct, frozen=True):
    """What follows where a service goes.

    Attributes:
        hits: the worst first.
        untouched: the routes that go on as always, as far as is known.
        unknown: what cannot be told, in words.
        calls: how many calls were observed in all.
    """

    service: str
    hits: tuple[Hit, ...]
    untouched: tuple[str, ...]
    unknown: tuple[str, ...]
    calls: int


@dataclass(frozen=True, slots=True)
class Declarations:
    """What the code and configuration of a system say of it.

    Attributes:
        services: the names of its services; `externals`: of those that are not its own.
        routes: of its gateway.
        sagas: by service, the names of its sagas.
        imports: by service, those whose contracts its code imports: it may call them.
        takes: by service, the public events that it takes.
    """

    services: Collection[str]
    externals: Collection[str] = ()
    routes: Sequence[RouteOutline] = ()
    sagas: Mapping[str, Sequence[str]] = field(default_factory=dict)
    imports: Mapping[str, Collection[str]] = field(default_factory=dict)
    takes: Mapping[str, Collection[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Touched:
    """That something is touched: how, by which way, and how that is known."""

    effect: Effect
    why: str
    by: str = DECLARED


def blast(service: str, declared: Declarations, calls: Sequence[ObservedCall]) -> Blast:
    """Return what follows where a service, or one that is not the system's own, goes.

    Example:
        >>> calls = [ObservedCall("shop.sell", "stock.take", seen=9, failed=0, survived=0)]
        >>> declared = Declarations(["shop", "stock"], sagas={"shop": ["order"]})
        >>> found = blast("shop", declared, calls)
        >>> [(hit.what, hit.effect) for hit in found.hits]
        [('saga shop.order', 'waits')]
    """
    ways = _Ways(service, calls)
    hits, untouched = [], []
    for route in declared.routes:
        touched = _route(route, ways)
        if touched is None:
            untouched.append(route)
        else:
            hits.append(Hit(route.route, touched.effect.value, touched.why, touched.by))
    for owner, names in declared.sagas.items():
        for name in names:
            what = f"saga {owner}.{name}"
            touched = (
                _Touched(Effect.WAITS, f"its runs are {service}'s")
                if owner == service
                else ways.of(what)
            )
            if touched is not None:
                hits.append(Hit(what, Effect.WAITS.value, touched.why, touched.by))
    hits += _messages(service, declared)
    hits.sort(key=lambda hit: (_ORDER.index(Effect(hit.effect)), hit.what))
    unknown = (
        []
        if calls
        else ["no call was observed: run the system, or drill it, to learn what handlers call"]
    )
    for caller in _unseen_callers(service, declared, calls):
        line = f"{caller} imports the contract of {service}, and was not seen to call it"
        below = _Ways(caller, calls)
        unsure = [route for route in untouched if _route(route, below) is not None]
        untouched = [route for route in untouched if route not in unsure]
        names = ", ".join(route.route for route in unsure)
        unknown.append(f"{line}: {names}" if names else line)
    as_always = tuple(route.route for route in untouched)
    return Blast(service, tuple(hits), as_always, tuple(unknown), sum(c.seen for c in calls))


class _Ways:
    """Finds by which way an operation or saga comes to depend on a service."""

    def __init__(self, service: str, calls: Sequence[ObservedCall]) -> None:
        self._service = service
        self._known: dict[str, _Touched] = {}
        by_source: dict[str, list[ObservedCall]] = {}
        for call in calls:
            by_source.setdefault(call.source, []).append(call)
        # What is one call away comes first, so that calls may go round in a circle; no way is
        # longer than there are sources.
        for _ in by_source:
            if not self._learn({s: worst([*map(self._through, by_source[s])]) for s in by_source}):
                break

    def _learn(self, found: Mapping[str, _Touched | None]) -> bool:
        """Take over what is touched in another way than was known; return whether any is."""
        news = {}
        for source, touched in found.items():
            known = self._known.get(source)
            if touched and (known is None or known.effect is not touched.effect):
                news[source] = touched
        self._known.update(news)
        return bool(news)

    def of(self, target: str) -> _Touched | None:
        """Return how an operation or saga is touched; None for not at all."""
        if target.partition(".")[0] == self._service:
            return _Touched(Effect.STOPS, f"{target} is {self._service}'s")
        return self._known.get(target)

    def _through(self, call: ObservedCall) -> _Touched | None:
        below = self.of(call.target)
        if below is None:
            return None
        why = f"{call.source} calls {call.target}, seen {_times(call.seen)}"
        if below.by == OBSERVED:
            why = f"{why}; {below.why}"
        if call.target.startswith("saga "):
            why = why.replace(" calls saga ", " starts saga ")
        if call.source.startswith("saga ") or below.effect is Effect.WAITS:
            # A saga asks again until it is answered, or undoes.
            return _Touched(Effect.WAITS, why, OBSERVED)
        if call.failed:
            without = f"{call.survived} of these were answered without it"
            why = f"{why}; it failed {_times(call.failed)}, {without}"
        if call.failed and not call.survived:
            return _Touched(Effect.STOPS, why, OBSERVED)
        if below.effect is Effect.DEGRADES or (call.failed and call.survived == call.failed):
            return _Touched(Effect.DEGRADES, why, OBSERVED)
        return _Touched(Effect.DEPENDS, why, OBSERVED)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def worst(found: Sequence[_Touched | None]) -> _Touched | None:
    """Return the worst of several effects; None where there is none."""
    touched = [each for each in found if each is not None]
    return min(touched, key=lambda each: _ORDER.index(each.effect)) if touched else None


def _route(route: RouteOutline, ways: _Ways) -> _Touched | None:
    if route.kind == "forward":
        return _forward(route, ways)
    if route.kind == "page":
        return None
    if route.branches:
        return _aggregate(route, ways)
    return _with_fallback(ways.of(route.operation), route.fallback)


def _with_fallback(touched: _Touched | None, fallback: str) -> _Touched | None:
    """Return what is left of an effect behind a fallback, which stands in for failures."""
    if touched is None or not fallback or touched.effect not in (Effect.STOPS, Effect.DEPENDS):
        return touched
    return _Touched(Effect.DEGRADES, f"{touched.why}; {fallback} stands in", touched.by)


def _forward(route: RouteOutline, ways: _Ways) -> _Touched | None:
    """Return what becomes of what is passed on: "to path", and maybe a share to another one."""
    first, *others = route.operation.split(", ")
    touched = ways.of(f"{first.partition(' ')[0]}.")
    if touched is not None:
        return _Touched(Effect.STOPS, f"it is passed on to {first}")
    for other in others:
        share, to, place = other.partition("% to ")
        if to and ways.of(f"{place.partition(' ')[0]}.") is not None:
            return _Touched(Effect.DEPENDS, f"{share.strip()} % of it is passed on to {place}")
    return None


def _aggregate(route: RouteOutline, ways: _Ways) -> _Touched | None:
    """Return what becomes of a page: its required branches decide, the others may be missing."""
    own: dict[str, _Touched | None] = {}
    found = []
    for branch in sorted(route.branches, key=lambda each: each.turn):
        touched = own[branch.name] = _branch(branch, own, ways)
        is_needed = branch.is_required or route.is_whole
        if touched is not None and not is_needed and touched.effect is not Effect.DEGRADES:
            touched = _Touched(Effect.DEGRADES, touched.why, touched.by)
        if touched is not None:
            found.append(_Touched(touched.effect, f"{branch.name}: {touched.why}", touched.by))
    return worst(found)


def _branch(
    branch: BranchOutline, before: Mapping[str, _Touched | None], ways: _Ways
) -> _Touched | None:
    needed = [before.get(name) for name in branch.after]
    lost = worst([each for each in needed if each and each.effect is Effect.STOPS])
    if lost is not None:
        lost = _Touched(Effect.STOPS, f"it needs {', '.join(branch.after)}", lost.by)
    return _with_fallback(worst([ways.of(branch.operation), lost]), branch.fallback)


def _messages(service: str, declared: Declarations) -> Iterator[Hit]:
    """Yield the subscriptions that wait: those to its events, and its own to those of others."""
    for taker, events in declared.takes.items():
        for event in events:
            publisher = event.partition(".")[0]
            if service in (taker, publisher):
                why = "kept by the publisher, and delivered once it is back"
                if service == publisher:
                    why = f"{service} publishes nothing meanwhile"
                yield Hit(f"{taker}, taking {event}", Effect.WAITS.value, why, DECLARED)


def _unseen_callers(
    service: str, declared: Declarations, calls: Sequence[ObservedCall]
) -> Iterator[str]:
    """Yield who imports the contract of a service, and was not seen to call it."""
    callers = {
        call.source.removeprefix("saga ").partition(".")[0]
        for call in calls
        if call.target.partition(".")[0] == service
    }
    for name, imported in declared.imports.items():
        if service in imported and name not in callers and name != service:
            yield name
