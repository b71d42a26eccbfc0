"""Leases: which instances of a service are alive, from their renewals and the passing of time.

    READY ──drain──▶ DRAINING ──end / expire──▶ (gone)
      └──────────────end / expire───────────────▲

A renewal carries the *incarnation* it was granted: a process that was paused and replaced cannot
come back. And where more than `mass_expiry_max` of a service would expire in one sweep, all of them
stay listed and the list is marked stale, for the registry is likelier to have failed than the
fleet. The same holds where a sweep comes a whole ttl late: the registry stalled and took no
renewals. The guard ends by itself: at once when everyone has renewed, one ttl after the first who
is heard shows the registry to be back, one ttl after it began where the registry stood still, and
`guard_s` after it began at the latest.

Source: Gray & Cheriton, "Leases", SOSP 1989; that the guard ends by itself answers
Netflix/eureka#1073; guarantees R1, R2, R5.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from synchromesh.discovery.endpoint import Endpoint, Resolved
from synchromesh.durations import ABOVE_0, FROM_0, FROM_1, SHARE, refuse_wrong_numbers
from synchromesh.errors import DiscoveryError, StaleIncarnation, UnknownInstance

# Below this number a dead registry cannot be told from one or two dead instances: the clock wins.
GUARDED_MIN = 3


class LeaseState(Enum):
    """The state of a lease: whether its instance is listed or draining."""

    READY = "ready"
    DRAINING = "draining"


class ChangeKind(Enum):
    """The kind of a change: of one lease, or of the list as a whole (HELD, TRUSTED)."""

    GRANTED = "granted"
    DRAINED = "drained"
    SUSPECTED = "suspected"
    CLEARED = "cleared"
    ENDED = "ended"
    EXPIRED = "expired"
    HELD = "held"
    TRUSTED = "trusted"


@dataclass(frozen=True, slots=True)
class Lease:
    """An instance's right to be listed until `expires_s` on the registry's clock.

    A *suspect* is listed only where none that is ready is above suspicion.
    """

    endpoint: Endpoint
    incarnation: int
    expires_s: float
    state: LeaseState = LeaseState.READY
    is_suspect: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the leases of a service, with the list that resulted.

    `lease` is the lease after the change, or the one that has gone; None where the change is that
    the list is now stale (HELD) or no longer is (TRUSTED).
    """

    revision: int
    kind: ChangeKind
    lease: Lease | None
    resolved: Resolved


@dataclass(frozen=True, slots=True)
class LeaseOptions:
    """Configures leases: their time to live, and the guard against mass expiry.

    Attributes:
        ttl_s: how long a lease runs without renewal.
        mass_expiry_max: the largest share of instances, 0 to 1, that may expire in one sweep.
        guard_s: how long a larger share is held back before it is believed after all.
        instances_max: how many instances one service may have.

    Raises:
        ConfigError: a value is outside its range.

    Example:
        >>> LeaseOptions(ttl_s=5.0).guard_s
        30.0
    """

    ttl_s: float = 3.0
    mass_expiry_max: float = 0.5
    guard_s: float = 30.0
    instances_max: int = 1024

    def __post_init__(self) -> None:
        refuse_wrong_numbers(
            self,
            (ABOVE_0, "ttl_s"),
            (SHARE, "mass_expiry_max"),
            (FROM_0, "guard_s"),
            (FROM_1, "instances_max"),
        )


