"""Sagas: work over several services that is completed, or undone, or stuck and visible.

A saga function awaits steps; each is recorded in the service's own database, and no effect happens
before what it depends on is durable. After a crash the function is run again from its records.
"""

from synchromesh.saga.definition import SagaDefinition
from synchromesh.saga.engine import Engine, EngineOptions
from synchromesh.saga.handle import SagaRun
from synchromesh.saga.policy import SagaPolicy
from synchromesh.saga.saga import Saga
from synchromesh.saga.steps import Step, Together, Unknown
from synchromesh.saga.versions import SagaVersions

__all__ = [
    "Engine",
    "EngineOptions",
    "Saga",
    "SagaDefinition",
    "SagaPolicy",
    "SagaRun",
    "SagaVersions",
    "Step",
    "Together",
    "Unknown",
]
