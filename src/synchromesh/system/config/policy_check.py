"""Checks policies against what they guard: contracts, each other, and the deadlines of routes.

`check_policies` refuses what can never be right; `contradictions` names what undoes itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from synchromesh.calls import Contract, Operation, operations_of
from synchromesh.durations import duration
from synchromesh.errors import ConfigError
from synchromesh.service import Service
from synchromesh.system.config.schema import GATEWAY, PolicySection, SystemConfig

if TYPE_CHECKING:
    from synchromesh.gateway import Gateway
    from synchromesh.gateway.compiled import CompiledRoute

# Whether the user wrote a setting, or it is a default; by the parts of its name.
IsWritten = Callable[..., bool]


@dataclass(frozen=True, slots=True)
class EdgeUse:
    """A call that a route of the gateway makes.

    Attributes:
        place: the route, and the branch where there is one.
        callee: whose operation it is.
        operation: its name; "" for a forward.
        bound_s: how long the call may take, retries too.
    """

    place: str
    callee: str
    operation: str
    bound_s: float


def uses_of(entries: Iterable[CompiledRoute]) -> Iterator[EdgeUse]:
    """Yield every call that the routes of a gateway make."""
    for entry in entries:
        if entry.operation is not None:
            operation = entry.operation
            yield EdgeUse(entry.name, operation.service, operation.name, entry.deadline_s)
        if entry.passage is not None:
            yield EdgeUse(entry.name, entry.passage.to, "", entry.deadline_s)
        for name, part in entry.parts.items():
            bound_s = min(entry.deadline_s, part.timeout_s or entry.deadline_s)
            yield EdgeUse(
                f"branch {name} of {entry.name}",
                part.operation.service,
                part.operation.name,
                bound_s,
            )


def check_policies(config: SystemConfig, services: Sequence[Service]) -> None:
    """Check what policies say of single operations. Definitions have to be imported before.

    Raises:
        ConfigError: one names an operation that the callee does not have, or hedges a command.
    """
    for edge, section in config.policies.items():
        callee = edge.partition(":")[2]
        known = _operations_of(callee, services)
        for name, policy in section.compile_operations().items() if known else ():
            where = f'[policies."{edge}".operations.{name}]'
            if name not in known:
                raise ConfigError(
                    f"{where}: no contract of {callee!r} has an operation {name!r}; it has: "
                    f"{', '.join(sorted(known))}"
                )
            if policy.hedge is not None:
                try:
                    policy.hedge.check(f"{callee}.{name}", is_command=known[name].is_command)
                except ConfigError as error:
                    raise ConfigError(f"{where}: {error.message}") from error


def contradictions(
    config: SystemConfig, gateway: Gateway | None, is_written: IsWritten
) -> tuple[str, ...]:
    """Return what contradicts itself among the policies, a sentence each.

    What was written is looked at, for the defaults are for everybody.

    Args:
        gateway: its routes have deadlines; those with mistakes are another check's.
        is_written: says of a setting, by the parts of its name, whether somebody wrote it.
    """
    return (
        *_not_nested(config, is_written),
        *_beyond_deadlines(config, gateway, is_written),
        *_never_hedged(config),
    )


def refusal_of(found: Sequence[str]) -> ConfigError:
    """Return the error that lists all contradictions."""
    lines = "".join(f"\n  {each}" for each in found)
    return ConfigError(f"policies contradict themselves, places: {len(found)}{lines}")


def _operations_of(callee: str, services: Sequence[Service]) -> Mapping[str, Operation[..., Any]]:
    """Return the operations of a callee by name; of an external one, as far as it was imported."""
    for service in services:
        if service.name == callee:
            return {} if service.contract is None else operations_of(service.contract)
    # Whoever calls an external service has its contract.
    return {
        name: operation
        for contract in Contract.__subclasses__()
        for name, operation in operations_of(contract).items()
        if operation.service == callee
    }


@dataclass(frozen=True, slots=True)
class _Given:
    """A time-out that calls of an edge have.

    Attributes:
        name: the section that gives it.
    """

    name: str
    timeout: str
    is_written: bool

    @property
    def length_s(self) -> float:
        return duration(self.timeout)

    def __str__(self) -> str:
        default = "" if self.is_written else " (the default)"
        return f'"{self.timeout}"{default}'


def _given(edge: str, section: PolicySection, is_written: IsWritten) -> Iterator[_Given]:
    yield _Given(f'[policies."{edge}"]', section.timeout, is_written("policies", edge, "timeout"))
    for name, own in section.operations.items():
        if own.timeout:
            yield _Given(f'[policies."{edge}".operations.{name}]', own.timeout, is_written=True)


def _not_nested(config: SystemConfig, is_written: IsWritten) -> Iterator[str]:
    """Yield each time-out that was written and that no call of the edge before it can wait out.

    The edge before it is taken by the longest that it gives any operation: which of them goes on to
    the second edge is not known. A default that is cut short is nobody's mistake.
    """
    edges = {
        tuple(edge.split(":")): tuple(_given(edge, section, is_written))
        for edge, section in config.policies.items()
    }
    for (outer_caller, callee), longest in edges.items():
        outer = max(longest, key=lambda each: each.length_s)
        for (caller, behind), given in edges.items():
            if caller != callee or (outer_caller, callee) == (caller, behind):
                continue
            for inner in given:
                if inner.is_written and outer.length_s <= inner.length_s:
                    yield (
                        f"{outer.name} timeout = {outer} is no longer than that of {inner.name}, "
                        f'"{inner.timeout}": {callee} is given up before it can say that {behind} '
                        f"did not answer; make the first one longer than {inner.timeout}, or the "
                        f"second one shorter than {outer.timeout}"
                    )


def _beyond_deadlines(
    config: SystemConfig, gateway: Gateway | None, is_written: IsWritten
) -> Iterator[str]:
    if gateway is None:
        return
    from synchromesh.gateway.checking import read

    for use in uses_of(read(gateway).entries):
        edge = f"{GATEWAY}:{use.callee}"
        section = config.policies.get(edge)
        if section is None:
            continue
        name = f'[policies."{edge}"]'
        timeout, attempts = _written(section, edge, use.operation, is_written)
        # Three times 0.1 is a hair more than 0.3.
        if timeout is None or duration(timeout) * attempts <= use.bound_s * (1 + 1e-9):
            continue
        whole, fewer = _shown(duration(timeout) * attempts), ""
        takes = f"an attempt of {timeout} may take {whole}"
        if attempts > 1:
            takes = f"{attempts} attempts of {timeout} may take {whole} without the waits between"
            fewer = " attempt less often,"
        yield (
            f"{name}: {takes}, and {use.place} has {_shown(use.bound_s)} for the whole call; make "
            f'timeout "{_at_most(use.bound_s / attempts)}" or less,{fewer} or give the route more '
            "time"
        )


def _written(
    section: PolicySection, edge: str, operation: str, is_written: IsWritten
) -> tuple[str | None, int]:
    """Return timeout and attempts as they were written; None and 1 where they were not."""
    timeout = section.timeout if is_written("policies", edge, "timeout") else None
    attempts = 1
    if is_written("policies", edge, "retry", "attempts") and operation:
        attempts = section.retry.attempts
    own = section.operations.get(operation)
    if own is not None:
        timeout = own.timeout or timeout
        attempts = own.retry.attempts if own.retry is not None else attempts
    return timeout, attempts


def _never_hedged(config: SystemConfig) -> Iterator[str]:
    for edge, section in config.policies.items():
        for name, policy in section.compile_operations().items():
            hedge, timeout_s = policy.hedge, policy.timeout_s
            if hedge is None or isinstance(hedge.after, str) or timeout_s is None:
                continue
            if hedge.after >= timeout_s:
                yield (
                    f'[policies."{edge}".operations.{name}]: hedge has after = '
                    f'"{_shown(hedge.after)}", and an attempt ends after {_shown(timeout_s)}: none '
                    "is ever sent twice; make after shorter than the timeout"
                )


def _at_most(length_s: float) -> str:
    """Return a length rounded down, so that what is advised fits."""
    unit, length = ("s", length_s) if length_s >= 1 else ("ms", length_s * 1e3)
    return f"{math.floor(length * 100 + 1e-9) / 100:.2f}".rstrip("0").rstrip(".") + unit


def _shown(length_s: float) -> str:
    return f"{length_s:g}s" if length_s >= 1 else f"{length_s * 1e3:.0f}ms"
