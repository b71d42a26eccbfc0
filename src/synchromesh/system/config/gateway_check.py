"""Checks the whole gateway of a system before anything listens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from synchromesh.calls import Operation, operations_of
from synchromesh.errors import ConfigError
from synchromesh.gateway import Aggregate, Certificates, Forward, Gateway, Route
from synchromesh.gateway.arguments import auth_mistakes, sound
from synchromesh.gateway.changes import name_of
from synchromesh.gateway.checking import Reading, read, refusal_of
from synchromesh.gateway.compiled import CompiledRoute
from synchromesh.gateway.health import health_mistakes
from synchromesh.gateway.names import opened
from synchromesh.gateway.router import Template, meets
from synchromesh.runtime import Runtime
from synchromesh.service import Service
from synchromesh.system.config.definitions import load_services
from synchromesh.system.config.gateway_keys import folders_of, own_keys_path
from synchromesh.system.config.rundir import RunDir, refuse_shared
from synchromesh.system.config.schema import SystemConfig

NONE_LATER: Mapping[str, str] = MappingProxyType({})
# How many operations of a service are named where none fits.
_NAMED_MAX = 12


async def check_gateway(
    gateway: Gateway,
    config: SystemConfig,
    rundir: RunDir,
    runtime: Runtime,
    later: Mapping[str, str] = NONE_LATER,
    services: Sequence[Service] | None = None,
) -> tuple[CompiledRoute, ...]:
    """Check a gateway: routes, arguments, upstreams and keys.

    Returns what the gateway is to serve, so that a start reads the definition once.

    Args:
        later: the sections of who is configured and not in the system that runs, by name.
        services: whose operations its routes are of; None: all of the system are imported.

    Nothing is written, and nothing listens. Must run where a loop runs.

    Raises:
        ConfigError: there are mistakes; the message names them all.
    """
    reading = await read_gateway(gateway, config, rundir, runtime, later, services)
    if reading.mistakes:
        raise refusal_of(reading.mistakes)
    return reading.entries


async def read_gateway(
    gateway: Gateway,
    config: SystemConfig,
    rundir: RunDir,
    runtime: Runtime,
    later: Mapping[str, str] = NONE_LATER,
    services: Sequence[Service] | None = None,
) -> Reading:
    """Compile a gateway, and collect every mistake in it, each as a sentence.

    Args:
        later, services: as for `check_gateway`.
    """
    reading = read(gateway)
    # What of it is of the wrong kind has been named.
    gateway, _ = sound(gateway)
    if services is None:
        services = load_services(config, rundir.folder)
    mistakes = [
        *reading.mistakes,
        *_without_operation(reading.entries, services),
        *_unknown_services(
            gateway, {*config.services, *config.external, *config.system.joined}, later
        ),
        *health_mistakes(config.gateway.health, reading.entries),
    ]
    if any(isinstance(each, Certificates) for each in gateway.auth) and not (
        config.gateway.tls.client_ca
    ):
        mistakes.append(
            "Certificates: no client is asked for one; name the authorities that issue them, such "
            'as [gateway] tls = { ..., client_ca = "tls/partners.pem" }'
        )
    for auth in gateway.auth:
        if auth_mistakes(auth):
            continue  # the check of the definition has named them
        try:
            path = own_keys_path(auth, rundir)
            if path is not None:
                if not path.exists():
                    continue
                refuse_shared(path)
            await opened(auth, gateway.auth, folders_of(rundir), runtime).close()
        except ConfigError as error:
            mistakes.append(error.message)
    return Reading(reading.entries, tuple(mistakes))


def _unknown_services(gateway: Gateway, known: set[str], later: Mapping[str, str]) -> Iterator[str]:
    for route in gateway.routes:
        for what, name, lack in _upstreams_of(route):
            if name in known:
                continue
            if name in later:
                why = (
                    f"{later[name]} is in the configuration, and not in the system that runs: a "
                    "new synchromesh dev takes it"
                )
            else:
                why = f"the system has {lack}; it has: {', '.join(sorted(known))}"
            yield f"{name_of(route)}: leads to {what}, and {why}"


def _upstreams_of(route: Route | Aggregate | Forward) -> Iterator[tuple[str, Any, str]]:
    """Yield whom a route leads to: as it is said, by name, and what there is without them."""
    if isinstance(route, Forward):
        beside = [each for each in (route.split, route.mirror) if each is not None]
        for to in (route.to, *(getattr(each, "to", None) for each in beside)):
            yield repr(to), to, "neither a service nor an external one of that name"
    for operation in _operations_of(route):
        # What is none is named by the check of the definition.
        if isinstance(operation, Operation):
            yield operation.full_name, operation.service, f"no service {operation.service!r}"


def _without_operation(
    entries: Sequence[CompiledRoute], services: Sequence[Service]
) -> Iterator[str]:
    """Find what is passed on to services that answer nothing else there than 404."""
    offered = {
        each.name: [] if each.contract is None else operations_of(each.contract).values()
        for each in services
    }
    for entry in entries:
        for of, found in (
            ("", entry),
            ("its split: ", entry.split),
            ("its mirror: ", entry.mirror),
        ):
            passage = None if found is None else found.passage
            if passage is None or passage.to not in offered:
                continue
            there = Template(entry.template.method, passage.path)
            routes = [Template(each.method, each.path) for each in offered[passage.to]]
            if not any(meets(there, each) for each in routes):
                known = [f"{each.method} {each.path}" for each in routes[:_NAMED_MAX]]
                if len(routes) > _NAMED_MAX:
                    known.append(f"{len(routes) - _NAMED_MAX} more")
                yield (
                    f"{entry.name}: {of}leads to {there.method} {there.path} of {passage.to!r}, "
                    f"which has no such operation; it has: {', '.join(known) or 'none'}; say where "
                    "it is by path="
                )


def _operations_of(route: object) -> list[object]:
    if isinstance(route, Route):
        return [route.operation]
    if isinstance(route, Aggregate):
        return [
            getattr(branch, "operation", None)
            for branch in getattr(route.branches, "values", list)()
        ]
    return []
