"""What is known of a system from its files: the newest traces, and what blocked its loops."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from synchromesh.advisor import ProjectionFacts, SetAsideFacts
from synchromesh.runtime import RealRuntime
from synchromesh.system.config.rundir import RunDir
from synchromesh.system.control.log_files import LogFilter, read_logs
from synchromesh.system.control.status import Status
from synchromesh.system.control.status_parts import ProjectionStatus
from synchromesh.telemetry import SpanRecord
from synchromesh.telemetry.ring import newest_spans

# Of all processes together; a trace is looked at whole, as far as its spans are among them.
SPANS_MAX = 100_000
# Logs may be of a hundred megabytes: what is of no interest is not decoded.
_HELD = b"the event loop has been blocked for "
_BLOCKED = re.compile(r"the event loop has been blocked for [0-9.]+ s by (.+); await, or give")


def kept_traces(folder: Path) -> list[list[SpanRecord]]:
    """Return the newest traces, each with its spans, as far as the processes have written them."""
    disk, files = RealRuntime().disk, sorted(RunDir(folder).telemetry.glob("spans*.db"))
    traces: dict[str, list[SpanRecord]] = defaultdict(list)
    for file in files:
        for span in newest_spans(str(file), disk, SPANS_MAX // len(files)):
            traces[span.trace_id].append(span)
    return list(traces.values())


def blockers(folder: Path) -> dict[str, str]:
    """Return what blocked the event loop of each part last, as the logs have it."""
    found: dict[str, str] = {}
    wanted = LogFilter(level="ERROR")
    for line in read_logs(RunDir(folder).telemetry, wanted, holding=_HELD):
        if matched := _BLOCKED.match(line.message):
            found[line.part or "the system"] = matched[1]
    return found


def projections(first: Status, then: Status) -> tuple[ProjectionFacts, ...]:
    """Return how far projections were behind at two moments."""
    before = {key: each.behind for key, each in _projections(first).items()}
    return tuple(
        ProjectionFacts(key[0], each.name, before[key], each.behind)
        for key, each in _projections(then).items()
        if key in before
    )


def set_aside(status: Status, now_us: int) -> tuple[SetAsideFacts, ...]:
    """Return the messages that are set aside, and the events that park a projection."""
    found: dict[tuple[str, str], SetAsideFacts] = {}
    for name, told in status.services.items():
        service = name.partition("#")[0]
        for each in told.set_aside:
            what = f"{each.event} ({each.error})"
            key = (service, f"{what} {each.state} {each.source} {each.subscriber}")
            found[key] = SetAsideFacts(service, what, each.count, each.oldest_s)
    for (service, _, generation), kept in _projections(status).items():
        if (parked := kept.parked) is not None:
            at = f"event {parked.position}" if parked.position else "its log"
            what = f"projection {kept.name}, parked at {at} ({parked.error}),"
            since_s = (now_us - parked.since_us) / 1e6
            found[service, f"{what} {generation}"] = SetAsideFacts(service, what, 1, since_s)
    return tuple(found.values())


def _projections(status: Status) -> dict[tuple[str, str, int], ProjectionStatus]:
    """Return the projections by service, name and generation; replicas tell of the same ones."""
    return {
        (instance.partition("#")[0], each.name, each.generation): each
        for instance, told in status.services.items()
        for each in told.projections
    }
