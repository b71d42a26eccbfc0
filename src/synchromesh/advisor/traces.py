"""What calls are seen to do to each other: checks of traces. Pure functions.

They judge what was kept. Traces are few, and the newest; so each check asks for more than one
case, but where one is enough to be wrong. The replicas of a service are one service to them, but
each has its own breakers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property

from msgspec.structs import replace

from synchromesh.advisor.advice import EVIDENCE_MAX, AdviceCase
from synchromesh.advisor.facts import Facts
from synchromesh.telemetry import SpanRecord
from synchromesh.telemetry.explanation import PLACE, PLACE_MS, explain
from synchromesh.telemetry.trace_tree import TraceTree, tree_of

CHAIN_MAX = 4
CALLS_OF_ONE_MAX = 9
SERIAL_MIN = 3
SERIAL_SHARE = 0.6
HUB_MIN = 5
CASES_MIN = 3
CALLS_MIN = 20
WAITING_SHARE = 0.2
BURST_GAP_US = 2_000_000
LOCKED_SHARE = 0.05
# Callers that are no services.
_OUTSIDE = frozenset({"gateway", "control"})
# What goes on after these was not waited for.
_APART = frozenset({"message", "relay", "saga"})
# A no of the business, or of the caller's own time, is no failure of whom it asked.
_FAILED = frozenset({
    "timed_out", "connection_lost", "connect_failed", "remote_failed", "downstream_failed",
    "circuit_open", "no_instance", "shed", "store_unavailable",
})  # fmt: skip


def cyclic_calls(facts: Facts) -> Iterator[AdviceCase]:
    """Find services that call each other in a circle, each waiting for the next."""
    found: dict[str, list[str]] = {}
    for tree, services in _chains(facts):
        last = services[-1]
        if last in services[:-1]:
            waiting = " → ".join(services[services.index(last) :])
            found.setdefault(waiting, []).append(tree.root.trace_id)
    for circle, traces in sorted(found.items()):
        yield AdviceCase(f"calls go in a circle: {circle}", some(traces))


def long_chains(facts: Facts) -> Iterator[AdviceCase]:
    """Find requests that wait for a chain of more than four services."""
    found: dict[str, list[str]] = {}
    for tree, services in _chains(facts):
        if len(services) == CHAIN_MAX + 1 and len(set(services)) == len(services):
            found.setdefault(" → ".join(services), []).append(tree.root.trace_id)
    for chain, traces in sorted(found.items()):
        yield AdviceCase(
            f"a request waits for {CHAIN_MAX + 1} services in a row: {chain}", some(traces)
        )


def chatty_calls(facts: Facts) -> Iterator[AdviceCase]:
    """Find handlers that ask for one operation again and again (N + 1)."""
    found: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    for tree, handler, calls in _handlers(facts):
        for name, count in Counter(call.name for call in calls).items():
            if count > CALLS_OF_ONE_MAX:
                found[handler.name, name].append((count, tree.root.trace_id))
    for (asking, asked), cases in sorted(found.items()):
        most = max(count for count, _ in cases)
        traces = some([trace for _, trace in cases])
        yield AdviceCase(f"{asking} calls {asked} {most} times for one request", traces)


def serial_fan_outs(facts: Facts) -> Iterator[AdviceCase]:
    """Find handlers that ask several services for data, one after the other."""
    commands = {each.name for each in facts.operations if each.is_command}
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for tree, handler, calls in _handlers(facts):
        asked = [call for call in calls if call.name not in commands and call.status == "ok"]
        services = {call.name.partition(".")[0] for call in asked}
        if len(services) < SERIAL_MIN or len(asked) != len(calls):
            continue
        ends = [tree.ended_us(call) for call in asked]
        begins = [tree.began_us[call.span_id] for call in asked]
        is_serial = all(end <= begin for end, begin in zip(ends, begins[1:], strict=False))
        if is_serial and sum(call.took_us for call in asked) >= SERIAL_SHARE * handler.took_us:
            names = ", ".join(dict.fromkeys(call.name for call in asked))
            found[handler.name, names].append(tree.root.trace_id)
    for (asking, names), traces in sorted(found.items()):
        if len(traces) >= CASES_MIN:
            yield AdviceCase(f"{asking} asks one after the other: {names}", some(traces))


def hubs(facts: Facts) -> Iterator[AdviceCase]:
    """Find services that stand between very many others."""
    callers, callees = defaultdict(set), defaultdict(set)
    for call in _calls(facts):
        caller, callee = service_of(call), call.name.partition(".")[0]
        if caller not in _OUTSIDE and caller != callee:
            callers[callee].add(caller)
            callees[caller].add(callee)
    for name in sorted(callers):
        if len(callers[name]) >= HUB_MIN and len(callees[name]) >= HUB_MIN:
            yield AdviceCase(
                f"{name} is called by {len(callers[name])} services and calls {len(callees[name])}",
                tuple(sorted(callers[name]))[:EVIDENCE_MAX],
            )


def nanoservices(facts: Facts) -> Iterator[AdviceCase]:
    """Find services that keep nothing, offer next to nothing, and serve one other alone."""
    callers: dict[str, Counter[str]] = defaultdict(Counter)
    for call in _calls(facts):
        callers[call.name.partition(".")[0]][service_of(call)] += 1
    for service in facts.services:
        seen = callers[service.name]
        if service.has_state or service.operations > 2 or seen.total() < CALLS_MIN:
            continue
        if len(seen) == 1 and (caller := next(iter(seen))) not in _OUTSIDE:
            yield AdviceCase(
                f"{service.name} has {service.operations} operations, keeps nothing, and is called "
                f"by {caller} alone",
                (f"calls seen: {seen.total()}",),
            )


def bottlenecks(facts: Facts) -> Iterator[AdviceCase]:
    """Find where requests spend much of their time waiting for a place."""
    waited, took_us, traces = Counter[str](), 0, defaultdict(list)
    for tree, walked in walked_of(facts):
        spans = [span for _, span in walked]
        if not any(PLACE_MS in span.attributes for span in spans):
            # Nobody waited: what its parts are is not worked out.
            took_us += max(0, tree.root.took_us)
            continue
        explained = explain([replace(each, service=service_of(each)) for each in spans])
        took_us += explained.took_us
        for part in explained.parts:
            if part.why == PLACE:
                waited[part.where] += part.took_us
                traces[part.where].append(explained.trace_id)
    for where, waited_us in sorted(waited.items()):
        if len(traces[where]) >= CASES_MIN and waited_us >= WAITING_SHARE * took_us:
            share = round(100 * waited_us / took_us)
            yield AdviceCase(
                f"{share} % of the time of requests is waiting at {where}", some(traces[where])
            )


def missing_fallbacks(facts: Facts) -> Iterator[AdviceCase]:
    """Find queries that failed for the outside, and have nothing that could stand in."""
    bare = {
        (route.name, branch.operation): branch
        for route in facts.routes
        for branch in route.branches
        if route.is_read and branch.is_required and not branch.has_fallback
    }
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for tree, spans in walked_of(facts):
        for _, span in spans:
            if span.kind != "gateway":
                continue
            for call in tree.below(span):
                if call.status in _FAILED and (span.name, call.name) in bare:
                    found[span.name, call.name].append(span.trace_id)
    for (route, operation), traces in sorted(found.items()):
        if len(traces) >= CASES_MIN:
            name = bare[route, operation].name
            which = f"branch {name} of {route}" if name else route
            yield AdviceCase(f"{which} failed {len(traces)} times as {operation} did", some(traces))


def flapping_breakers(facts: Facts) -> Iterator[AdviceCase]:
    """Find edges whose breaker opens again and again."""
    for edge, calls in sorted(_by_edge(facts).items()):
        refused = [call for call in calls if call.status == "circuit_open"]
        begins = [
            call
            for at, call in enumerate(refused)
            if not at or call.started_us - refused[at - 1].started_us > BURST_GAP_US
        ]
        if len(begins) >= CASES_MIN:
            traces = some([call.trace_id for call in begins])
            yield AdviceCase(f"the breaker of {edge} opened {len(begins)} times", traces)


def breakers_that_never_open(facts: Facts) -> Iterator[AdviceCase]:
    """Find breakers that ask for more calls than their window ever has, in any replica."""
    seen: dict[str, list[list[SpanRecord]]] = defaultdict(list)
    for edge, calls in _by_edge(facts).items():
        caller, _, callee = edge.rpartition(":")
        seen[f"{caller.partition('#')[0]}:{callee}"].append(calls)
    for breaker in facts.breakers:
        own = [[call.started_us for call in calls] for calls in seen[breaker.edge]]
        if sum(map(len, own)) < CALLS_MIN:
            continue
        most = max(_most_within(starts, breaker.window_s * 1e6) for starts in own)
        if most < breaker.minimum_calls:
            yield AdviceCase(
                f"the breaker of {breaker.edge} counts from {breaker.minimum_calls} calls in "
                f"{breaker.window_s:g} s on, and there were never more than {most}",
                (breaker.key,),
            )


def contended_locks(facts: Facts) -> Iterator[AdviceCase]:
    """Find sagas that refuse many starts because another run holds their semantic lock."""
    handled: dict[str, list[SpanRecord]] = defaultdict(list)
    for _, walked in walked_of(facts):
        for _, span in walked:
            if span.kind == "handle":
                handled[span.name].append(span)
    for name, spans in sorted(handled.items()):
        locked = [span.trace_id for span in spans if span.status == "saga_locked"]
        if len(locked) >= CASES_MIN and len(locked) >= LOCKED_SHARE * len(spans):
            yield AdviceCase(
                f"{name} was refused {len(locked)} of {len(spans)} times by a lock key",
                some(locked),
            )


# -- what traces have ------------------------------------------------------------------------------


class KeptTraces(list[Sequence[SpanRecord]]):
    """Traces, of which the trees are made once for all checks."""

    @cached_property
    def walked(self) -> list[tuple[TraceTree, list[tuple[int, SpanRecord]]]]:
        """The tree of each, with its spans as they are walked through."""
        return [(tree, tree.walk()) for tree in map(tree_of, filter(None, self))]


def walked_of(facts: Facts) -> Sequence[tuple[TraceTree, list[tuple[int, SpanRecord]]]]:
    """Return the tree of each trace, with its spans as they are walked through."""
    traces = facts.traces
    return traces.walked if isinstance(traces, KeptTraces) else KeptTraces(traces).walked


def _calls(facts: Facts) -> Iterator[SpanRecord]:
    return (span for spans in facts.traces for span in spans if span.kind == "call")


def service_of(span: SpanRecord) -> str:
    """Return the service of a span, whose name may be that of a replica, such as "quoting#2"."""
    return span.service.partition("#")[0]


def _most_within(starts: Sequence[int], window_us: float) -> int:
    """Return how many of some times, which are in order, are within one window at most."""
    most, first = 0, 0
    for at, start in enumerate(starts):
        while start - starts[first] > window_us:
            first += 1
        most = max(most, at - first + 1)
    return most


def _by_edge(facts: Facts) -> dict[str, list[SpanRecord]]:
    """Return the calls of each edge of each replica, in order of time."""
    found: dict[str, list[SpanRecord]] = defaultdict(list)
    for call in sorted(_calls(facts), key=lambda call: call.started_us):
        found[f"{call.service}:{call.name.partition('.')[0]}"].append(call)
    return found


def _chains(facts: Facts) -> Iterator[tuple[TraceTree, list[str]]]:
    """Yield the services that wait for each other down to each span of a handler."""
    for tree, spans in walked_of(facts):
        waiting: dict[str, list[str]] = {}
        for _, span in spans:
            above = [] if span.kind in _APART else waiting.get(span.parent_id, [])
            if span.kind == "handle" and above[-1:] != [service_of(span)]:
                above = [*above, service_of(span)]
                yield tree, above
            waiting[span.span_id] = above


def _handlers(facts: Facts) -> Iterator[tuple[TraceTree, SpanRecord, list[SpanRecord]]]:
    """Yield each handler with the calls that it made itself, in order of time."""
    for tree, spans in walked_of(facts):
        for _, span in spans:
            if span.kind == "handle":
                yield tree, span, [each for each in tree.below(span) if each.kind == "call"]


def some(traces: Sequence[str]) -> tuple[str, ...]:
    """Return as many traces as are shown, each once."""
    return tuple(dict.fromkeys(traces))[:EVIDENCE_MAX]
