"""Isolates edges by hand, and releases them: who did it and why is in the log and in `status`."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from msgspec.structs import asdict

from synchromesh.calls import Isolation
from synchromesh.errors import BadRequest
from synchromesh.system.control.actions import check_by_whom
from synchromesh.system.control.local import LocalProcess

_log = logging.getLogger("synchromesh.system")


class IsolateRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /breakers`, `/breakers/release`: an edge, "orders:billing", or a callee; and why."""

    target: str
    who: str
    why: str


def isolate_or_release(
    local: LocalProcess, wanted: IsolateRequest, *, is_release: bool
) -> dict[str, Any]:
    """Isolate an edge or a callee in this process, or release it; return what was and what is.

    Raises:
        BadRequest: there is no such service or edge, nobody says why, or the edge is not isolated
            by itself.
    """
    target, isolations = wanted.target, local.deps.isolations
    check_by_whom("breaker", wanted.who, wanted.why)
    if "#" in target:
        raise BadRequest(
            f"{target!r} is one instance, and breakers are of edges between services; a callee's "
            "sick instance is ejected by itself"
        )
    local.faults.check(target)
    by_whom = {"who": wanted.who, "reason": wanted.why, "edge": target}
    if not is_release:
        isolations.put(Isolation(target, wanted.who, wanted.why, local.deps.runtime.wall_us()))
        _log.info("%s is isolated by hand", target, extra=by_whom)
        return {"isolated": [each.target for each in isolations.standing], "released": []}
    callee = target.partition(":")[2]
    if callee and any(each.target == callee for each in isolations.standing):
        raise BadRequest(
            f"{callee!r} is isolated for all its callers; release it: synchromesh breaker release "
            f"{callee}"
        )
    released = isolations.drop(target)
    for each in released:
        _log.info("%s is released by hand", each.target, extra=by_whom)
    return {
        "isolated": [each.target for each in isolations.standing],
        "released": [asdict(each) for each in released],
    }
