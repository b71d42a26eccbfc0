"""`POST /services/NAME/copy`: what takes a service of a running system to the PostgreSQL server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import msgspec

from synchromesh.errors import BadRequest


class CopyRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /services/NAME/copy`: who has a service taken to the server, and why."""

    who: str
    why: str


Moving: TypeAlias = Callable[
    [str, CopyRequest, Callable[[], Awaitable[dict[str, Any]]]], Awaitable[object]
]


async def not_in_one_process(
    name: str,
    wanted: CopyRequest,  # noqa: ARG001
    anew: Callable[[], Awaitable[dict[str, Any]]],  # noqa: ARG001
) -> object:
    """Refuse it where services share a process, and the others could not go on meanwhile."""
    raise BadRequest(
        f"{name} shares its process with the rest of the system, which a copy would hold up: run "
        "the system by synchromesh dev --split, and copy while it runs; or stop it, copy, and "
        "start it again"
    )
