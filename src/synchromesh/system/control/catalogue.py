"""Every metric that a system exposes: what is read from its parts when somebody asks, and the rest.

Work is counted by `telemetry.metrics`, requests of the gateway by `gateway.traffic`. The same table
is in docs/metrics.md, and a test holds the two and a running system to each other.
"""

from __future__ import annotations

from synchromesh.gateway.metrics import BRANCH_TOOK, BRANCHES, LOG_DROPPED, OUTCOMES, REQUESTS
from synchromesh.gateway.metrics import IN_FLIGHT as GATEWAY_IN_FLIGHT
from synchromesh.store.unit_store import GROUP_SIZES
from synchromesh.telemetry.metrics import COUNTER, GAUGE, HISTOGRAM, INSTANCE, WORK, Metric

# How late the event loop comes to what is due. Past the last bound it is named in the log.
LAG_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
PROCESS = ("process",)

UP = Metric(
    "synchromesh.process.up", GAUGE, "",
    "1 where the process answered when it was asked for its metrics.", PROCESS,
)  # fmt: skip
STARTED = Metric(
    "synchromesh.process.start_time", GAUGE, "s",
    "When the process started, since 1970 UTC; its counters began at 0 then.", PROCESS,
)  # fmt: skip
CPU = Metric(
    "synchromesh.process.cpu", COUNTER, "s",
    "Processor time that the process has taken, user and system.", PROCESS,
)  # fmt: skip
MEMORY = Metric(
    "synchromesh.process.memory", GAUGE, "By",
    "Memory that the process has taken at most so far.", PROCESS,
)  # fmt: skip
LAG = Metric(
    "synchromesh.event_loop.lag", HISTOGRAM, "s",
    "How late the event loop came to what was due, looked at four times a second.", PROCESS, LAG_S,
)  # fmt: skip
FINDINGS = Metric(
    "synchromesh.findings", GAUGE, "{finding}",
    "What needs a person, as `synchromesh status` says in words.", PROCESS,
)  # fmt: skip
SPANS_DROPPED = Metric(
    "synchromesh.spans.dropped", COUNTER, "{span}",
    "Spans that were lost, because too many came at once.", PROCESS,
)  # fmt: skip
NAMES_DROPPED = Metric(
    "synchromesh.metrics.overflow", COUNTER, "{name}",
    "How often work had a name beyond the bound, and was counted as _OTHER.", PROCESS,
)  # fmt: skip
FAULTS = Metric(
    "synchromesh.faults.struck", COUNTER, "{attempt}",
    "Attempts that were struck by faults in force on purpose.", PROCESS,
)  # fmt: skip
CONNECTIONS = Metric(
    "synchromesh.pool.connections", GAUGE, "{connection}",
    "Connections to services and upstreams, idle or busy.", (*PROCESS, "pool", "state"),
)  # fmt: skip
POOL_WAITING = Metric(
    "synchromesh.pool.waiting", GAUGE, "{request}",
    "Requests that wait for a place among the connections of their endpoint.", (*PROCESS, "pool"),
)  # fmt: skip
CHILD_UP = Metric(
    "synchromesh.child.up", GAUGE, "",
    "1 while a supervised loop or process runs; service.name is empty for one of no service.",
    (*INSTANCE, "child"),
)  # fmt: skip
CHILD_RESTARTS = Metric(
    "synchromesh.child.restarts", COUNTER, "{restart}",
    "How often it was started again.", (*INSTANCE, "child"),
)  # fmt: skip
READY = Metric(
    "synchromesh.instance.ready", GAUGE, "",
    "1 while the instance is healthy, its database included, and does not drain.", INSTANCE,
)  # fmt: skip
LIMIT = Metric(
    "synchromesh.limiter.limit", GAUGE, "{call}",
    "How many may run at once; of an adaptive limit, now. limiter is service, operation or edge, "
    "whose name is the callee's operation, or its service where the limit is fixed.",
    (*INSTANCE, "limiter", "name"),
)  # fmt: skip
IN_FLIGHT = Metric(
    "synchromesh.limiter.in_flight", GAUGE, "{call}",
    "How many run.", (*INSTANCE, "limiter", "name"),
)  # fmt: skip
WAITING = Metric(
    "synchromesh.limiter.waiting", GAUGE, "{call}",
    "How many are queued for a place.", (*INSTANCE, "limiter", "name"),
)  # fmt: skip
BREAKER = Metric(
    "synchromesh.breaker.state", GAUGE, "",
    "1 for the state that the circuit breaker of an edge is in, 0 for the others.",
    (*INSTANCE, "callee", "state"),
)  # fmt: skip
BREAKER_CHANGES = Metric(
    "synchromesh.breaker.transitions", COUNTER, "{transition}",
    "How often the circuit breaker of an edge changed its state.", (*INSTANCE, "callee"),
)  # fmt: skip
EJECTED = Metric(
    "synchromesh.instances.ejected", GAUGE, "{instance}",
    "Instances that get no calls of this caller for now, of those callees that have some.",
    (*INSTANCE, "callee"),
)  # fmt: skip
HELD = Metric(
    "synchromesh.calls.held", GAUGE, "{call}",
    "Calls that wait for an instance to be ready.", INSTANCE,
)  # fmt: skip
HOLDS = Metric(
    "synchromesh.calls.holds", COUNTER, "{call}",
    "Calls that waited for an instance and were bridged, given_up or refused.",
    (*INSTANCE, "outcome"),
)  # fmt: skip
SAGAS = Metric(
    "synchromesh.sagas", GAUGE, "{saga}",
    "Runs of sagas that have this status.", (*INSTANCE, "status"),
)  # fmt: skip
SAGA_AGE = Metric(
    "synchromesh.saga.oldest.age", GAUGE, "s",
    "Age of the oldest run that has this status and has not ended; 0 for none.",
    (*INSTANCE, "status"),
)  # fmt: skip
SAGA_EVENTS = Metric(
    "synchromesh.saga.events", COUNTER, "{event}",
    "What became of runs, and of attempts of their steps, since the process started.",
    (*INSTANCE, "event"),
)  # fmt: skip
RELAY_LAG = Metric(
    "synchromesh.relay.lag", GAUGE, "{event}",
    "Public events that a subscriber has not got yet.", (*INSTANCE, "subscriber"),
)  # fmt: skip
PROJECTION_LAG = Metric(
    "synchromesh.projection.lag", GAUGE, "{event}",
    "Events that a projection has not seen yet.", (*INSTANCE, "projection"),
)  # fmt: skip
PROJECTION_PARKED = Metric(
    "synchromesh.projection.parked", GAUGE, "",
    "1 where a generation of a projection is parked at an event.", (*INSTANCE, "projection"),
)  # fmt: skip
SET_ASIDE = Metric(
    "synchromesh.messages.set_aside", GAUGE, "{message}",
    "Messages that are parked, held or refused.", (*INSTANCE, "state"),
)  # fmt: skip
SCHEDULE_FAILED = Metric(
    "synchromesh.schedule.failed", GAUGE, "",
    "1 where the last run of a schedule failed.", (*INSTANCE, "schedule"),
)  # fmt: skip
COMMITS = Metric(
    "synchromesh.store.commits", COUNTER, "{commit}",
    "Commits of the database, each of one unit of work or more.", INSTANCE,
)  # fmt: skip
GROUPS = Metric(
    "synchromesh.store.group", HISTOGRAM, "{unit}",
    "Units of work in a commit.", INSTANCE, GROUP_SIZES,
)  # fmt: skip
UNITS_WAITING = Metric(
    "synchromesh.store.waiting", GAUGE, "{unit}",
    "Units of work that wait for their commit.", INSTANCE,
)  # fmt: skip
FILE_SIZE = Metric(
    "synchromesh.store.file", GAUGE, "By",
    "Size of a database; of one in a SQLite file also of its write-ahead log (wal) and its keys.",
    (*INSTANCE, "file"),
)  # fmt: skip
STORE_PLACES = Metric(
    "synchromesh.store.places", GAUGE, "{connection}",
    "Connections of an instance to its database on PostgreSQL, for units and for reads, that are "
    "busy or free.", (*INSTANCE, "use", "state"),
)  # fmt: skip
READS_WAITING = Metric(
    "synchromesh.store.reads.waiting", GAUGE, "{read}",
    "Reads of a database on PostgreSQL that wait for a connection.", INSTANCE,
)  # fmt: skip

STATE = (
    UP, STARTED, CPU, MEMORY, LAG, FINDINGS, SPANS_DROPPED, NAMES_DROPPED, FAULTS, CONNECTIONS,
    POOL_WAITING, CHILD_UP, CHILD_RESTARTS, READY, LIMIT, IN_FLIGHT, WAITING, BREAKER,
    BREAKER_CHANGES, EJECTED, HELD, HOLDS, SAGAS, SAGA_AGE, SAGA_EVENTS, RELAY_LAG, PROJECTION_LAG,
    PROJECTION_PARKED, SET_ASIDE, SCHEDULE_FAILED, COMMITS, GROUPS, UNITS_WAITING, FILE_SIZE,
    STORE_PLACES, READS_WAITING,
)  # fmt: skip
GATEWAY = (REQUESTS, OUTCOMES, BRANCHES, BRANCH_TOOK, GATEWAY_IN_FLIGHT, LOG_DROPPED)
EVERY = (*GATEWAY, *WORK.values(), *STATE)
