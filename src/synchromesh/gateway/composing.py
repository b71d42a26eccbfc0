"""An aggregate on the fast way: one request, whose branches are exchanges of their own.

The client's exchange is answered by the callback of the branch that ends last. It declines what the
slow way has words for: a query or a body, a path that does not fit, a credential to be verified.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial

from synchromesh.errors import BadRequest
from synchromesh.gateway.aggregate import AggregatePlan, AggregateRun, arguments_of
from synchromesh.gateway.answering import AnsweredExchange, Answering
from synchromesh.http import HttpExchange
from synchromesh.resilience import AttemptsLeft

_log = logging.getLogger("synchromesh.gateway")


class FastAggregate:
    """All that is the same for every request of one aggregate."""

    __slots__ = ("_answering", "_parts", "_plan")

    def __init__(self, answering: Answering) -> None:
        entry = answering.entry
        self._answering = answering
        self._parts = entry.parts
        self._plan = AggregatePlan(entry.name, entry.parts, answering.gate.asker)

    def begin(
        self, exchange: HttpExchange, query: bytes = b"", places: Mapping[str, str] | None = None
    ) -> bool:
        """Answer a request, now or later; False declines it, and nothing was done then."""
        answering = self._answering
        who = None if query or exchange.body else answering.who(exchange)
        if who is None:
            return False
        try:
            given = arguments_of(self._parts, places or {})
        except BadRequest:
            return False
        asked = answering.admit(exchange, who)
        if asked is None:
            return False
        if answering.buckets is None or asked.is_within(answering.buckets):
            run = asked.work = AggregateRun(
                self._plan,
                given,
                context=asked.context,
                left=AttemptsLeft(asked.context.attempts_left),
                together=answering.together,
            )
            run.begin(partial(self._on_end, asked, run))
        return True

    def __repr__(self) -> str:
        return f"<FastAggregate {self._plan.name}>"

    def _on_end(self, asked: AnsweredExchange, run: AggregateRun) -> None:
        """Answer: every branch has ended, or one that is required has failed."""
        traffic, names = self._answering.traffic, ""
        try:
            composed = run.result()
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer
            traffic.branched(run.outcomes, run.took_s)
            asked.fail(error)
            return
        traffic.branched(run.outcomes, run.took_s)
        if composed.partial:
            names = ", ".join(composed.partial)
            for branch in composed.partial:
                status = run.outcomes[branch].status.value
                _log.info("%s: %s is %s", self._plan.name, branch, status)
        asked.succeed(composed.body, names)
