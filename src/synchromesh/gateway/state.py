"""What a gateway knows of its requests, and keeps where another definition takes its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from synchromesh.gateway.access_log import AccessLog
from synchromesh.gateway.changes import name_of, operations_of
from synchromesh.gateway.compiled import CompiledRoute
from synchromesh.gateway.last_answers import LastAnswers
from synchromesh.gateway.limits import TokenBuckets
from synchromesh.gateway.metrics import IN_FLIGHT, LOG_DROPPED
from synchromesh.gateway.mirror_book import MirrorBook
from synchromesh.gateway.routes import Forward, Gateway
from synchromesh.gateway.traffic import GatewayCounts, RouteTraffic, families
from synchromesh.gateway.tunnels import TunnelPlaces
from synchromesh.resilience import Limiter, LimitOptions
from synchromesh.telemetry import Family, Sample


@dataclass(frozen=True, slots=True)
class GatewayState:
    """Is what the requests of one gateway leave behind.

    Attributes:
        gateway: whose it is.
        limiter: bounds what is in flight.
        last: the last good answers, for those who fall back to them.
        tunnels: how many are open.
        buckets: who has asked how often, by route.
        traffic: counts of requests, by route.
        others: counts of requests that no route has.
        mirrors: what has come of copies of requests, by route.
        log: is told of every request; None for no access log.
    """

    gateway: Gateway
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
        cls,
        gateway: Gateway,
        entries: Sequence[CompiledRoute],
        log: AccessLog | None = None,
        before: GatewayState | None = None,
    ) -> GatewayState:
        """Return the state of a gateway that nobody has asked yet, or that takes another's place.

        What has the same bounds as before goes on: who has asked how often, what is in flight, the
        last answers of routes whose operations are the same, and counts.

        Args:
            before: of the gateway whose place it takes; None for a new one.
        """
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
        if before is not None:
            return before._taken_over(gateway, entries, log, buckets)
        return cls(
            gateway=gateway,
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

    def _taken_over(
        self,
        gateway: Gateway,
        entries: Sequence[CompiledRoute],
        log: AccessLog | None,
        buckets: dict[str, TokenBuckets],
    ) -> GatewayState:
        fresh, before = GatewayState.of(gateway, entries, log), self.gateway
        for name, made in buckets.items():
            kept = self.buckets.get(name)
            if kept is not None and kept.is_as(made):
                fresh.buckets[name] = kept
        for name in fresh.traffic.keys() & self.traffic.keys():
            fresh.traffic[name] = self.traffic[name]
        old, new = _mirrors_of(before), _mirrors_of(gateway)
        for name in fresh.mirrors.keys() & self.mirrors.keys():
            if old.get(name) == new.get(name):
                fresh.mirrors[name] = self.mirrors[name]
        for traffic in (*fresh.traffic.values(), self.others):
            traffic.log = log
        bounds = (gateway.stale_max, gateway.stale_bytes_max)
        is_last_kept = bounds == (before.stale_max, before.stale_bytes_max)
        is_in_flight_kept = gateway.in_flight_max == before.in_flight_max
        return replace(
            fresh,
            limiter=self.limiter if is_in_flight_kept else fresh.limiter,
            tunnels=self.tunnels if gateway.tunnels_max == before.tunnels_max else fresh.tunnels,
            last=self.last if is_last_kept and _are_same(before, gateway) else fresh.last,
            others=self.others,
        )

    def counts(self) -> GatewayCounts:
        """Return what became of the requests so far."""
        return GatewayCounts(
            routes={name: traffic.counts() for name, traffic in self.traffic.items()},
            others=self.others.counts(),
            log_dropped=0 if self.log is None else self.log.dropped,
        )

    def families(self, scheme: str) -> list[Family]:
        """Return the metrics of a gateway that is asked by "http" or "https"."""
        dropped = 0 if self.log is None else self.log.dropped
        return [
            *families([*self.traffic.values(), self.others], scheme=scheme),
            Family(IN_FLIGHT, [Sample((), self.limiter.in_flight)]),
            Family(LOG_DROPPED, [Sample((), dropped)]),
        ]

    def note_refused(self, peer: str, status: int) -> None:
        """Count, and log, a connection that the server has refused before there was a request."""
        others = self.others
        others.answered("", status, 0.0)
        if others.log is not None:
            others.log.add("", "", status, 0.0, None, peer=peer)

    def __repr__(self) -> str:
        return f"<GatewayState {len(self.traffic)} routes, {self.limiter!r}>"


def _mirrors_of(gateway: Gateway) -> dict[str, object]:
    return {name_of(each): each.mirror for each in gateway.routes if isinstance(each, Forward)}


def _are_same(before: Gateway, after: Gateway) -> bool:
    """Tell whether each operation that both have is the same: its kept answers can be read."""
    known = {operation.full_name: operation for operation in operations_of(before)}
    return all(known.get(each.full_name, each) is each for each in operations_of(after))
