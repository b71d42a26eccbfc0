"""Which policy guards which call: a default, one for an edge, some of it for an operation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from synchromesh.calls.contract import Operation
from synchromesh.calls.holding import HoldOptions
from synchromesh.context import ATTEMPTS_LEFT_MAX
from synchromesh.discovery import BalancerOptions
from synchromesh.durations import Range, refuse_wrong_numbers
from synchromesh.errors import ConfigError
from synchromesh.resilience import HedgeOptions, Policy, RetryOptions
from synchromesh.resilience.policy_layers import refuse_wrong_layers


@dataclass(frozen=True, slots=True)
class OperationPolicy:
    """Overrides the policy of an edge for one operation: its timeout, retries and hedges.

    Only a query is hedged. Breaker, retry budget and limiter belong to the edge and cannot be had
    per operation: they are about the callee, and one that is down is down for all of them.

    Attributes:
        is_timed_as_edge: its timeout is the edge's, which is where one changes it.

    Raises:
        ConfigError: a value is outside its range, or of the wrong type.
    """

    timeout_s: float | None = 2.0
    retry: RetryOptions | None = field(default_factory=RetryOptions)
    hedge: HedgeOptions | None = None
    is_timed_as_edge: bool = False

    def __post_init__(self) -> None:
        refuse_wrong_layers({"timeout_s": self.timeout_s, "retry": self.retry, "hedge": self.hedge})

    def over(self, edge: Policy) -> Policy:
        """Return an edge's policy with this in its place."""
        return replace(edge, timeout_s=self.timeout_s, retry=self.retry, hedge=self.hedge)


@dataclass(frozen=True, slots=True)
class Policies:
    """The policies of one caller's edges; the defaults are sensible.

    Attributes:
        default: guards every edge that has none of its own.
        edges: by the callee's service.
        operations: by full name, such as "billing.charge".
        attempts_per_tree: the extra attempts of a new call tree, in all services together (D2).
        hold: how calls wait for an instance while none is ready.
        balancers: how the instances of a service share its calls, by the callee's service.

    Raises:
        ConfigError: a value is outside its range, or a name is of the wrong kind.

    Example:
        >>> policies = Policies(operations={"billing.charge": OperationPolicy(timeout_s=5.0)})
        >>> policies.of_edge("billing").timeout_s
        2.0
    """

    default: Policy = field(default_factory=Policy)
    edges: Mapping[str, Policy] = field(default_factory=dict)
    operations: Mapping[str, OperationPolicy] = field(default_factory=dict)
    attempts_per_tree: int = 4
    hold: HoldOptions = field(default_factory=HoldOptions)
    balancers: Mapping[str, BalancerOptions] = field(default_factory=dict)

    def __post_init__(self) -> None:
        refuse_wrong_numbers(self, (Range(0.0, ATTEMPTS_LEFT_MAX), "attempts_per_tree"))
        for name, value, kind in (
            ("default", self.default, Policy),
            ("hold", self.hold, HoldOptions),
        ):
            if not isinstance(value, kind):
                raise ConfigError(f"{name} is {value!r}; make it {kind.__name__}(...)")
        _refuse_wrong_entries("edges", self.edges, Policy)
        _refuse_wrong_entries("operations", self.operations, OperationPolicy)
        _refuse_wrong_entries("balancers", self.balancers, BalancerOptions)
        for name in self.edges:
            if "." in name:
                raise ConfigError(
                    f"policy for the edge {name!r}: an edge is named by the callee's service, such "
                    'as "billing"; put operations under operations'
                )
        for name in self.operations:
            if name.count(".") != 1:
                raise ConfigError(
                    f"policy for the operation {name!r}: it is named by its service and name, such "
                    'as "billing.charge"'
                )

    def of_edge(self, service: str) -> Policy:
        """Return what guards the calls to a service."""
        return self.edges.get(service, self.default)

    def of_balancer(self, service: str) -> BalancerOptions:
        """Return how the instances of a service share the calls to it."""
        return self.balancers.get(service) or BalancerOptions()

    def of_operation(self, operation: Operation[..., Any]) -> Policy:
        """Return what guards the calls of an operation; the edge's own value where it is alike.

        What an edge hedges are its queries.

        Raises:
            ConfigError: the operation is a command, and its own policy has hedge.
        """
        edge = self.of_edge(operation.service)
        own = self.operations.get(operation.full_name)
        if own is not None:
            if own.hedge is not None:
                own.hedge.check(operation.full_name, is_command=operation.is_command)
            return own.over(edge)
        if edge.hedge is not None and operation.is_command:
            return replace(edge, hedge=None)
        return edge


def _refuse_wrong_entries(what: str, entries: object, kind: type) -> None:
    if not isinstance(entries, Mapping):
        raise ConfigError(f"{what} is {entries!r}; make it a dict from names to {kind.__name__}")
    for name, value in entries.items():
        if not isinstance(name, str):
            raise ConfigError(f"{what} has the key {name!r}; name them by texts")
        if not isinstance(value, kind):
            raise ConfigError(f"{what}[{name!r}] is {value!r}; make it {kind.__name__}(...)")
