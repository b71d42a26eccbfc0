"""What has come of the copies of requests, as the control API shows it."""

from __future__ import annotations

import msgspec


class DifferenceStatus(msgspec.Struct, frozen=True):
    """One thing in which two answers differ, as `gateway.comparing.AnswerDifference`."""

    where: str
    why: str
    first: str = ""
    mirror: str = ""


class DifferentStatus(msgspec.Struct, frozen=True):
    """A request whose answers differed; `target` is "" where values are not kept."""

    at_us: int
    trace_id: str
    target: str
    statuses: tuple[int, int]
    differences: list[DifferenceStatus]


class MirrorStatus(msgspec.Struct, frozen=True):
    """What has come of the copies of one route's requests since the gateway was started.

    Attributes:
        route: as it was written; `first` and `to` are the upstreams.
        same, different, failed, dropped, too_long, unanswered: how many copies came to what.
        last_failure: why the last one failed, as a code.
        kept: the last differences, the oldest first.
    """

    route: str
    first: str
    to: str
    same: int
    different: int
    failed: int
    dropped: int
    too_long: int
    unanswered: int
    in_flight: int
    last_failure: str
    kept: list[DifferentStatus]