class LeaseTable:
    """Holds the leases of one service; all is O(1) but `sweep` and the list after a change.

    Example:
        >>> table = LeaseTable(LeaseOptions(ttl_s=3.0))
        >>> granted = table.grant(Endpoint("a", "billing", "http://127.0.0.1:8001"), now=0.0)
        >>> [endpoint.instance for endpoint in table.listed().endpoints]
        ['a']
        >>> [change.kind.value for change in table.sweep(now=3.0)]
        ['expired']
        >>> table
        <LeaseTable 0/0 ready rev 2>
    """

    def __init__(self, options: LeaseOptions) -> None:
        self._options = options
        # All leases run equally long and renewing moves one to the end: this is expiry order.
        self._leases: dict[str, Lease] = {}
        self._incarnations = 0
        self._guard_until_s: float | None = None
        self._resolved: Resolved | None = None
        self._revision = 0

    @property
    def revision(self) -> int:
        """The number of changes so far."""
        return self._revision

    @property
    def is_stale(self) -> bool:
        """True while expired leases are kept listed: last known good, not known alive."""
        return self._guard_until_s is not None

    @property
    def leases(self) -> tuple[Lease, ...]:
        """All current leases, draining ones included, the next to expire first."""
        return tuple(self._leases.values())

    def listed(self) -> Resolved:
        """Return the endpoints that may be given new calls, ordered by instance."""
        if self._resolved is None:
            ready = [lease for lease in self._leases.values() if lease.state is LeaseState.READY]
            listed = [lease for lease in ready if not lease.is_suspect] or ready
            endpoints = sorted((lease.endpoint for lease in listed), key=lambda e: e.instance)
            self._resolved = Resolved(tuple(endpoints), self.is_stale)
        return self._resolved

    def grant(self, endpoint: Endpoint, *, now: float) -> Change:
        """Grant a lease; it replaces one of the same instance, which can no longer be renewed.

        Raises:
            DiscoveryError: the service has `instances_max` instances already.
        """
        if self._leases.pop(endpoint.instance, None) is None:
            self._check_room(endpoint)
        self._incarnations += 1
        lease = Lease(endpoint, self._incarnations, now + self._options.ttl_s)
        self._leases[endpoint.instance] = lease
        self._shorten_guard(now)
        return self._changed(ChangeKind.GRANTED, lease)

    def renew(self, instance: str, incarnation: int, *, now: float) -> Change | None:
        """Extend a lease to the full ttl; a change only where this ends the guard.

        Raises:
            UnknownInstance: it has expired or ended; the holder has to register again.
            StaleIncarnation: it was granted anew; this holder has been replaced and must stop.
        """
        lease = self._held(instance, incarnation)
        del self._leases[instance]
        self._leases[instance] = replace(lease, expires_s=now + self._options.ttl_s)
        self._shorten_guard(now)
        return self._trust() if self.is_stale and not self._has_expired(now) else None

    def drain(self, instance: str, incarnation: int) -> Change | None:
        """Stop listing an instance so that it drains; None where it drains already.

        Raises what `renew` raises.
        """
        lease = self._held(instance, incarnation)
        if lease.state is LeaseState.DRAINING:
            return None
        # Assigning keeps its place: its expiry has not changed.
        self._leases[instance] = replace(lease, state=LeaseState.DRAINING)
        return self._changed(ChangeKind.DRAINED, self._leases[instance])

    def suspect(self, instance: str, incarnation: int, *, is_suspect: bool) -> Change | None:
        """Suspect an instance of being hung, or clear it; None where that is known already.

        Raises what `renew` raises.
        """
        lease = self._held(instance, incarnation)
        if lease.is_suspect is is_suspect:
            return None
        # Its expiry has not changed, as in `drain`: a suspect goes with its lease all the same.
        self._leases[instance] = replace(lease, is_suspect=is_suspect)
        kind = ChangeKind.SUSPECTED if is_suspect else ChangeKind.CLEARED
        return self._changed(kind, self._leases[instance])

    def end(self, instance: str, incarnation: int) -> Change:
        """End a lease at its holder's request. Raises what `renew` raises."""
        self._held(instance, incarnation)
        return self._changed(ChangeKind.ENDED, self._leases.pop(instance))

    def sweep(self, *, now: float) -> list[Change]:
        """Remove the leases expired by `now`, unless so many that the guard applies."""
        if not self._has_expired(now):
            return [self._trust()] if self.is_stale else []
        expired = []
        for lease in self._leases.values():
            if lease.expires_s > now:
                break
            expired.append(lease)
        if self._guard_until_s is not None:
            if now < self._guard_until_s:
                return []
        elif self._is_mass(len(expired)):
            self._guard_until_s = now + self._options.guard_s
            return [self._changed(ChangeKind.HELD, None)]
        elif now - expired[0].expires_s >= self._options.ttl_s:
            self._guard_until_s = now + min(self._options.ttl_s, self._options.guard_s)
            return [self._changed(ChangeKind.HELD, None)]
        changes = []
        for lease in expired:
            del self._leases[lease.endpoint.instance]
            changes.append(self._changed(ChangeKind.EXPIRED, lease))
        if self.is_stale:
            changes.append(self._trust())
        return changes

    def due_s(self) -> float | None:
        """Return when `sweep` could next change something; None if nothing is due."""
        if self._guard_until_s is not None:
            return self._guard_until_s
        return next((lease.expires_s for lease in self._leases.values()), None)

    def __repr__(self) -> str:
        stale = " stale" if self.is_stale else ""
        ready = f"{len(self.listed().endpoints)}/{len(self._leases)}"
        return f"<LeaseTable {ready} ready rev {self._revision}{stale}>"

    def _has_expired(self, now: float) -> bool:
        first = next(iter(self._leases.values()), None)
        return first is not None and first.expires_s <= now

    def _is_mass(self, expired: int) -> bool:
        held = len(self._leases)
        return held >= GUARDED_MIN and expired > held * self._options.mass_expiry_max

    def _shorten_guard(self, now: float) -> None:
        # Whoever is heard shows that the registry is back: the others have one ttl to be heard.
        if self._guard_until_s is not None:
            self._guard_until_s = min(self._guard_until_s, now + self._options.ttl_s)

    def _trust(self) -> Change:
        self._guard_until_s = None
        return self._changed(ChangeKind.TRUSTED, None)

    def _held(self, instance: str, incarnation: int) -> Lease:
        lease = self._leases.get(instance)
        if lease is None:
            raise UnknownInstance(instance)
        if lease.incarnation != incarnation:
            raise StaleIncarnation(instance, held=incarnation, current=lease.incarnation)
        return lease

    def _check_room(self, endpoint: Endpoint) -> None:
        if len(self._leases) >= self._options.instances_max:
            raise DiscoveryError(
                f"service {endpoint.service!r} has {len(self._leases)} instances and may have no "
                f"more, so {endpoint.instance!r} was not registered; raise instances_max"
            )

    def _changed(self, kind: ChangeKind, lease: Lease | None) -> Change:
        self._revision += 1
        self._resolved = None
        return Change(self._revision, kind, lease, self.listed())
