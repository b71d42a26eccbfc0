"""The outline of a gateway: what it serves, as values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from synchromesh.calls import Operation, Policies
from synchromesh.gateway.branches import CompiledBranch
from synchromesh.gateway.checking import compiled
from synchromesh.gateway.compiled import CompiledRoute
from synchromesh.gateway.fallbacks import describe_fallback
from synchromesh.gateway.routes import Aggregate, Branch, Forward, Gateway, Route


class RateOutline(msgspec.Struct, frozen=True):
    """The rate limit of each client."""

    limit: str
    burst: int


class BranchOutline(msgspec.Struct, frozen=True):
    """A branch; `after` names the branches that it needs, `turn` counts from 1.

    Attributes:
        each: the array that it is over, how many elements are asked for and what follows beyond;
            "" for none.
        pick: where the fields come from that are shown, by their shown names; empty for all.
        has_empty: whether a value is given for an answer without content.
        attempts: how long one attempt of its call may take, and how many there are at most; ""
            where that is not known.
    """

    name: str
    operation: str
    args: dict[str, str]
    turn: int
    after: tuple[str, ...]
    is_required: bool
    timeout: str | None
    fallback: str
    each: str = ""
    pick: dict[str, str] = {}
    has_empty: bool = False
    attempts: str = ""


class RouteOutline(msgspec.Struct, frozen=True):
    """A route; an aggregate has branches, in the order of their turns, and no operation.

    Attributes:
        kind: "command", "query", "aggregate", "forward" or "page".
        operation: what answers; of a forward the upstream, and the path there, and so of each that
            it has beside; of a page, what it is.
        scopes: what the principal has to hold, all of them.
        by: the kinds of credentials that it takes; any where there are none.
        headers: of a forward, the request headers that pass besides the usual ones.
        cache: how long answers may be kept, and by whom, as `Cache-Control`; "" for not at all.
        is_strict: whether a body with unknown or duplicate fields is refused.
        is_whole: of an aggregate, whether the failure of any branch is that of the whole.
        attempts: as of a branch.
    """

    route: str
    kind: str
    operation: str
    is_public: bool
    scopes: tuple[str, ...]
    deadline: str
    rate: RateOutline | None
    branches: tuple[BranchOutline, ...] = ()
    fallback: str = ""
    body_max: str = ""
    headers: tuple[str, ...] = ()
    by: tuple[str, ...] = ()
    is_whole: bool = False
    cache: str = ""
    is_strict: bool = False
    attempts: str = ""

    @property
    def who(self) -> str:
        """Who may use the route, in words."""
        if self.is_public:
            return "anybody"
        who = ", ".join(self.scopes) or "any principal"
        return f"{who}, by {' or '.join(self.by)}" if self.by else who


def outline(gateway: Gateway, policies: Policies | None = None) -> tuple[RouteOutline, ...]:
    """Return the outline of each route, in their order; `policies` are those of its edges.

    Raises:
        ConfigError: there are mistakes; the message names them all.

    Example:
        >>> from typing import Protocol
        >>> from synchromesh.calls import Contract, query
        >>> class Inventory(Contract, Protocol, service="inventory", version="1.0"):
        ...     @query("GET /stock/{sku}")
        ...     async def stock(self, sku: str) -> int: ...
        >>> gateway = Gateway(routes=[Route("GET /stock/{sku}", Inventory.stock, public=True)])
        >>> [(each.route, each.operation, each.who) for each in outline(gateway)]
        [('GET /stock/{sku}', 'inventory.stock', 'anybody')]
    """
    outlines = []
    entries = compiled(gateway)
    for route, entry in zip(gateway.routes, entries, strict=False):
        kind, operation, fallback, body_max, attempts = "aggregate", "", "", "", ""
        headers: tuple[str, ...] = ()
        branches: tuple[BranchOutline, ...] = ()
        if isinstance(route, Route):
            kind = "command" if route.operation.is_command else "query"
            operation = route.operation.full_name
            attempts = _attempts(policies, route.operation)
            fallback = describe_fallback(route.fallback)
        elif isinstance(route, Forward):
            assert entry.passage is not None
            kind, body_max = "forward", route.body_max
            operation = f"{route.to} {entry.passage.path}"
            if route.split is not None and entry.split is not None:
                there = entry.split.passage
                operation = f"{operation}, {route.split.percent:g} % to {there.to} {there.path}"
            if entry.mirror is not None:
                there = entry.mirror.passage
                operation = f"{operation}, copied to {there.to} {there.path}"
            headers = tuple(sorted(route.headers))
            attempts = _attempts(policies, route.to)
        else:
            branches = _branches(route.branches, entry, policies)
        outlines.append(
            RouteOutline(
                route=entry.name,
                kind=kind,
                operation=operation,
                is_public=route.public,
                scopes=tuple(sorted(route.scopes)),
                deadline=route.deadline,
                rate=None if route.rate is None else RateOutline(route.rate.limit, entry.burst),
                branches=branches,
                fallback=fallback,
                body_max=body_max,
                headers=headers,
                by=tuple(sorted(route.by)),
                is_whole=isinstance(route, Aggregate) and route.all_or_nothing,
                is_strict=entry.is_strict,
                cache="" if entry.cache is None else entry.cache.control,
                attempts=attempts,
            )
        )
    return (*outlines, *map(_page, entries[len(gateway.routes) :]))


def _page(entry: CompiledRoute) -> RouteOutline:
    return RouteOutline(
        route=entry.name,
        kind="page",
        operation="what describes the gateway",
        is_public=entry.is_public,
        scopes=(),
        deadline=f"{entry.deadline_s:g}s",
        rate=None,
    )


def _attempts(policies: Policies | None, asked: Operation[..., Any] | str) -> str:
    """Say how long an attempt of an operation, or of what is passed to an upstream, may take."""
    if policies is None:
        return ""
    policy = policies.of_edge(asked) if isinstance(asked, str) else policies.of_operation(asked)
    if policy.timeout_s is None:
        return ""
    most = 1 if policy.retry is None else policy.retry.attempts_max
    return f"{policy.timeout_s:g}s an attempt, {most} at most"


def _branches(
    branches: Mapping[str, Branch], entry: CompiledRoute, policies: Policies | None
) -> tuple[BranchOutline, ...]:
    turns: dict[str, int] = {}
    outlines = [
        BranchOutline(
            name=name,
            operation=branch.operation.full_name,
            args=dict(branch.args),
            turn=_turn(name, entry.parts, turns),
            after=_after(entry.parts[name]),
            is_required=entry.parts[name].step.is_required,
            timeout=branch.timeout,
            fallback=describe_fallback(branch.fallback),
            each=_each(branch),
            pick={
                shown: ".".join(each.fields)
                for shown, each in (entry.parts[name].pick or {}).items()
            },
            has_empty=branch.empty is not None,
            attempts=_attempts(policies, branch.operation),
        )
        for name, branch in branches.items()
    ]
    return tuple(sorted(outlines, key=lambda each: each.turn))


def _after(part: CompiledBranch) -> tuple[str, ...]:
    return part.step.needs


def _each(branch: Branch) -> str:
    each = branch.each
    if each is None:
        return ""
    return f"{each.of}, at most {each.at_most}, {each.at_once} at once, else {each.beyond}"


def _turn(name: str, parts: Mapping[str, CompiledBranch], turns: dict[str, int]) -> int:
    """Return the turn in which a branch can start: after the last of those that it needs."""
    if name not in turns:
        before = [_turn(other, parts, turns) for other in _after(parts[name])]
        turns[name] = 1 + max(before, default=0)
    return turns[name]
