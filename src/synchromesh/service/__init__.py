"""Services: handlers, the transaction and the context that users see, and a service's lifecycle."""

from synchromesh.service.context import Context
from synchromesh.service.definition import HandlerDefinition, ProjectionDefinition, Service
from synchromesh.service.instance import (
    KEEP_S,
    Health,
    ServiceInstance,
    Surroundings,
    dry_run_migrations,
)
from synchromesh.service.supervisor import Child, GaveUp, Supervisor
from synchromesh.service.transaction import Transaction

__all__ = [
    "KEEP_S",
    "Child",
    "Context",
    "GaveUp",
    "HandlerDefinition",
    "Health",
    "ProjectionDefinition",
    "Service",
    "ServiceInstance",
    "Supervisor",
    "Surroundings",
    "Transaction",
    "dry_run_migrations",
]
