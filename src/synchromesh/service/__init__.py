"""Services: handlers, the transaction and the context that users see, and a service's lifecycle."""

from synchromesh.service.context import Context
from synchromesh.service.definition import Handled, Projected, Service
from synchromesh.service.instance import (
    KEEP_S,
    Health,
    ServiceInstance,
    Surroundings,
    rehearse,
)
from synchromesh.service.supervisor import Child, GaveUp, Supervisor
from synchromesh.service.transaction import Transaction

__all__ = [
    "KEEP_S",
    "Child",
    "Context",
    "GaveUp",
    "Handled",
    "Health",
    "Projected",
    "Service",
    "ServiceInstance",
    "Supervisor",
    "Surroundings",
    "Transaction",
    "rehearse",
]
