"""The policies of a caller's edges, as they are configured."""

from __future__ import annotations

from collections.abc import Mapping

from synchromesh.calls import Policies
from synchromesh.system.config.schema import PolicySection, SystemConfig


def policies_of(config: SystemConfig, caller: str) -> Policies:
    """Return the policies of one caller's edges, as configured."""
    return policies_from(sections_of(config, caller))


def sections_of(config: SystemConfig, caller: str) -> dict[str, PolicySection]:
    """Return what is configured of one caller's edges, by the callee."""
    edges = ((edge.partition(":"), section) for edge, section in config.policies.items())
    return {callee: section for (of, _, callee), section in edges if of == caller}


def policies_from(sections: Mapping[str, PolicySection]) -> Policies:
    """Return the policies that sections describe, by the callee.

    Raises:
        ConfigError: one has a mistake.
    """
    edges, operations, balancers = {}, {}, {}
    for callee, section in sections.items():
        edges[callee] = section.compile()
        balancers[callee] = section.compile_balancer()
        for name, policy in section.compile_operations().items():
            operations[f"{callee}.{name}"] = policy
    return Policies(edges=edges, operations=operations, balancers=balancers)
