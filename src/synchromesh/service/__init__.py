"""Services: handlers, the transaction and the context that users see, and a service's lifecycle."""

from synchromesh.service.context import Context
from synchromesh.service.definition import HandlerDefinition, ProjectionDefinition, Service
from synchromesh.service.deps import KEEP_S, Deps
from synchromesh.service.instance import (
    Health,
    ServiceInstance,
    dry_run_migrations,
)
from synchromesh.service.supervisor import Child, GaveUp, Supervisor
from synchromesh.service.transaction import Transaction

__all__ = [
    "KEEP_S",
    "Child",
    "Context",
    "Deps",
    "GaveUp",
    "HandlerDefinition",
    "Health",
    "ProjectionDefinition",
    "Service",
    "ServiceInstance",
    "Supervisor",
    "Transaction",
    "dry_run_migrations",
]
