"""Advisor: what could be better about a system, with evidence, and the pattern that mends it.

Each check is a pure function of `Facts`. What the toolkit makes impossible has no code: time-outs
are never missing and retries never multiply, as a call tree has one deadline and one number of
attempts; and `config check` refuses what contradicts itself.
"""

from synchromesh.advisor.advice import Advice, AdviceCase, AdviceCode
from synchromesh.advisor.codes import CODES, advise
from synchromesh.advisor.facts import (
    BranchFacts,
    BreakerFacts,
    EventFacts,
    Facts,
    OperationFacts,
    ProjectionFacts,
    RouteFacts,
    SagaStepFacts,
    ServiceFacts,
    SetAsideFacts,
)

__all__ = [
    "CODES",
    "Advice",
    "AdviceCase",
    "AdviceCode",
    "BranchFacts",
    "BreakerFacts",
    "EventFacts",
    "Facts",
    "OperationFacts",
    "ProjectionFacts",
    "RouteFacts",
    "SagaStepFacts",
    "ServiceFacts",
    "SetAsideFacts",
    "advise",
]
