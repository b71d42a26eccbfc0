"""Explains what a configuration comes to: how each edge is guarded, and what stands in for what."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from synchromesh.resilience import Policy
from synchromesh.system.config.edge_policies import policies_of
from synchromesh.system.config.policy_check import uses_of
from synchromesh.system.config.schema import GATEWAY, SystemConfig

if TYPE_CHECKING:
    from synchromesh.gateway import Cache, Gateway, Stale, Static

ALL_OTHERS = "every other edge"


class EdgeExplained(msgspec.Struct, frozen=True):
    """How an edge is guarded: a line for each layer, and for each operation that differs.

    Attributes:
        edge: "CALLER:CALLEE", or `ALL_OTHERS`.
        policy: its layers, outermost first, and its balancer.
        operations: by name, the layers that are not as on the edge.
    """

    edge: str
    policy: list[str]
    operations: dict[str, list[str]] = {}


class BranchExplained(msgspec.Struct, frozen=True):
    """What a client gets of a route, or of one branch of it, while its service is off.

    Attributes:
        route: method and path.
        branch: its name; "" for the whole route.
        asks: the operation; of a forward the upstream.
        ladder: what is answered, from the best that can be had to the last: "kept, at most AGE",
            "live", "stale, at most AGE", "static", "absent", "refused".
    """

    route: str
    branch: str
    asks: str
    ladder: list[str]


def explain_edges(config: SystemConfig, gateway: Gateway | None) -> Iterator[EdgeExplained]:
    """Yield each edge that has a policy or that a route uses, and what guards all others.

    Each takes a millisecond or two.

    Raises:
        ConfigError: the gateway has mistakes; the message names them all.
    """
    used: list[str] = []
    if gateway is not None:
        from synchromesh.gateway.checking import compiled

        used = [f"{GATEWAY}:{use.callee}" for use in uses_of(compiled(gateway))]
    for edge in dict.fromkeys((*config.policies, *used)):
        yield _edge(config, edge)
    yield EdgeExplained(ALL_OTHERS, Policy().explain().splitlines())


def explain_branches(gateway: Gateway | None) -> list[BranchExplained]:
    """Return what stands in for each route and branch of a gateway without mistakes, in order."""
    if gateway is None:
        return []
    from synchromesh.gateway import Aggregate, Forward
    from synchromesh.gateway.changes import name_of

    explained = []
    for route in gateway.routes:
        if isinstance(route, Aggregate):
            for name, branch in route.branches.items():
                is_required = branch.required or route.all_or_nothing
                ladder = _kept(route.cache) + _ladder(branch.fallback, is_required=is_required)
                asks = branch.operation.full_name
                if branch.each is not None:
                    asks = f"{asks}, for each of {branch.each.of}"
                explained.append(BranchExplained(name_of(route), name, asks, ladder))
        elif isinstance(route, Forward):
            explained.append(BranchExplained(name_of(route), "", route.to, _ladder(None)))
        else:
            ladder = _kept(route.cache) + _ladder(route.fallback)
            explained.append(BranchExplained(name_of(route), "", route.operation.full_name, ladder))
    return explained


def _edge(config: SystemConfig, edge: str) -> EdgeExplained:
    caller, _, callee = edge.partition(":")
    policies = policies_of(config, caller)
    policy = policies.of_edge(callee)
    lines = policy.explain().splitlines()
    own = {
        name.partition(".")[2]: [
            line for line in operation.over(policy).explain().splitlines() if line not in lines
        ]
        for name, operation in policies.operations.items()
        if name.startswith(f"{callee}.")
    }
    balancer = f"balancer  {policies.of_balancer(callee).by}"
    return EdgeExplained(edge, [*lines, balancer], own)


def _kept(cache: Cache | None) -> list[str]:
    """Return what is answered before anything is asked."""
    return [] if cache is None or cache.max_age is None else [f"kept, at most {cache.max_age}"]


def _ladder(fallback: Static | Stale | None, *, is_required: bool = True) -> list[str]:
    """Return what is answered, the best that can be had."""
    from synchromesh.gateway import Stale, Static

    last = "refused" if is_required else "absent"
    if isinstance(fallback, Static):
        return ["live", "static"]
    if isinstance(fallback, Stale):
        return ["live", f"stale, at most {fallback.at_most}", last]
    return ["live", last]
