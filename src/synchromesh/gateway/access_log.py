"""What the access log says of each request: a line of JSON, and never a secret.

Of a request it has the method, the route as it is written, and who asked; not the path, the query,
a header or a body, in which secrets and personal data travel. Lines wait in a bounded buffer until
somebody writes them; where nobody keeps up, the oldest stay and the newest are counted as dropped.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from synchromesh.codec import to_datetime
from synchromesh.gateway.origin import Origins
from synchromesh.http import Headers, RawPair

LINES_MAX: Final = 10_000
LOGGER: Final = "synchromesh.gateway.access"
# Instead of a status: the answer had not begun when the client left.
NO_STATUS: Final = 0


class Served(msgspec.Struct, frozen=True, gc=False):
    """One request, as the access log tells of it.

    Attributes:
        at_us: when its answer ended, by the wall clock.
        route: the route as it was written; "" where it had none.
        status: of the answer; 0 where the client left before it began.
        took_s: from its head to the end of the answer.
        size: bytes of the body that were sent; None where nobody has counted them.
        principal: who asked; "" for anybody.
        client: the address that it came from, behind trusted proxies.
        request_id: its name outside; "" where it was given none.
        ended: "ok", "cut" where the answer broke off, or "left" where the client did.
    """

    at_us: int
    method: str
    route: str
    status: int
    took_s: float
    size: int | None
    principal: str = ""
    client: str = ""
    trace_id: str = ""
    request_id: str = ""
    ended: str = "ok"

    @property
    def line(self) -> bytes:
        """Return the line, without its end.

        Example:
            >>> line = Served(0, "GET", "GET /stock/{sku}", 200, 0.0021, 17, "shop").line
            >>> line[:95]  # doctest: +NORMALIZE_WHITESPACE
            b'{"at":"1970-01-01T00:00:00+00:00","level":"INFO","logger":"synchromesh.gateway.access","message'
        """
        told = self.route or self.method or "a request"
        what = {"ok": str(self.status or ""), "cut": "broke off", "left": "the client left"}
        by = f" by {self.principal}" if self.principal else ""
        return msgspec.json.encode(
            {
                "at": to_datetime(self.at_us).isoformat(),
                "level": "WARNING" if self.status >= 500 or self.ended == "cut" else "INFO",
                "logger": LOGGER,
                "message": f"{told} {what[self.ended]} in {self.took_s * 1e3:.1f} ms{by}",
                "trace_id": self.trace_id,
                "method": self.method,
                "route": self.route,
                "status": self.status,
                "duration_ms": round(self.took_s * 1e3, 3),
                "bytes": self.size,
                "principal": self.principal,
                "client": self.client,
                "request_id": self.request_id,
                "ended": self.ended,
            }
        )


class AccessLog:
    """Takes what is to be logged, and keeps it until it is written.

    Args:
        share: which share of the requests that went well is kept, above 0 to 1; all others are.
        rng: draws them.
        wall_us: the wall clock.
        origins: tells whom a request comes from.
        lines_max: how many lines wait; those that come then are dropped.

    Attributes:
        dropped: how many were, so far.
        share, origins: as they were given; may be replaced.

    Example:
        >>> log = AccessLog(1.0, random.Random(0), lambda: 0, Origins(), lines_max=1)
        >>> for _ in range(3):
        ...     log.add("GET", "", 404, 0.0, 0, peer="10.0.0.1:4711")
        >>> [(each.status, each.client) for each in log.take()], log.dropped
        ([(404, '10.0.0.1')], 2)
    """

    def __init__(
        self,
        share: float,
        rng: random.Random,
        wall_us: Callable[[], int],
        origins: Origins,
        *,
        lines_max: int = LINES_MAX,
    ) -> None:
        self.share = share
        self._rng = rng
        self._wall_us = wall_us
        self.origins = origins
        self._lines_max = lines_max
        self._waiting: list[Served] = []
        self.dropped = 0

    def add(
        self,
        method: str,
        route: str,
        status: int,
        took_s: float,
        size: int | None,
        *,
        ended: str = "ok",
        peer: str = "",
        told: Told | None = None,
    ) -> None:
        """Take a request whose answer has ended.

        Args:
            peer: `host:port` of the connection's other end.
            told: what else is known of it; None for nothing.
        """
        if (
            status < 400
            and ended == "ok"
            and self.share < 1.0
            and not (told is not None and told.is_degraded)
            and self._rng.random() >= self.share
        ):
            return
        if len(self._waiting) >= self._lines_max:
            self.dropped += 1
            return
        told = told or _NOTHING
        fields = told.fields
        if isinstance(fields, Headers):
            origin = self.origins.of_request(peer, fields)
        else:
            origin = self.origins.of_pairs(peer, fields)
        self._waiting.append(
            Served(
                self._wall_us(), method, route, status, took_s, size, told.principal,
                origin.address, told.trace_id, told.request_id, ended,
            )
        )  # fmt: skip

    def take(self) -> list[Served]:
        """Take what waits, the oldest first."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def __repr__(self) -> str:
        return f"<AccessLog {len(self._waiting)} waiting, {self.dropped} dropped>"


class Told(msgspec.Struct, frozen=True, gc=False):
    """What the log is told of a request beside what became of it.

    Attributes:
        fields: of its head; the client is read from them where proxies are trusted.
        is_degraded: something stood in for an answer, or was left out; always kept.
    """

    fields: Headers | Sequence[RawPair] = ()
    principal: str = ""
    trace_id: str = ""
    request_id: str = ""
    is_degraded: bool = False


_NOTHING: Final = Told()
