"""All codes of advice. One that a system has a reason to ignore is ignored by its name."""

from __future__ import annotations

from collections.abc import Container

from msgspec.structs import replace

from synchromesh.advisor import definitions, state, time_outs, traces
from synchromesh.advisor.advice import EVIDENCE_MAX, Advice, AdviceCode
from synchromesh.advisor.facts import Facts
from synchromesh.advisor.undisturbed import undisturbed

CODES = (
    AdviceCode(
        "cyclic-calls",
        "Neither service answers while the other is slow, and neither can be released alone.",
        "messaging",
        "patterns/messaging.md",
        "Let the one that is called back publish an event, and the first keep what it tells.",
        traces.cyclic_calls,
    ),
    AdviceCode(
        "chain-too-long",
        "Each service of a chain adds its latency, and the chain is up only while all of it is.",
        "projection",
        "projections.md",
        "Let the first service keep what it needs of the last one, from its events.",
        traces.long_chains,
    ),
    AdviceCode(
        "chatty-calls",
        "A list of a hundred makes a hundred calls, each with its own overhead.",
        "batch operation",
        "patterns/calls.md",
        "Offer an operation that takes all ids at once.",
        traces.chatty_calls,
    ),
    AdviceCode(
        "serial-fan-out",
        "The request takes the sum of all answers, and not the longest one.",
        "gateway aggregation",
        "aggregates.md",
        "Ask at once what does not need each other's answers: by an aggregate, or a task group.",
        traces.serial_fan_outs,
    ),
    AdviceCode(
        "hub",
        "Every change and every failure of it meets everybody.",
        "messaging",
        "patterns/messaging.md",
        "Move what only passes through it to those who need it, by events.",
        traces.hubs,
    ),
    AdviceCode(
        "nanoservice",
        "It costs a release, a process and a network hop, and is needed by one alone.",
        "module",
        "when-not.md",
        "Make it a module of the service that calls it.",
        traces.nanoservices,
    ),
    AdviceCode(
        "bottleneck",
        "Requests wait there while everything else has time.",
        "replicas, load shedding",
        "replicas.md",
        "Give that service replicas, or raise its `in_flight` where its machine has room.",
        traces.bottlenecks,
    ),
    AdviceCode(
        "no-fallback",
        "People got an error where an older or a partial answer would have served.",
        "fallback",
        "ladder.md",
        'Give it `fallback=Stale("10m")`, or leave `required` out.',
        traces.missing_fallbacks,
    ),
    AdviceCode(
        "breaker-flaps",
        "Calls are refused in bursts, and its callers see a service that comes and goes.",
        "circuit breaker",
        "patterns/circuit-breaker.md",
        "Look at what fails there, by a trace below; the breaker only shows it.",
        traces.flapping_breakers,
    ),
    AdviceCode(
        "breaker-never-opens",
        "It guards nothing: each call of a failing service takes its whole time.",
        "circuit breaker",
        "patterns/circuit-breaker.md",
        "Lower `minimum_calls`, or lengthen `window`.",
        traces.breakers_that_never_open,
    ),
    AdviceCode(
        "time-out-too-short",
        "Whoever asks for that never gets it, and the work is done for nobody, time and again.",
        "deadline, saga",
        "patterns/calls.md",
        "Raise the limit above what the operation takes, or answer at once and go on in a saga.",
        time_outs.cut_requests,
    ),
    AdviceCode(
        "lock-contention",
        "Runs of different people refuse each other.",
        "semantic lock",
        "saga-reference.md",
        "Narrow what `key=` returns to what really must not be worked on at once.",
        traces.contended_locks,
    ),
    AdviceCode(
        "open-command",
        "Anybody may change data, as often as they like.",
        "authentication, rate limit",
        "who-asks.md",
        "Name the `scopes` of the route, or at least give it a `rate`.",
        definitions.open_commands,
    ),
    AdviceCode(
        "over-scoped-key",
        "Whoever finds the key may do what its owner never does, once a route asks for it.",
        "least privilege",
        "who-asks.md",
        "Make a key with the scopes that it needs, and remove this one.",
        definitions.scopes_for_nothing,
    ),
    AdviceCode(
        "step-without-undo",
        "A run that turns back leaves behind what this step did.",
        "compensation",
        "patterns/saga.md",
        "Give the step an `undo=`, or move it behind the pivot.",
        definitions.steps_without_undo,
    ),
    AdviceCode(
        "refusal-after-pivot",
        "There is no way back behind the pivot: a no leaves the run stuck, and needs a person.",
        "pivot",
        "patterns/saga.md",
        "Ask before the pivot, by a step that reserves; behind it only do what was reserved.",
        definitions.steps_that_refuse_late,
    ),
    AdviceCode(
        "personal-data-in-event",
        "Events are kept and sent on: nobody can erase what they tell.",
        "crypto-shredding",
        "erase-personal-data.md",
        "Declare the field `Personal`, or tell an id in its place.",
        definitions.personal_fields,
    ),
    AdviceCode(
        "unused-operation",
        "It is tested, guarded and kept compatible for nobody.",
        "expand and contract",
        "change-a-contract.md",
        "Remove it; or ignore this with who calls it from outside.",
        definitions.unused_operations,
    ),
    AdviceCode(
        "unused-event",
        "It is kept compatible for nobody.",
        "expand and contract",
        "change-an-event.md",
        "Remove it; or ignore this with who takes it from outside.",
        definitions.unused_events,
    ),
    AdviceCode(
        "projection-lag",
        "What is read is older from minute to minute.",
        "projection",
        "projections.md",
        "Look at what its function does for each event, and take them in batches.",
        state.lagging_projections,
    ),
    AdviceCode(
        "parked",
        "What is behind it waits too, and nobody mends it by waiting.",
        "dead letter",
        "operate-messages.md",
        "Mend the handler, then `synchromesh messages replay` or `projection retry`.",
        state.parked_for_long,
    ),
    AdviceCode(
        "unbounded-growth",
        "The disk fills in the end, and backups take longer from day to day.",
        "retention",
        "back-up.md",
        "Give it a time; with `archive = true` what is forgotten is kept in files.",
        state.growing_for_ever,
    ),
    AdviceCode(
        "contract-drift",
        "Others were released against the contract that was frozen.",
        "contract, expand and contract",
        "change-a-contract.md",
        "Run `synchromesh contract check`; freeze the contracts anew once it is satisfied.",
        state.drifted_contracts,
    ),
    AdviceCode(
        "blocking-code",
        "Meanwhile all other requests of the process stand still.",
        "asyncio",
        "operate-failures.md",
        "Await it, or give the work to a thread or a process of its own.",
        state.blocking_code,
    ),
)
"""Each kind of advice, in the order in which it is given."""


def advise(facts: Facts, ignored: Container[str] = ()) -> list[Advice]:
    """Return what could be better, in the order of the codes; nothing of those that are ignored.

    Example:
        >>> from synchromesh.advisor import RouteFacts
        >>> signup = RouteFacts("POST /people", is_public=True, has_rate=False, is_read=False)
        >>> [each.code for each in advise(Facts(routes=[signup]))]
        ['open-command']
    """
    # What all checks of traces look at is made once.
    facts = replace(facts, traces=traces.KeptTraces(undisturbed(facts.traces)))
    return [
        Advice(
            each.code,
            found.what,
            found.evidence[:EVIDENCE_MAX],
            each.why,
            each.pattern,
            each.page,
            each.change,
        )
        for each in CODES
        if each.code not in ignored
        for found in each.found(facts)
    ]
