"""What is known of a system from its code and its configuration, for advice."""

from __future__ import annotations

import ast
import inspect
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from synchromesh.advisor import (
    BranchFacts,
    BreakerFacts,
    EventFacts,
    Facts,
    OperationFacts,
    RouteFacts,
    ServiceFacts,
)
from synchromesh.calls import operations_of
from synchromesh.durations import duration
from synchromesh.errors import ConfigError
from synchromesh.gateway import Gateway
from synchromesh.gateway.compiled import CompiledRoute
from synchromesh.runtime import RealRuntime
from synchromesh.sealing import Erased
from synchromesh.service import Service
from synchromesh.system.config.contract_changes import changes
from synchromesh.system.config.gateway_keys import keys_file_of
from synchromesh.system.config.policy_check import IsWritten
from synchromesh.system.config.released import contracts_today, read_released
from synchromesh.system.config.rundir import RunDir
from synchromesh.system.config.saga_steps import steps_of
from synchromesh.system.config.schema import SystemConfig

FILES_MAX = 2_000
DEPTH_MAX = 8
RELEASED = Path("contracts/released")
# What hands an operation over to its own handler, and is no use of it.
_HANDLES = frozenset({"handles", "writes"})


def known_facts(
    config: SystemConfig,
    folder: Path,
    services: Sequence[Service],
    gateway: Gateway | None,
    entries: Sequence[CompiledRoute],
    is_written: IsWritten,
) -> Facts:
    """Return what code and configuration tell; nothing has to run for it.

    Args:
        services: the definitions of all services; `gateway`, and what was compiled of it, too.
        is_written: says of a setting whether somebody wrote it.

    Raises:
        ConfigError: the keys of the gateway, or the contracts that were frozen, cannot be read.
    """

    def shown(path: str) -> str:
        found = Path(path)
        return str(found.relative_to(folder)) if found.is_relative_to(folder) else found.name

    routes = tuple(map(_route, entries))
    asked = {branch.operation for route in routes for branch in route.branches}
    named = _names_in(folder)
    taken = {event for service in services for event in service.subscriptions}
    return Facts(
        services=tuple(
            ServiceFacts(service.name, len(_operations(service)), bool(service.state))
            for service in services
        ),
        operations=tuple(
            OperationFacts(
                each.full_name,
                _place(each.stub, shown),
                each.is_command,
                tuple(no.code for no in each.raises),
                each.full_name in asked or each.name in named,
            )
            for service in services
            for each in _operations(service).values()
        ),
        events=tuple(
            EventFacts(
                event.full_name,
                _place(event.kind, shown),
                tuple(sorted(set(_plain_fields(event.kind)))),
                event.full_name in taken,
            )
            for service in services
            for event in service.published()
        ),
        steps=tuple(
            step
            for service in services
            for saga in service.sagas
            for step in steps_of(f"{service.name}.{saga.name}", saga.fn, shown)
        ),
        routes=routes,
        keys=_keys(gateway, folder),
        breakers=tuple(_breakers(config, is_written)),
        keeps=_kept_for_ever(config),
        drift=_drift(config, folder),
    )


def _operations(service: Service) -> Mapping[str, Any]:
    return {} if service.contract is None else operations_of(service.contract)


def _route(entry: CompiledRoute) -> RouteFacts:
    branches = [
        BranchFacts(
            name, part.operation.full_name, part.step.is_required, part.stand_in is not None
        )
        for name, part in entry.parts.items()
    ]
    if entry.operation is not None:
        has_fallback = entry.stand_in is not None
        branches.append(BranchFacts("", entry.operation.full_name, True, has_fallback))
    return RouteFacts(
        entry.name,
        is_public=entry.is_public,
        has_rate=bool(entry.interval_s),
        is_read=entry.is_read,
        scopes=tuple(sorted(entry.scopes)),
        branches=tuple(branches),
    )


def _place(defined: Any, shown: Callable[[str], str]) -> str:
    """Return "file:line" of a function or class; where that is not known, its module."""
    try:
        _, line = inspect.getsourcelines(defined)
        return f"{shown(inspect.getsourcefile(defined) or '')}:{line}"
    except (OSError, TypeError):
        return str(getattr(defined, "__module__", ""))


def _plain_fields(kind: Any, depth: int = 0) -> Iterator[str]:
    """Yield the names of fields that are kept in plain text, those of structs within too."""
    if depth > DEPTH_MAX:
        return
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        for name, hint in typing.get_type_hints(kind, include_extras=True).items():
            if Erased not in typing.get_args(hint):
                yield name
                yield from _plain_fields(hint, depth + 1)
    else:
        for part in typing.get_args(kind):
            yield from _plain_fields(part, depth + 1)


def _names_in(folder: Path) -> set[str]:
    """Return the attributes that the system's code names of classes, but for its handlers."""
    found: set[str] = set()
    for path in _sources(folder):
        try:
            tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue
        handled = {
            id(given)
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in _HANDLES
            for given in node.args
        }
        found.update(
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and id(node) not in handled
            and isinstance(node.value, ast.Name)
            and node.value.id[:1].isupper()
        )
    return found


def _sources(folder: Path) -> Iterable[Path]:
    """Return the Python files of a system; none of an environment, or of a hidden folder."""
    found: list[Path] = []
    pending = [folder]
    while pending and len(found) < FILES_MAX:
        at = pending.pop()
        if (at / "pyvenv.cfg").exists():
            continue
        for each in sorted(at.iterdir()):
            if each.is_dir() and not each.is_symlink() and each.name[0] not in "._":
                pending.append(each)
            elif each.suffix == ".py":
                found.append(each)
    return found[:FILES_MAX]


def _keys(gateway: Gateway | None, folder: Path) -> dict[str, tuple[str, ...]]:
    if gateway is None:
        return {}
    try:
        keys = keys_file_of(gateway, RunDir(folder), RealRuntime().disk)
    except ConfigError:
        return {}  # it takes none, or they are somebody else's
    return {key.id: tuple(sorted(key.scopes)) for key in keys.read()}


def _breakers(config: SystemConfig, is_written: IsWritten) -> Iterator[BreakerFacts]:
    for edge, section in config.policies.items():
        if is_written("policies", edge, "breaker", "minimum_calls"):
            breaker = section.breaker
            key = f'policies."{edge}".breaker.minimum_calls'
            yield BreakerFacts(edge, key, breaker.minimum_calls, duration(breaker.window))


def _kept_for_ever(config: SystemConfig) -> dict[str, str]:
    kept = {"retention.sagas": (config.retention.sagas, "runs of sagas that have ended")}
    kept["retention.logs"] = (config.retention.logs, "logs of parts that are no more")
    return {key: what for key, (time, what) in kept.items() if not time}


def _drift(config: SystemConfig, folder: Path) -> tuple[str, ...]:
    place = folder / RELEASED
    if not place.is_dir():
        return ()
    found = changes(read_released(place), contracts_today(config, folder))
    return tuple(f"{each}: {'; '.join(each.breaks)}" for each in found if each.breaks)
