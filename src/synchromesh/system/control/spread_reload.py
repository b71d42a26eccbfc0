"""Reloads all gateways of a system: everywhere, or nowhere.

Each reads its own host's files. All are asked first what they would change, and where one has a
mistake, or cannot be asked, none changes anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeAlias

import msgspec

from synchromesh.errors import SynchromeshError
from synchromesh.gateway.change import GatewayChange
from synchromesh.system.control.gateway_changes import ReloadReport, ReloadRequest

Reload: TypeAlias = Callable[[ReloadRequest], Awaitable[ReloadReport]]


async def reload_all(gateways: Mapping[str, Reload], request: ReloadRequest) -> ReloadReport:
    """Have all gateways take up what has changed, and return what they say together."""
    rehearsed = await _ask_all(gateways, msgspec.structs.replace(request, is_dry_run=True))
    if request.is_dry_run or rehearsed.mistakes or not rehearsed.changes:
        return rehearsed
    return await _ask_all(gateways, request)


async def _ask_all(gateways: Mapping[str, Reload], request: ReloadRequest) -> ReloadReport:
    reports = await asyncio.gather(*(_ask(each, request) for each in gateways.values()))
    return united(dict(zip(gateways, reports, strict=True)))


async def _ask(reload: Reload, request: ReloadRequest) -> ReloadReport:
    try:
        return await reload(request)
    except SynchromeshError as error:
        return ReloadReport(False, mistakes=[error.message])


def united(reports: dict[str, ReloadReport]) -> ReloadReport:
    """Return what gateways say together; what not all of them say has their names.

    Example:
        >>> changed = ReloadReport(True, [GatewayChange("code", "", "gateway.py")])
        >>> both = united({"gateway@web1": changed, "gateway@web2": ReloadReport(False)})
        >>> both.is_taken, both.changes[0].what
        (True, 'gateway@web1: code')
    """

    def told(what: str, said: Sequence[str]) -> str:
        return what if len(said) == len(reports) else f"{', '.join(said)}: {what}"

    changes: dict[GatewayChange, list[str]] = {}
    mistakes: dict[str, list[str]] = {}
    left: dict[str, None] = {}
    for name, report in reports.items():
        for change in report.changes:
            changes.setdefault(change, []).append(name)
        for mistake in report.mistakes:
            mistakes.setdefault(mistake, []).append(name)
        left |= dict.fromkeys(report.left)
    return ReloadReport(
        any(each.is_taken for each in reports.values()),
        [
            msgspec.structs.replace(change, what=told(change.what, said))
            for change, said in changes.items()
        ],
        [told(mistake, said) for mistake, said in mistakes.items()],
        list(left),
    )
