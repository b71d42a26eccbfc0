"""The patterns alone: outbox, inbox, log and sagas in the transactions of an application's own.

There is no system, no service and no gateway here, and no database of ours: the tables stand beside
those of the application, and what is written is committed by whoever has begun the transaction.

    your session ──unit──▶ rows, messages, keys, events ──your commit──▶ all of them, or none
                                                           │
                                             open, deliver ▼ positions, in order; at least once
                                                           your function
"""

from synchromesh.alone.function_delivery import Delivered, DeliverOptions
from synchromesh.alone.logged import LoggedEvent
from synchromesh.alone.patterns import Alone, AloneOptions
from synchromesh.alone.runs import AloneRuns
from synchromesh.alone.saga_work import RunSagasOptions
from synchromesh.alone.set_aside import ParkedMessage
from synchromesh.alone.tables import downgrade_statements, include_name, upgrade_statements
from synchromesh.alone.unit import AloneUnit

__all__ = [
    "Alone",
    "AloneOptions",
    "AloneRuns",
    "AloneUnit",
    "DeliverOptions",
    "Delivered",
    "LoggedEvent",
    "ParkedMessage",
    "RunSagasOptions",
    "downgrade_statements",
    "include_name",
    "upgrade_statements",
]
