"""What `synchromesh gateway reload` asks for and answers, and how two configurations differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from msgspec.structs import replace

from synchromesh.gateway.change import GatewayChange
from synchromesh.system.config.schema import (
    FILE_NAME,
    GATEWAY,
    OperationSection,
    PolicySection,
    SystemConfig,
)

# What a gateway takes up only where the whole system starts anew.
_FIXED = ("app", "host", "port", "replicas")


class ReloadRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /gateway/reload`.

    Attributes:
        who, why: recorded with what was changed; not needed for a dry run.
        is_dry_run: shows what would change, and changes nothing.
        config: the configuration as it is now, where the gateway is another process.
    """

    who: str = ""
    why: str = ""
    is_dry_run: bool = False
    config: SystemConfig | None = None


class ReloadReport(msgspec.Struct, frozen=True):
    """The answer to that.

    Attributes:
        is_taken: whether it is in force.
        changes: what differs, or would.
        mistakes: why it was not taken, a sentence each; then nothing of it is.
        left: what else has changed in the file, and is no matter of the gateway.
    """

    is_taken: bool
    changes: list[GatewayChange] = []
    mistakes: list[str] = []
    left: list[str] = []


def config_of_gateway(ours: SystemConfig, now: SystemConfig) -> SystemConfig:
    """Return the configuration of a gateway that starts or is reloaded while the system runs.

    Its own sections are as they are now. Its socket stays, and so do the services.
    """
    policies = {edge: each for edge, each in ours.policies.items() if not _is_gateways(edge)}
    policies |= {edge: each for edge, each in now.policies.items() if _is_gateways(edge)}
    fixed = {name: getattr(ours.gateway, name) for name in _FIXED}
    return replace(ours, policies=policies, gateway=replace(now.gateway, **fixed))


def config_changes(before: SystemConfig, after: SystemConfig) -> list[GatewayChange]:
    """Return what differs of a gateway's own sections; what is not written is as its default."""
    edges = sorted({*filter(_is_gateways, (*before.policies, *after.policies))})
    old, new = _own(before, after, edges), _own(after, before, edges)
    return [
        GatewayChange(name, old.get(name, "none"), new.get(name, "none"))
        for name in sorted({*old, *new})
        if old.get(name, "none") != new.get(name, "none")
    ]


def refused_changes(ours: SystemConfig, now: SystemConfig) -> Iterator[str]:
    """Yield what has changed of a gateway that only a new start takes up, a sentence each."""
    for name in _FIXED:
        was, wanted = getattr(ours.gateway, name), getattr(now.gateway, name)
        if was != wanted:
            yield (
                f"{FILE_NAME}: [gateway] {name} is {was!r}, and would be {wanted!r}: that takes a "
                "new start of the system; take it back, and the rest can be reloaded"
            )
    if ours.gateway.clients.quiet != now.gateway.clients.quiet:
        yield (
            f"{FILE_NAME}: [gateway.clients] quiet is of connections to upstreams, which stay: it "
            "takes synchromesh restart gateway (dev --split), or a new start"
        )
    if bool(ours.gateway.tls.certificate) != bool(now.gateway.tls.certificate):
        yield (
            f"{FILE_NAME}: [gateway] tls would change between plain HTTP and TLS: that takes "
            "synchromesh restart gateway (dev --split), or a new start"
        )


def later_names(ours: SystemConfig, now: SystemConfig) -> dict[str, str]:
    """Return the services and external ones that are in the file and not in the system that runs.

    By name, each with its section.
    """
    found = {name: f"[services.{name}]" for name in now.services if name not in ours.services}
    found |= {name: f"[external.{name}]" for name in now.external if name not in ours.external}
    return found


def left_changes(ours: SystemConfig, now: SystemConfig) -> list[str]:
    """Return the sections that have changed and are no matter of the gateway."""
    left = []
    for field in msgspec.structs.fields(SystemConfig):
        was, wanted = getattr(ours, field.name), getattr(now, field.name)
        if field.name == "gateway" or was == wanted:
            continue
        if not isinstance(was, dict):
            left.append(f"[{field.name}]")
            continue
        left += [
            f'[{field.name}."{name}"]'
            for name in sorted({*was, *wanted})
            if was.get(name) != wanted.get(name)
            and not (field.name == "policies" and _is_gateways(name))
        ]
    return left


def _own(config: SystemConfig, other: SystemConfig, edges: Iterable[str]) -> dict[str, str]:
    """Return the values in force of a gateway's sections, those of `other` too."""
    found = dict(_flat("[gateway] ", msgspec.to_builtins(config.gateway)))
    for edge in edges:
        section, beside = (each.policies.get(edge, PolicySection()) for each in (config, other))
        values = msgspec.to_builtins(replace(section, operations={}))
        for name in {*section.operations, *beside.operations}:
            operation = section.operations.get(name, OperationSection())
            # What is left out is as on the edge.
            values["operations"][name] = {
                "timeout": operation.timeout or section.timeout,
                "retry": msgspec.to_builtins(operation.retry or section.retry),
                "hedge": msgspec.to_builtins(operation.hedge),
            }
        found |= dict(_flat(f'[policies."{edge}"] ', values))
    return found


def _flat(of: str, value: Any) -> Iterator[tuple[str, str]]:
    for name, each in value.items():
        if isinstance(each, dict):
            yield from _flat(f"{of}{name}.", each)
        elif isinstance(each, list | tuple):
            yield f"{of}{name}", ", ".join(map(str, each)) or "none"
        else:
            yield f"{of}{name}", str(each) if each not in ("", None) else "none"


def _is_gateways(edge: str) -> bool:
    return edge.startswith(f"{GATEWAY}:")
