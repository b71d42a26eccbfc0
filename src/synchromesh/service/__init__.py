"""Services: handlers, the transaction and the context that users see, and a service's lifecycle."""

from synchromesh.service.context import Context
from synchromesh.service.definition import Service
from synchromesh.service.deps import KEEP_S, Deps
from synchromesh.service.instance import (
    ServiceInstance,
    dry_run_migrations,
    schemas_of,
)
from synchromesh.service.supervisor import (
    Child,
    ChildState,
    PartEnded,
    RestartsExhausted,
    Supervisor,
)
from synchromesh.service.transaction import Transaction

__all__ = [
    "KEEP_S",
    "Child",
    "ChildState",
    "Context",
    "Deps",
    "PartEnded",
    "RestartsExhausted",
    "Service",
    "ServiceInstance",
    "Supervisor",
    "Transaction",
    "dry_run_migrations",
    "schemas_of",
]
