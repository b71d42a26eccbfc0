"""The event log and event sourcing: append, read, subscribe, deciders, projections."""

from synchromesh.events.appending import NewEvent, append, append_each
from synchromesh.events.decider import Decider, Decision
from synchromesh.events.generation_tables import GenerationTables
from synchromesh.events.generations import Generation, Parked, list_generations
from synchromesh.events.log import (
    RELAY_PREFIX,
    AppendReceipt,
    Checkpoint,
    StoredEvent,
    count_after_checkpoint,
    head,
    load,
    load_checkpoint,
    position_of,
    read,
    remove,
    save_checkpoint,
    saved_checkpoint,
)
from synchromesh.events.poison import ProjectionOptions
from synchromesh.events.projection import Projection, ProjectionRunner
from synchromesh.events.scenario import Given, When, given
from synchromesh.events.schema import SCHEMA
from synchromesh.events.sourcing import decide, decide_at
from synchromesh.events.subscription import subscribe
from synchromesh.events.types import EventTypes, snake_case
from synchromesh.events.versions import EventVersions, Upcaster, read_event

__all__ = [
    "RELAY_PREFIX",
    "SCHEMA",
    "AppendReceipt",
    "Checkpoint",
    "Decider",
    "Decision",
    "EventTypes",
    "EventVersions",
    "Generation",
    "GenerationTables",
    "Given",
    "NewEvent",
    "Parked",
    "Projection",
    "ProjectionOptions",
    "ProjectionRunner",
    "StoredEvent",
    "Upcaster",
    "When",
    "append",
    "append_each",
    "count_after_checkpoint",
    "decide",
    "decide_at",
    "given",
    "head",
    "list_generations",
    "load",
    "load_checkpoint",
    "position_of",
    "read",
    "read_event",
    "remove",
    "save_checkpoint",
    "saved_checkpoint",
    "snake_case",
    "subscribe",
]
