"""The event log and event sourcing: append, read, subscribe, deciders, projections."""

from synchromesh.events.decider import Decider, Decision
from synchromesh.events.log import (
    RELAY_PREFIX,
    SCHEMA,
    Checkpoint,
    NewEvent,
    StoredEvent,
    append,
    append_each,
    count_after_checkpoint,
    head,
    load,
    load_checkpoint,
    read,
    remove,
    save_checkpoint,
    saved_checkpoint,
)
from synchromesh.events.projection import Projection, ProjectionOptions, ProjectionRunner
from synchromesh.events.scenario import Given, When, given
from synchromesh.events.sourcing import decide
from synchromesh.events.subscription import subscribe
from synchromesh.events.types import EventTypes, snake_case

__all__ = [
    "RELAY_PREFIX",
    "SCHEMA",
    "Checkpoint",
    "Decider",
    "Decision",
    "EventTypes",
    "Given",
    "NewEvent",
    "Projection",
    "ProjectionOptions",
    "ProjectionRunner",
    "StoredEvent",
    "When",
    "append",
    "append_each",
    "count_after_checkpoint",
    "decide",
    "given",
    "head",
    "load",
    "load_checkpoint",
    "read",
    "remove",
    "save_checkpoint",
    "saved_checkpoint",
    "snake_case",
    "subscribe",
]
