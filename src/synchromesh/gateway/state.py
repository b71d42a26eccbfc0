"""What a gateway knows of its requests, and keeps where another definition takes its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from synchromesh.gateway.access_log import AccessLog
from synchromesh.gateway.compiled import CompiledRoute
from synchromesh.gateway.last_answers import LastAnswers
from synchromesh.gateway.limits import TokenBuckets
from synchromesh.gateway.mirror_book import MirrorBook
from synchromesh.gateway.routes import Gateway
from synchromesh.gateway.traffic import GatewayCounts, RouteTraffic
from synchromesh.gateway.tunnels import TunnelPlaces
from synchromesh.resilience import Limiter, LimitOptions


@dataclass(frozen=True, slots=True)
class GatewayState:
    """Is what the requests of one gateway leave behind.

    Attributes:
        limiter: bounds what is in flight.
        last: the last good answers, for those who fall back to them.
        tunnels: how many are open.
        buckets: who has asked how often, by route.
        traffic: counts of requests, by route.
        others: counts of requests that no route has.
        mirrors: what has come of copies of requests, by route.
        log: is told of every request; None for no access log.
    """

    limiter: Limiter
    last: LastAnswers
    tunnels: TunnelPlaces
    buckets: dict[str, TokenBuckets]
    traffic: dict[str, RouteTraffic]
    others: RouteTraffic
    mirrors: dict[str, MirrorBook]
    log: AccessLog | None

    @classmethod
    def of(
        cls, gateway: Gateway, entries: Sequence[CompiledRoute], log: AccessLog | None = None
    ) -> GatewayState:
        """Return the state of a gateway that nobody has asked yet."""
        buckets = {
            entry.name: TokenBuckets(
                interval_s=entry.interval_s,
                burst=entry.burst,
                buckets_max=gateway.buckets_max,
                name=entry.name,
            )
            for entry in entries
            if entry.interval_s
        }
        return cls(
            limiter=Limiter(LimitOptions(gateway.in_flight_max), name="the gateway"),
            last=LastAnswers(answers_max=gateway.stale_max, bytes_max=gateway.stale_bytes_max),
            tunnels=TunnelPlaces(gateway.tunnels_max),
            buckets=buckets,
            traffic={entry.name: RouteTraffic(entry.name, log) for entry in entries},
            others=RouteTraffic("", log),
            mirrors={
                entry.name: MirrorBook(
                    in_flight_max=entry.mirror.in_flight_max,
                    kept_max=entry.mirror.kept_max,
                    has_values=entry.mirror.has_values,
                )
                for entry in entries
                if entry.mirror is not None
            },
            log=log,
        )

    def counts(self) -> GatewayCounts:
        """Return what became of the requests so far."""
        return GatewayCounts(
            routes={name: traffic.counts() for name, traffic in self.traffic.items()},
            others=self.others.counts(),
            log_dropped=0 if self.log is None else self.log.dropped,
        )

    def __repr__(self) -> str:
        return f"<GatewayState {len(self.traffic)} routes, {self.limiter!r}>"
