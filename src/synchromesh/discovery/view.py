"""What a process knows of a registry that it watches: the list, and when to doubt it.

    BLIND ──a fresh watch has told all──▶ WATCHING ──it is silent or lost──▶ BLIND

While the watch is blind the last known list is given on, marked stale, and nobody is taken off it
(R4). A fresh watch tells all that there is; what it does not tell of is *doubted*: it stays listed,
marked stale, for one ttl, in which whoever lives registers again. So it is with what expires while
the registry cannot be trusted to have heard everyone: within a ttl of a fresh watch, and where more
of a service have expired within a ttl than `mass_expiry_max` (R5). Everything else is believed at
once: an instance that ended, and one that expired alone (R1). A pure machine.

Source: Gray & Cheriton, "Leases", SOSP 1989; guarantees R1, R4, R5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from synchromesh.discovery.endpoint import Endpoint, Resolved
from synchromesh.discovery.entries import Kept
from synchromesh.discovery.leases import GUARDED_MIN, LeaseOptions
from synchromesh.errors import DiscoveryError

# A watch that has told nothing for so long is blind: each `HEARTBEAT_S` it tells at least that it
# lives. It is less than what a lease has left after any renewal, 2/3 of the shortest ttl, so that a
# server that stood still is found out before the leases that it let expire are believed.
HEARTBEAT_S = 0.5
SILENCE_S = 1.5


@dataclass(slots=True)
class _Known:
    """An entry, and until when it stays listed although the registry has it no more."""

    kept: Kept
    doubted_until_s: float | None = None


class RegistryView:
    """Keeps the instances of all services as one process knows them.

    Args:
        options: how long a lease runs, and how many expiries are believed at once.
        entries_max: how many instances of all services together it keeps.

    Example:
        >>> from synchromesh.discovery.entries import InstanceEntry
        >>> view = RegistryView(LeaseOptions(ttl_s=3.0))
        >>> view.told((), now=0.0)
        >>> place = Endpoint("a", "billing", "http://127.0.0.1:8001")
        >>> entry = InstanceEntry(place, "p1", incarnation=1)
        >>> view.put(Kept(entry, 1))
        >>> view.lost(now=6.0)
        >>> view.listed("billing").is_stale, [e.instance for e in view.listed("billing").endpoints]
        (True, ['a'])
    """

    def __init__(self, options: LeaseOptions, *, entries_max: int = 16_384) -> None:
        self._options = options
        self._entries_max = entries_max
        self._services: dict[str, dict[str, _Known]] = {}
        self._lists: dict[str, Resolved] = {}
        # When instances of a service expired that were believed to be gone, within the last ttl.
        self._expired: dict[str, list[float]] = {}
        self._watching_since_s: float | None = None
        self._heard_s = 0.0
        self._was_told = False
        self.dropped = 0

    @property
    def is_blind(self) -> bool:
        """True while no watch tells what changes."""
        return self._watching_since_s is None

    @property
    def was_told(self) -> bool:
        """True once a watch has told all that there is."""
        return self._was_told

    def __len__(self) -> int:
        return sum(map(len, self._services.values()))

    def told(self, entries: Sequence[Kept], *, now: float) -> None:
        """Take over all that a fresh watch has found; what it has not found is doubted."""
        found = {(kept.entry.endpoint.service, kept.entry.endpoint.instance) for kept in entries}
        until_s = now + self._options.ttl_s
        for service, known in self._services.items():
            for instance, each in known.items():
                if (service, instance) not in found:
                    # Doubted before or not: nobody could be heard while the watch was blind.
                    each.doubted_until_s = until_s
        self._watching_since_s, self._was_told = now, True
        self._heard_s = now
        self._lists.clear()
        for kept in entries:
            self.put(kept)

    def lost(self, *, now: float) -> None:
        """Note that the watch is blind."""
        self._watching_since_s = None
        self._heard_s = now
        self._lists.clear()

    def heard(self, *, now: float) -> bool:
        """Note a sign of life of the watch; False where it comes after a silence: it is blind."""
        if self.is_silent(now=now):
            return False
        self._heard_s = now
        return True

    def is_silent(self, *, now: float) -> bool:
        """Return whether the watch has told nothing for so long that it is blind."""
        return self.is_blind or now - self._heard_s >= SILENCE_S

    def put(self, kept: Kept) -> None:
        """Take over an entry; a later one of the same name replaces it."""
        endpoint = kept.entry.endpoint
        known = self._services.setdefault(endpoint.service, {})
        if endpoint.instance not in known and len(self) >= self._entries_max:
            self.dropped += 1
            return
        known[endpoint.instance] = _Known(kept)
        self._lists.pop(endpoint.service, None)

    def gone(self, service: str, instance: str, *, is_expired: bool, now: float) -> None:
        """Take off an instance that ended, or whose lease ran out unless that is doubted."""
        known = self._services.get(service, {})
        each = known.get(instance)
        if each is None:
            return
        self._lists.pop(service, None)
        if is_expired and self._is_doubtful(service, now):
            each.doubted_until_s = now + self._options.ttl_s
            return
        if is_expired:
            self._expired.setdefault(service, []).append(now)
        self._drop(service, instance)

    def sweep(self, *, now: float) -> bool:
        """Drop what is doubted and has not come back in its time; return whether any was."""
        if self._watching_since_s is None:
            return False
        due = [
            (service, instance)
            for service, known in self._services.items()
            for instance, each in known.items()
            if each.doubted_until_s is not None and each.doubted_until_s <= now
        ]
        for service, instance in due:
            self._lists.pop(service, None)
            self._drop(service, instance)
        return bool(due)

    def due_s(self) -> float | None:
        """Return when to look next: after a silence, or when a doubt ends; None while blind."""
        if self._watching_since_s is None:
            return None
        doubts = (
            each.doubted_until_s
            for known in self._services.values()
            for each in known.values()
            if each.doubted_until_s is not None
        )
        return min((self._heard_s + SILENCE_S, *doubts))

    def listed(self, service: str) -> Resolved:
        """Return the endpoints that may be given new calls, ordered by instance."""
        resolved = self._lists.get(service)
        if resolved is None:
            known = self._services.get(service, {}).values()
            ready = [each for each in known if not each.kept.entry.is_draining]
            best = [each for each in ready if not each.kept.entry.is_suspect] or ready
            is_stale = self.is_blind or any(each.doubted_until_s is not None for each in best)
            endpoints = sorted(
                (each.kept.entry.endpoint for each in best), key=lambda each: each.instance
            )
            resolved = Resolved(tuple(endpoints), is_stale)
            if known:
                self._lists[service] = resolved
        return resolved

    def services(self) -> tuple[str, ...]:
        """Return the services that have an instance, by name."""
        return tuple(sorted(self._services))

    def of(self, service: str) -> tuple[Kept, ...]:
        """Return all entries of a service."""
        return tuple(each.kept for each in self._services.get(service, {}).values())

    def check_room(self, endpoint: Endpoint) -> None:
        """Refuse an instance that would be one too many of its service. Raises DiscoveryError."""
        known = self._services.get(endpoint.service, {})
        if len(known) >= self._options.instances_max and endpoint.instance not in known:
            raise DiscoveryError(
                f"service {endpoint.service!r} has {len(known)} instances and may have no more, so "
                f"{endpoint.instance!r} was not registered; raise instances_max"
            )

    def __repr__(self) -> str:
        state = "blind" if self.is_blind else "watching"
        return f"<RegistryView {len(self)} instances, {state}>"

    def _drop(self, service: str, instance: str) -> None:
        known = self._services[service]
        del known[instance]
        if not known:
            del self._services[service]

    def _is_doubtful(self, service: str, now: float) -> bool:
        ttl_s, since_s = self._options.ttl_s, self._watching_since_s
        if since_s is None or now - since_s < ttl_s:
            return True
        lately = [at_s for at_s in self._expired.get(service, ()) if now - at_s < ttl_s]
        self._expired[service] = lately
        known = self._services[service]
        doubted = sum(each.doubted_until_s is not None for each in known.values())
        held = len(known) + len(lately)
        gone = len(lately) + doubted + 1
        return held >= GUARDED_MIN and gone > held * self._options.mass_expiry_max
