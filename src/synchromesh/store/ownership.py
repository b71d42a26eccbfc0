"""Which replica owns which duty: a pure machine over what the database says of both.

A *duty* is what one replica of a service at a time does for all of them: a shard of its sagas, a
relay, a projection, a schedule. Each time that a duty gets an owner its epoch is one higher; what
an owner writes is written under its epoch, or refused.

    free ──claim: epoch + 1──▶ owned ──give back──▶ free
                                 └── the lease of its owner has run out: as good as free

All replicas read the same rows, and from them make the same assignment; nobody leads. A replica
claims what is meant for it once it is free, and gives back what is meant for another. So a
replica that comes gets its share, and what one leaves that dies is shared by the others.

Within a process a duty that is lost is *stopping* until nothing of it goes on there; only then is
it given back, and may be claimed again.

Source: Gray & Cheriton, "Leases", SOSP 1989; Thaler & Ravishankar, "Using name-based mappings to
increase hit rates", 1998 (rendezvous hashing); Mirrokni et al., "Consistent hashing with bounded
loads", SODA 2018.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from hashlib import blake2b


@dataclass(frozen=True, slots=True)
class View:
    """What the database says, by its own clock.

    Attributes:
        replicas: those whose lease runs, by id, with the duties that each is able to do.
        owners: who owned each duty last, "" for nobody, and under which epoch.
    """

    replicas: Mapping[str, frozenset[str]]
    owners: Mapping[str, tuple[str, int]]


@dataclass(frozen=True, slots=True)
class DutyTurn:
    """What a replica is to do.

    Attributes:
        gained: duties that it owns without having known it: the answer to a claim was lost.
        lost: duties to stop.
        claims: duties to claim.
    """

    gained: frozenset[str]
    lost: frozenset[str]
    claims: frozenset[str]


def assign(replicas: Mapping[str, frozenset[str]]) -> dict[str, str]:
    """Return for which replica each duty is meant.

    Each gets as many of a kind as any other, or one less, as far as all are able to do them. A
    replica that comes or goes moves few duties but its own.

    Example:
        >>> both = frozenset({"relay/billing", "projection/demand"})
        >>> sorted(assign({"a": both, "b": both}).values())
        ['a', 'b']
    """
    meant: dict[str, str] = {}
    loads: Counter[tuple[str, str]] = Counter()
    duties = sorted({duty for able in replicas.values() for duty in able})
    counts = Counter(map(_kind, duties))
    for duty in duties:
        kind = _kind(duty)
        able = sorted((_score(each, duty), each) for each, its in replicas.items() if duty in its)
        full = -(-counts[kind] // len(replicas))
        found = next((each for _, each in able if loads[kind, each] < full), None)
        if found is None:
            found = min(able, key=lambda one: (loads[kind, one[1]], one))[1]
        loads[kind, found] += 1
        meant[duty] = found
    return meant


class Ownership:
    """What one replica owns; it is told what the database says, and says what to do.

    Args:
        id: of the replica, in one life of its process.

    Example:
        >>> mine = Ownership("a")
        >>> able = frozenset({"relay/billing"})
        >>> mine.turn(View({"a": able}, {}), able).claims
        frozenset({'relay/billing'})
        >>> mine.claimed({"relay/billing": 1})
        >>> mine
        <Ownership: a owns relay/billing (1)>
    """

    def __init__(self, id: str) -> None:  # noqa: A002
        self._id = id
        self._epochs: dict[str, int] = {}
        self._stopping: dict[str, int] = {}
        self._over: dict[str, int] = {}
        self._assigned: tuple[Mapping[str, frozenset[str]], dict[str, str]] = ({}, {})

    def epoch(self, duty: str) -> int:
        """Return under which epoch a duty is its own; 0 where it is not."""
        return self._epochs.get(duty, 0)

    @property
    def owned(self) -> frozenset[str]:
        """The duties that are its own."""
        return frozenset(self._epochs)

    @property
    def to_give_back(self) -> dict[str, int]:
        """The duties of which nothing goes on here any more, and under which epoch each was owned.

        The database takes back what is this replica's under that epoch still, and nothing else.
        """
        return dict(self._over)

    def turn(self, view: View, able: Collection[str]) -> DutyTurn:
        """Return what to do, as the database is now; it is able to do these duties."""
        meant = self._meant(view.replicas)
        lost = {
            duty
            for duty, epoch in self._epochs.items()
            if view.owners.get(duty) != (self._id, epoch)
            or duty not in able
            or meant.get(duty, self._id) != self._id
        }
        self.stop(lost)
        told = {duty: epoch for duty, (owner, epoch) in view.owners.items() if owner == self._id}
        unknown = set(told).difference(self._epochs, self._stopping, self._over)
        gained = unknown & set(able)
        self._epochs.update((duty, told[duty]) for duty in gained)
        self._over.update((duty, told[duty]) for duty in unknown - gained)
        claims = {
            duty
            for duty in set(able).difference(self._epochs, self._stopping, self._over)
            if meant.get(duty) == self._id
            and view.owners.get(duty, ("", 0))[0] not in view.replicas
        }
        return DutyTurn(frozenset(gained), frozenset(lost), frozenset(claims))

    def claimed(self, epochs: Mapping[str, int]) -> None:
        """Note which claims were granted, and under which epochs."""
        self._epochs.update(epochs)

    def stop(self, duties: Collection[str]) -> None:
        """Own some no more, and begin to stop them."""
        for duty in duties:
            self._stopping[duty] = self._epochs.pop(duty)

    def stopped(self, duties: Collection[str]) -> None:
        """Note that nothing of these goes on here."""
        for duty in duties:
            self._over[duty] = self._stopping.pop(duty)

    def given_back(self, duties: Collection[str]) -> None:
        """Note that the database has taken them back."""
        for duty in duties:
            del self._over[duty]

    def _meant(self, replicas: Mapping[str, frozenset[str]]) -> dict[str, str]:
        if self._assigned[0] != replicas:
            self._assigned = replicas, assign(replicas)
        return self._assigned[1]

    def __repr__(self) -> str:
        states = (("owns", self._epochs), ("stops", self._stopping), ("gives back", self._over))
        shown = [
            f"{state} {', '.join(f'{duty} ({epoch})' for duty, epoch in sorted(duties.items()))}"
            for state, duties in states
            if duties
        ]
        return f"<Ownership: {self._id} {'; '.join(shown) or 'owns nothing'}>"


def _kind(duty: str) -> str:
    """Return among which duties shares are even: sagas have shards, all others are single."""
    return "sagas" if duty.startswith("sagas/") else ""


def _score(replica: str, duty: str) -> bytes:
    return blake2b(f"{replica} {duty}".encode(), digest_size=8).digest()
