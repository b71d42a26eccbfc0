"""Reads `synchromesh.toml`, the environment and flags as one checked configuration.

It is checked throughout before anything starts: an unknown key, a wrong type or a missing section
is named with its place and what would be right.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from synchromesh.durations import duration
from synchromesh.errors import ConfigError
from synchromesh.system.config.layers import Layers
from synchromesh.system.config.parts import parts_of
from synchromesh.system.config.schema import (
    FILE_NAME,
    GATEWAY,
    OUTSIDE,
    REPLICAS_MAX,
    SystemConfig,
)

HANG_LEAST_S = 1.0
# Names become file names, parts of URLs and edges.
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_BARE_EDGE = re.compile(r"^\s*\[\s*policies\s*\.\s*([\w-]*:[\w-]*)([.\w-]*)\s*\]", re.MULTILINE)


def load_config(
    folder: Path,
    *,
    environment: Mapping[str, str] = MappingProxyType({}),
    flags: Sequence[str] = (),
) -> SystemConfig:
    """Read and check the configuration of the system in a folder: file < environment < flags.

    Args:
        environment: `SYNCHROMESH_SERVICES__ORDERS__PORT=8001` sets `services.orders.port`.
        flags: settings such as "services.orders.port=8001".

    Raises:
        ConfigError: the file is missing or malformed, or a value is wrong; the message names where.
    """
    return read_layers(folder, environment=environment, flags=flags)[0]


def read_layers(
    folder: Path, *, environment: Mapping[str, str], flags: Sequence[str]
) -> tuple[SystemConfig, Layers]:
    """Read and check the configuration as `load_config` does, with the origin of each value."""
    path = folder / FILE_NAME
    try:
        # Bytes, for reading text would make one line ending of another.
        text = path.read_bytes().decode()
        data = tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError(
            f"there is no {FILE_NAME} in {folder}; go to the folder of your system, or make one "
            "with: synchromesh new NAME"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    except tomllib.TOMLDecodeError as error:
        bare = _BARE_EDGE.search(text)
        hint = f'; quote the edge: [policies."{bare[1]}"{bare[2]}]' if bare else ""
        raise ConfigError(f"{path} is not valid TOML: {error}{hint}") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    layers = Layers(SystemConfig, path, text, data)
    layers.overlay(environment, flags, {"policies": _edges(data)})
    config: SystemConfig = layers.convert()
    _check(config, layers)
    layers.refuse_misspelled(environment)
    return config, layers


def _edges(data: Mapping[str, Any]) -> list[str]:
    """Return every edge that can have a policy."""
    services, external = data.get("services"), data.get("external")
    ours = list(services) if isinstance(services, dict) else []
    system = data.get("system")
    joined = system.get("joined") if isinstance(system, dict) else None
    ours += [each for each in joined if isinstance(each, str)] if isinstance(joined, list) else []
    callees = [*ours, *(external if isinstance(external, dict) else ())]
    return [f"{caller}:{callee}" for caller in (*ours, GATEWAY, OUTSIDE) for callee in callees]


def _check(config: SystemConfig, layers: Layers) -> None:
    where = layers.where
    if not config.services:
        raise ConfigError(f"{where('services')}: [services] names no service; add [services.NAME]")
    joined = config.system.joined
    for section, names in (
        ("services", config.services), ("external", config.external), ("system", joined),
    ):  # fmt: skip
        for name in names:
            if not _NAME.fullmatch(name):
                place = where("system", "joined") if names is joined else where(section, name)
                raise ConfigError(
                    f"{place}: {name!r} cannot name a service; use lower-case letters, digits and _"
                )
    twice_named = next((name for name in config.external if name in config.services), None)
    if twice_named is not None:
        raise ConfigError(
            f"{where('external', twice_named)}: {twice_named!r} is both a service and external; "
            "rename one"
        )
    for name in joined:
        if name == GATEWAY or name in config.services or name in config.external:
            raise ConfigError(
                f"{where('system', 'joined')}: {name!r} is to join, and is the gateway, a service "
                "or external too; rename one"
            )
    _check_engine(config, layers)
    _check_tls(config, layers)
    _check_numbers(config, layers)
    _check_ports(config, layers)
    _check_hang(config.system.hang, where("system", "hang"))
    try:
        config.retention.compile()
    except ConfigError as error:
        key = error.message.partition(":")[0].partition(".")[0]
        raise ConfigError(f"{where('retention', key)}: [retention] {error.message}") from error
    try:
        config.advice.check()
    except ConfigError as error:
        raise ConfigError(f"{where('advice', 'ignore')}: [advice] {error.message}") from error
    _check_externals(config, layers)
    try:
        config.telemetry.check()
    except ConfigError as error:
        key, _, why = error.message.partition(": ")
        raise ConfigError(f"{where('telemetry', key)}: [telemetry] {why}") from error
    _check_gateway(config, layers)
    _check_edges(config, layers)


def _check_engine(config: SystemConfig, layers: Layers) -> None:
    for name in config.engine.sqlite:
        if name not in config.services:
            raise ConfigError(
                f"{layers.where('engine', 'sqlite')}: [engine] sqlite names {name!r}, and there is "
                f"no such service; there are {', '.join(config.services)}"
            )


def _check_tls(config: SystemConfig, layers: Layers) -> None:
    tls = config.system.tls
    if config.admin.tls and not tls.certificate:
        raise ConfigError(
            f"{layers.where('admin', 'tls')}: [admin] tls is by the certificate of this host, and "
            "[system] tls names none; name one there, or leave [admin] tls out"
        )
    if len({bool(tls.certificate), bool(tls.key), bool(tls.ca)}) > 1:
        raise ConfigError(
            f"{layers.where('system', 'tls')}: [system] tls needs certificate, key and ca, all of "
            "them: each host proves itself to the others, and believes that authority alone"
        )


def _check_externals(config: SystemConfig, layers: Layers) -> None:
    for name, external in config.external.items():
        try:
            external.check()
        except ConfigError as error:
            key, _, why = error.message.partition(": ")
            place = layers.where("external", name, *filter(None, key.split(".")))
            raise ConfigError(f"{place}: [external.{name}] {why}") from error


def _check_gateway(config: SystemConfig, layers: Layers) -> None:
    where, tls = layers.where, config.gateway.tls
    if bool(tls.certificate) != bool(tls.key) or (tls.client_ca and not tls.certificate):
        raise ConfigError(
            f"{where('gateway', 'tls')}: [gateway] tls needs certificate and key, both of them"
        )
    if tls.client == "optional" and not tls.client_ca:
        raise ConfigError(
            f'{where("gateway", "tls")}: [gateway] tls has client = "optional", and no client_ca '
            "whose certificates clients could show; name the file of their authorities"
        )
    try:
        config.gateway.clients.compile()
        config.gateway.clients.compile_pool()
    except ConfigError as error:
        key = error.message.replace(":", " ").split(" ", 1)[0]
        place = where("gateway", "clients", key)
        raise ConfigError(f"{place}: [gateway.clients] {error.message}") from error
    try:
        config.gateway.access_share()
    except ConfigError as error:
        place = where("gateway", "access_log")
        raise ConfigError(f"{place}: [gateway] {error.message}") from error
    if config.gateway.trusted_proxies:
        # The gateway is loaded for who asks for one.
        from synchromesh.gateway.origin import read_proxies

        try:
            read_proxies(config.gateway.trusted_proxies)
        except ConfigError as error:
            place = where("gateway", "trusted_proxies")
            raise ConfigError(f"{place}: [gateway] trusted_proxies: {error.message}") from error
        if not config.gateway.forwarded_by:
            raise ConfigError(
                f"{where('gateway', 'trusted_proxies')}: [gateway] trusted_proxies needs "
                'forwarded_by beside it: "x-forwarded" where your proxies write X-Forwarded-For, '
                '"forwarded" where they write Forwarded; a client can write whatever they do not'
            )


def _check_edges(config: SystemConfig, layers: Layers) -> None:
    where, callers = layers.where, {*config.services, *config.system.joined}
    known = {*callers, *config.external}
    if GATEWAY in known:
        section = "services" if GATEWAY in config.services else "external"
        raise ConfigError(
            f"{where(section, GATEWAY)}: {GATEWAY!r} is the name of the gateway itself; "
            "rename this one"
        )
    callers.add(OUTSIDE)
    if config.gateway.app:
        callers.add(GATEWAY)
    for edge, policy in config.policies.items():
        caller, colon, callee = edge.partition(":")
        if not colon or caller not in callers or callee not in known:
            raise ConfigError(
                f'{where("policies", edge)}: [policies."{edge}"] is not an edge; expected '
                f'"CALLER:CALLEE" of {", ".join(sorted(known | callers))}'
            )
        try:
            policy.compile()
            policy.compile_balancer()
            policy.compile_operations()
        except ConfigError as error:
            # The message begins with the key, from this section on.
            key = error.message.replace(":", " ").split(" ", 1)[0]
            place = layers.places("policies", edge, *key.split("."))
            raise ConfigError(f'{place}: [policies."{edge}"] {error.message}') from error


def _check_hang(hang: str, place: str) -> None:
    try:
        is_long = duration(hang) >= HANG_LEAST_S
    except ConfigError as error:
        raise ConfigError(f"{place}: [system] hang: {error.message}") from error
    if not is_long:
        raise ConfigError(
            f"{place}: [system] hang is {hang!r}; make it {HANG_LEAST_S:g}s or more: a shorter "
            "silence is only suspicious"
        )


def _check_numbers(config: SystemConfig, layers: Layers) -> None:
    for name, service in config.services.items():
        if service.pages_max < 0:
            raise ConfigError(
                f"{layers.where('services', name, 'pages_max')}: [services.{name}] pages_max is "
                f"{service.pages_max}; use 0 for no bound"
            )
        if service.in_flight < 1 or service.waiting < 0:
            key = "in_flight" if service.in_flight < 1 else "waiting"
            right = "1 or more, or it would answer nothing" if key == "in_flight" else "0 or more"
            raise ConfigError(
                f"{layers.where('services', name, key)}: [services.{name}] {key} is "
                f"{getattr(service, key)}; make it {right}"
            )
        if service.sagas.in_flight < 1 or service.sagas.queued < 0:
            key = "in_flight" if service.sagas.in_flight < 1 else "queued"
            right = "1 or more, or none would go on" if key == "in_flight" else "0 (none) or more"
            raise ConfigError(
                f"{layers.where('services', name, 'sagas', key)}: [services.{name}.sagas] {key} is "
                f"{getattr(service.sagas, key)}; make it {right}"
            )
        place = layers.where("services", name, "replicas")
        if not 1 <= service.replicas <= REPLICAS_MAX:
            raise ConfigError(
                f"{place}: [services.{name}] replicas is {service.replicas}; use 1 to "
                f"{REPLICAS_MAX}"
            )
        if service.replicas > 1 and service.port:
            raise ConfigError(
                f"{place}: [services.{name}] has {service.replicas} replicas and one port, "
                f"{service.port}, on which only one can listen; leave out port, and each takes a "
                "free one"
            )
    if not 1 <= config.gateway.replicas <= REPLICAS_MAX:
        raise ConfigError(
            f"{layers.where('gateway', 'replicas')}: [gateway] replicas is "
            f"{config.gateway.replicas}; use 1 to {REPLICAS_MAX}"
        )


def _check_ports(config: SystemConfig, layers: Layers) -> None:
    first = config.gateway.port
    ports = [(f"services.{name}.port", each.port) for name, each in config.services.items()]
    ports += [("gateway.port", first + n if first else 0) for n in range(config.gateway.replicas)]
    ports += [
        ("system.control_port", config.system.control_port),
        ("admin.port", config.admin.port),
    ]
    for part, port in config.admin.ports.items():
        if [each.name for each in parts_of(config, part)] != [part]:
            raise ConfigError(
                f"{layers.where('admin', 'ports', part)}: [admin] ports names {part!r}, which is "
                "no process of this system; expected a service, one of its replicas such as "
                '"quoting#2", or "gateway"'
            )
        ports.append((f"admin.ports.{part}", port))
    taken: dict[int, str] = {}
    for name, port in ports:
        place = layers.where(*name.split("."))
        if not 0 <= port <= 65_535:
            raise ConfigError(f"{place}: port {port} is not one; use 1 to 65535, or 0 for any")
        if port and port in taken:
            raise ConfigError(
                f"{place}: port {port} is given twice, also at {taken[port]}; every server needs "
                "its own"
            )
        taken[port] = place
