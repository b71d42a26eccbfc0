"""The invariants of every universe once faults have ended, by its databases and its clients."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence

from audit import audit_databases

from synchromesh.testing import SimDisk
from universes.cluster import RUNDIR, SERVICES

Databases = Mapping[str, sqlite3.Connection]
Subscribers = Mapping[str, frozenset[str]]
# Findings in which all orders are added up, those that wait for a person, too.
_IN_ALL = re.compile(r"placed orders come to|the provider charged|\w+: (by its|its events)")
# By service, the events that were removed from its log: name and body by id.
Forgotten = dict[str, dict[str, tuple[str, bytes]]]
# The records of runs that were forgotten: kind and step by run and number.
ForgottenRecords = dict[tuple[str, int], tuple[str, str]]

_UNFINISHED = (
    "select 1 from sm_saga where status in ('queued', 'running', 'compensating', 'waiting') limit 1"
)
_ENDED = "select 1 from sm_saga where ended_us is not null limit 1"
_SET_ASIDE = "select 1 from sm_parked limit 1"
_BEHIND = "select coalesce(max(position), 0) from sm_event where name in ({names})"
_AT = "select coalesce(max(position), 0) from sm_checkpoint where name = ?"


def is_quiet(disk: SimDisk, subscribers: Subscribers) -> bool:
    """Return whether all sagas have ended, and all messages and projections are up to date."""
    for service in SERVICES:
        path = RUNDIR.database(service)
        if disk.rows(path, _UNFINISHED) or disk.rows(path, _SET_ASIDE):
            return False
        for subscriber, names in subscribers.items():
            wanted = [name for name in sorted(names) if name.startswith(f"{service}.")]
            if wanted and not _is_past(disk, path, f"relay/{subscriber}", wanted):
                return False
    stock = [f"inventory.pieces_{done}" for done in ("received", "held", "released")]
    return _is_past(disk, RUNDIR.database("inventory"), "projection/stock_level", stock)


def is_forgotten(disk: SimDisk) -> bool:
    """Return whether no run that has ended is left."""
    return not disk.rows(RUNDIR.database("orders"), _ENDED)


def _is_past(disk: SimDisk, path: str, checkpoint: str, names: list[str]) -> bool:
    last = disk.rows(path, _BEHIND.format(names=", ".join("?" * len(names))), *names)[0][0]
    return bool(disk.rows(path, _AT, checkpoint)[0][0] >= last)


def broken_in(
    databases: Databases,
    told: Mapping[str, str],
    subscribers: Subscribers,
    forgotten: Forgotten,
    records: ForgottenRecords,
) -> Iterator[str]:
    """Yield each violated invariant.

    Args:
        databases: of the services that orders go through and the credit provider.
        told: what the client of each order was told: "placed", "accepted" or "rejected".
        subscribers: the events that each service takes.
        forgotten: the events that services have removed from their logs.
        records: those of the runs that orders has forgotten.
    """
    yield from _left_behind(databases["orders"])
    databases["orders"].executemany(
        "insert or ignore into sm_saga_record(saga, seq, kind, step, attempt, digest, body, "
        "at_us) values (?, ?, ?, ?, 1, '', x'', 0)",
        [(*at, *told) for at, told in sorted(records.items())],
    )
    services = {name: databases[name] for name in SERVICES}
    yield from audit_databases(services, databases["credit_provider"], told).findings
    for service, database in services.items():
        gone = forgotten.get(service, {})
        yield from _gaps(service, database, {name for name, _ in gone.values()})
        for subscriber, names in subscribers.items():
            yield from _undelivered(service, subscriber, databases, names, gone)
    yield from _lost_demand(databases, forgotten.get("orders", {}))
    yield from _stories(databases)
    yield from _unknown_steps(databases)


def stuck_in(orders: sqlite3.Connection) -> list[str]:
    """Return the runs of which nobody can tell any more what was done."""
    rows = orders.execute("select id from sm_saga where status = 'stuck' order by id")
    return [saga for (saga,) in rows]


def is_sure(finding: str, stuck: Sequence[str]) -> bool:
    """Return whether a finding is one after an absence, whatever becomes of the runs it left stuck.

    Inboxes have forgotten what they took before it.
    """
    if " never took message " in finding or (stuck and _IN_ALL.match(finding)):
        return False
    return not any(saga in finding for saga in stuck)


def _left_behind(orders: sqlite3.Connection) -> Iterator[str]:
    """Of a run that is forgotten nothing is left, and no ended one is counted that is not there."""
    for table in ("sm_saga_record", "sm_saga_signal"):
        sql = f"select distinct saga from {table} where saga not in (select id from sm_saga)"
        yield from (
            f"{table} has rows of {saga}, which is forgotten" for (saga,) in orders.execute(sql)
        )
    counted = orders.execute("select status, count from sm_saga_count where count <> 0 order by 1")
    there = orders.execute(
        "select status, count(*) from sm_saga where ended_us is not null group by 1 order by 1"
    )
    if (told := counted.fetchall()) != (found := there.fetchall()):
        yield f"runs that have ended are counted as {told}, and there are {found}"


def _gaps(service: str, database: sqlite3.Connection, removed: set[str]) -> Iterator[str]:
    """E1, E3: versions are 1, 2, 3, ... within each stream, positions over the whole log.

    What was removed is missing, and its range is recorded.
    """
    for stream, count, last in database.execute(
        "select stream, count(*), max(version) from sm_event group by stream "
        "having count(*) != max(version) or min(version) != 1"
    ):
        if stream.partition("/")[0] not in removed:
            yield f"{service}: stream {stream} has {count} events and version {last}"
    count, last, holes, last_hole = database.execute(
        "select count(*), coalesce(max(position), 0), "
        "(select coalesce(sum(last - first + 1), 0) from sm_removal), "
        "(select coalesce(max(last), 0) from sm_removal) from sm_event"
    ).fetchone()
    if count + holes != max(last, last_hole):
        yield (
            f"{service}: the log has {count} events, ends at position {last}, and {holes} "
            "are recorded as removed"
        )


def _undelivered(
    service: str,
    subscriber: str,
    databases: Databases,
    names: frozenset[str],
    forgotten: Mapping[str, tuple[str, bytes]],
) -> Iterator[str]:
    """O1, O2: what is committed is delivered, and nothing else is."""
    publisher, consumer = databases[service], databases[subscriber]
    published = {
        f"message/{event_id}"
        for event_id, name in publisher.execute("select id, name from sm_event where is_public = 1")
        if name in names
    } | {f"message/{event_id}" for event_id, (name, _) in forgotten.items() if name in names}
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


def _lost_demand(databases: Databases, forgotten: Mapping[str, tuple[str, bytes]]) -> Iterator[str]:
    """O4: the effect of each message happened once."""
    rejected = dict(
        databases["orders"].execute(
            "select id, body from sm_event where name = 'orders.order_rejected'"
        )
    )
    rejected |= {i: body for i, (name, body) in forgotten.items() if name.endswith("_rejected")}
    expected: dict[str, tuple[int, int]] = {}
    for body in rejected.values():
        event = json.loads(body)
        orders, pieces = expected.get(event["sku"], (0, 0))
        expected[event["sku"]] = orders + 1, pieces + event["qty"]
    by_events = [(sku, *counts) for sku, counts in sorted(expected.items())]
    counted = databases["inventory"].execute("select * from lost_demand order by 1").fetchall()
    if counted != by_events:
        yield f"lost demand is {counted}, but by the events it is {by_events}"


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
        if not {*undone} <= {*began}:
            yield f"saga {saga} has undone what it never began: {story}"
        elif undone != sorted(set(undone), key=began.index, reverse=True):
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
