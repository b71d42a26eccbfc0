"""The invariants of every universe once faults have ended, by its databases and its clients."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping

from audit import audit_databases

from synchromesh.testing import SimDisk
from universes.cluster import RUNDIR, SERVICES

Databases = Mapping[str, sqlite3.Connection]
Subscribers = Mapping[str, frozenset[str]]

_UNFINISHED = "select 1 from sm_saga where status in ('running', 'compensating') limit 1"
_BEHIND = "select coalesce(max(position), 0) from sm_event where name in ({names})"
_AT = "select coalesce(max(position), 0) from sm_checkpoint where name = ?"


def is_quiet(disk: SimDisk, subscribers: Subscribers) -> bool:
    """Return whether all sagas have ended, and all messages and projections are up to date."""
    for service in SERVICES:
        path = RUNDIR.database(service)
        if disk.rows(path, _UNFINISHED):
            return False
        for subscriber, names in subscribers.items():
            wanted = [name for name in sorted(names) if name.startswith(f"{service}.")]
            if wanted and not _is_past(disk, path, f"relay/{subscriber}", wanted):
                return False
    stock = [f"inventory.pieces_{done}" for done in ("received", "held", "released")]
    return _is_past(disk, RUNDIR.database("inventory"), "projection/stock_level", stock)


def _is_past(disk: SimDisk, path: str, checkpoint: str, names: list[str]) -> bool:
    last = disk.rows(path, _BEHIND.format(names=", ".join("?" * len(names))), *names)[0][0]
    return bool(disk.rows(path, _AT, checkpoint)[0][0] >= last)


def broken_in(
    databases: Databases, told: Mapping[str, str], subscribers: Subscribers
) -> Iterator[str]:
    """Yield each violated invariant.

    Args:
        databases: of the services that orders go through and the credit provider.
        told: what the client of each order was told: "placed", "accepted" or "rejected".
        subscribers: the events that each service takes.
    """
    services = {name: databases[name] for name in SERVICES}
    yield from audit_databases(services, databases["credit_provider"], told).findings
    for service, database in services.items():
        yield from _gaps(service, database)
        for subscriber, names in subscribers.items():
            yield from _undelivered(service, subscriber, databases, names)
    yield from _lost_demand(databases)
    yield from _stories(databases)
    yield from _unknown_steps(databases)


def _gaps(service: str, database: sqlite3.Connection) -> Iterator[str]:
    """E1, E3: versions are 1, 2, 3, ... within each stream, positions over the whole log."""
    for stream, count, last in database.execute(
        "select stream, count(*), max(version) from sm_event group by stream "
        "having count(*) != max(version) or min(version) != 1"
    ):
        yield f"{service}: stream {stream} has {count} events and version {last}"
    count, last = database.execute(
        "select count(*), coalesce(max(position), 0) from sm_event"
    ).fetchone()
    if count != last:
        yield f"{service}: the log has {count} events, and ends at position {last}"


def _undelivered(
    service: str, subscriber: str, databases: Databases, names: frozenset[str]
) -> Iterator[str]:
    """O1, O2: what is committed is delivered, and nothing else is."""
    publisher, consumer = databases[service], databases[subscriber]
    published = {
        f"message/{event_id}"
        for event_id, name in publisher.execute("select id, name from sm_event where is_public = 1")
        if name in names
    }
    taken = {
        key
        for (key,) in consumer.execute(
            "select key from sm_inbox where caller = ? and key glob 'message/*' "
            "and kind = 'answer'",
            (service,),
        )
    }
    for key in sorted(published - taken):
        yield f"{subscriber} never took message {key} of {service}"
    for key in sorted(taken - published):
        yield f"{subscriber} took message {key}, which {service} never published"


def _lost_demand(databases: Databases) -> Iterator[str]:
    """O4: the effect of each message happened once."""
    expected = databases["orders"].execute(
        "select json_extract(body, '$.sku'), count(*), sum(json_extract(body, '$.qty')) "
        "from sm_event where name = 'orders.order_rejected' group by 1 order by 1"
    )
    counted = databases["inventory"].execute("select * from lost_demand order by 1").fetchall()
    if counted != (rejected := expected.fetchall()):
        yield f"lost demand is {counted}, but by the events it is {rejected}"


def _stories(databases: Databases) -> Iterator[str]:
    """S5: each run tells a whole story, and what was undone was undone in reverse."""
    records = databases["orders"].execute(
        "select saga, seq, kind, step from sm_saga_record order by saga, seq"
    )
    stories: dict[str, list[tuple[str, str]]] = {}
    for saga, seq, kind, step in records:
        story = stories.setdefault(saga, [])
        story.append((kind, step))
        if seq != len(story):
            yield f"saga {saga} has record {seq} where {len(story)} belongs"
    for saga, story in stories.items():
        kinds = [kind for kind, _ in story]
        if "ended" in kinds[:-1]:
            yield f"saga {saga} has records after its end: {story}"
        began = list(dict.fromkeys(step for kind, step in story if kind in ("begun", "done")))
        undone = [step for kind, step in story if kind == "undone"]
        if undone != sorted(set(undone), key=began.index, reverse=True):
            yield f"saga {saga} was not undone in reverse: {story}"


def _unknown_steps(databases: Databases) -> Iterator[str]:
    """S2, S4: what participants know of a step is in the saga's records, and concluded."""
    begun = {
        f"{saga}/{step}"
        for saga, step in databases["orders"].execute(
            "select saga, step from sm_saga_record where kind in ('begun', 'undo_begun')"
        )
    }
    for service in SERVICES:
        for key, kind in databases[service].execute(
            "select key, kind from sm_inbox where caller = 'orders' and key glob '*/*#*'"
        ):
            step = "/".join(key.split("/")[:2])
            if step not in begun:
                yield f"{service} knows the step {step}, which its saga never began"
            if kind == "begun":
                yield f"{service} has begun {key} and never concluded it"
