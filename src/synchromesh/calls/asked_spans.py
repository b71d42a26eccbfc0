"""The spans by which a trace begins that a client from outside has asked for.

Such a client keeps its own spans, if any, to itself. So where its call arrives two are recorded:
who asked, and what was handled for it; `synchromesh trace last` looks for the first.
"""

from __future__ import annotations

from collections.abc import Mapping

from synchromesh.calls.contract import Operation
from synchromesh.clients import ClientCredential
from synchromesh.context import span_ids
from synchromesh.propagation import SAMPLED
from synchromesh.runtime import Runtime
from synchromesh.telemetry import Record, Tracer

# Who asks for what, of which the recorder is kept.
RECORDERS_MAX = 1024


class AskedSpans:
    """Records what clients from outside have asked of one instance of a service.

    Args:
        tracer: that of the service.
    """

    def __init__(self, tracer: Tracer, runtime: Runtime) -> None:
        self._tracer = tracer
        self._runtime = runtime
        self._new_span_id = span_ids(runtime.rng)
        self._recorders: dict[tuple[str, str], Record] = {}

    def recorder(
        self, who: ClientCredential, operation: Operation[..., object], record: Record
    ) -> Record:
        """Return what records a call of a client beside `record`, above it.

        One that serves operations itself calls within the traces of others, and asks for nothing.
        """
        if who.grant.serves:
            return record
        asked = self._asked_by(who.service, operation.full_name)

        def both(
            trace_id: str,
            span_id: str,
            parent_id: str,
            began_s: float,
            ended_s: float,
            status: str = "ok",
            attributes: Mapping[str, str] | None = None,
            flags: int = SAMPLED,
        ) -> None:
            above = self._new_span_id()
            asked(trace_id, above, parent_id, began_s, ended_s, status, None, flags)
            record(trace_id, span_id, above, began_s, ended_s, status, attributes, flags)

        return both

    def _asked_by(self, client: str, name: str) -> Record:
        found = self._recorders.get((client, name))
        if found is None:
            ours = self._tracer
            if len(self._recorders) >= RECORDERS_MAX:
                self._recorders.clear()
            theirs = Tracer(client, self._runtime, ours.sink, ours.propagation)
            found = self._recorders[client, name] = theirs.recorder("client", name)
        return found

    def __repr__(self) -> str:
        return f"<AskedSpans of {self._tracer.service}: {len(self._recorders)}>"
