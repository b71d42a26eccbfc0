"""The database of one service: units of work, group commit, inbox, migrations, isolation."""

from synchromesh.store import inbox
from synchromesh.store.backup import Backup, Manifest
from synchromesh.store.dialect import Dialect
from synchromesh.store.factory import PlacedStores, StoreFactory
from synchromesh.store.guard import in_unit, refuse_in_unit
from synchromesh.store.outage import OUTAGE
from synchromesh.store.owners import NO_FENCE, SOLE
from synchromesh.store.rows import fetch_as
from synchromesh.store.sqlite import SqliteStore, SqliteStores, StoreOptions
from synchromesh.store.unit import (
    ArrayUnit,
    Beside,
    Condition,
    DutyHandler,
    Fence,
    Fetched,
    InboxState,
    KeyReader,
    Migration,
    Once,
    Owners,
    Recorded,
    Row,
    Schema,
    SqlValue,
    Store,
    StoreReader,
    StreamRows,
    Unit,
    Unprepared,
    log_id_of,
)
from synchromesh.store.vault import SqliteVault

__all__ = [
    "NO_FENCE",
    "OUTAGE",
    "SOLE",
    "ArrayUnit",
    "Backup",
    "Beside",
    "Condition",
    "Dialect",
    "DutyHandler",
    "Fence",
    "Fetched",
    "InboxState",
    "KeyReader",
    "Manifest",
    "Migration",
    "Once",
    "Owners",
    "PlacedStores",
    "Recorded",
    "Row",
    "Schema",
    "SqlValue",
    "SqliteStore",
    "SqliteStores",
    "SqliteVault",
    "Store",
    "StoreFactory",
    "StoreOptions",
    "StoreReader",
    "StreamRows",
    "Unit",
    "Unprepared",
    "fetch_as",
    "in_unit",
    "inbox",
    "log_id_of",
    "refuse_in_unit",
]
