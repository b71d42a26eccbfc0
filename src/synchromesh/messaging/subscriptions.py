"""What a subscriber has got of each public event: where a relay starts when subscriptions change.

A relay has one checkpoint for all that its subscriber takes. A release may change what that is, and
the publisher hears of it some time later (`declared`); before that its relay has passed events
over. So each event has its own entry: how far it was delivered when its subscription ended,
or when another one began. A new subscription begins with the log, as a new subscriber does; one
that ends does so where the log ended then, so that a release that is taken back leaves nothing
undelivered behind which its key has gone on (O1, O3).

A pure function decides: from the names that are wanted, the checkpoint and the entries to a start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from synchromesh.store import Store, Unit


class DeliveredUpTo(NamedTuple):
    """How far an event was delivered; one that is wanted goes on with the relay's checkpoint."""

    is_wanted: bool
    position: int


@dataclass(frozen=True, slots=True)
class RelayStart:
    """Where a relay begins to read, and what it delivers.

    Attributes:
        position: where it begins.
        delivered: by name, up to where the event was delivered before.
        ending: by name, up to where an event is delivered whose subscription has ended.
        changed: entries to be saved in the commit of the checkpoint.
    """

    position: int
    delivered: Mapping[str, int]
    ending: Mapping[str, int]
    changed: Mapping[str, DeliveredUpTo]

    def is_due(self, name: str, position: int) -> bool:
        """Return whether the event at a position is to be delivered."""
        return self.delivered.get(name, position) < position <= self.ending.get(name, position)

    def saved_at(self, position: int) -> tuple[dict[str, DeliveredUpTo], RelayStart]:
        """Return the entries to be saved with a checkpoint, and what is left once they are."""
        over = {name: end for name, end in self.ending.items() if end <= position}
        ended = {name: DeliveredUpTo(False, end) for name, end in over.items()}
        left = replace(
            self,
            delivered={name: at for name, at in self.delivered.items() if name not in over},
            ending={name: end for name, end in self.ending.items() if name not in over},
            changed={},
        )
        return {**self.changed, **ended}, left


def start_of(
    names: frozenset[str],
    checkpoint: int | None,
    entries: Mapping[str, DeliveredUpTo],
    *,
    end: int,
) -> RelayStart:
    """Return where a relay starts that is to deliver the events of these names.

    Args:
        checkpoint: the relay's; None for a subscriber that is new.
        end: where the log ends.

    Example:
        >>> had = {"sold": DeliveredUpTo(True, 0)}
        >>> start_of(frozenset({"sold", "returned"}), 7, had, end=9).delivered
        {'returned': 0, 'sold': 7}
    """
    if checkpoint is None:
        entries = {}
    at = checkpoint or 0

    def reached(name: str) -> int:
        entry = entries.get(name, DeliveredUpTo(False, 0))
        return max(entry.position, at) if entry.is_wanted else entry.position

    wanted = {name for name, entry in entries.items() if entry.is_wanted}
    ending = {name: end for name in sorted(wanted - names) if reached(name) < end}
    due = names | set(ending)
    delivered = {name: reached(name) for name in sorted(due)}
    if checkpoint is not None and wanted == due:
        return RelayStart(at, delivered, ending, {})
    changed = {name: DeliveredUpTo(name in due, reached(name)) for name in sorted(wanted | due)}
    return RelayStart(min(delivered.values(), default=at), delivered, ending, changed)


async def load_entries(store: Store, subscriber: str) -> dict[str, DeliveredUpTo]:
    """Load the entries of a subscriber, by the name of the event."""
    rows = await store.read(
        "select name, is_wanted, position from sm_subscription where subscriber = ?", subscriber
    )
    return {str(name): DeliveredUpTo(bool(wanted), int(at or 0)) for name, wanted, at in rows}


async def save_entries(unit: Unit, subscriber: str, entries: Mapping[str, DeliveredUpTo]) -> None:
    """Save entries, in the commit of the checkpoint that they go with."""
    await unit.execute_many(
        "insert into sm_subscription(subscriber, name, is_wanted, position) values (?, ?, ?, ?) "
        "on conflict(subscriber, name) do update set is_wanted = excluded.is_wanted, "
        "position = excluded.position",
        [
            (subscriber, name, int(entry.is_wanted), entry.position)
            for name, entry in entries.items()
        ],
    )
