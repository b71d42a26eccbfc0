"""`synchromesh guide`: from what you see to what to look at, the pattern, and the first change."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import click

from synchromesh.cli.output import print_json, print_line
from synchromesh.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Symptom:
    """What is seen of a problem, and the way from there.

    Attributes:
        seen: what people say of it, and look for.
        look: a command that shows whether it is that.
        pattern: what mends it, by its name.
        page: where that is described, below `docs/`.
        change: the smallest change that helps.
    """

    seen: str
    look: str
    pattern: str
    page: str
    change: str


GUIDE = {
    "It fails": (
        Symptom(
            "one service is down, and others that need it fail with it",
            "synchromesh status",
            "fallback, aggregate",
            "ladder.md",
            "Give the branch that may be absent a fallback, and do not make it `required`.",
        ),
        Symptom(
            "one service is slow, and everything that calls it becomes slow",
            "synchromesh trace last",
            "deadline, timeout",
            "slow-part.md",
            "Give the operation the `timeout` that its callers can afford.",
        ),
        Symptom(
            "a failing service is called again and again, and never comes back",
            "synchromesh config explain",
            "circuit breaker, retry budget",
            "patterns/circuit-breaker.md",
            "Keep the default policy of the edge; take away retries that you wrote around calls.",
        ),
        Symptom(
            "under load everything is late, instead of some being refused at once",
            "synchromesh status",
            "load shedding, priority",
            "patterns/load-shedding.md",
            "Give batch work a lower `priority`, so that it is shed before people's requests are.",
        ),
        Symptom(
            "nobody can see why a request failed or took so long, or who was at fault",
            "synchromesh why last",
            "distributed tracing, critical path",
            "why.md",
            "Keep the `Synchromesh-Trace` of the answer: `synchromesh why` explains that trace.",
        ),
        Symptom(
            "nobody knows what goes with it, if one service goes",
            "synchromesh blast SERVICE",
            "blast radius, chaos experiment",
            "drill.md",
            "Write `[[probe]]`s of your promises; `drill` breaks each part, and says what is left.",
        ),
        Symptom(
            "something is slow or fails, and nobody is told before customers call",
            "synchromesh status --watch",
            "metrics, alerts",
            "observe.md",
            "Give `[admin]` a port for `/metrics`, and load the alerts of `export grafana`.",
        ),
        Symptom(
            "whoever operates it wants to see it, and not to learn commands",
            "synchromesh console",
            "operations console",
            "console.md",
            "Open the URL that `dev` prints: it says what needs a person, and what can be done.",
        ),
        Symptom(
            "it fails in production, in an order of events that no test has",
            "synchromesh test --sim",
            "deterministic simulation",
            "testing.md",
            "Put one test around the saga with `survive`, which crashes it at every record.",
        ),
    ),
    "Data is wrong, or stuck": (
        Symptom(
            "an order is paid, but nobody delivers: a process stopped half way",
            "synchromesh saga list",
            "saga, compensation",
            "patterns/saga.md",
            "Put the steps into one saga, with an `undo=` for each before the pivot.",
        ),
        Symptom(
            "a saga is stuck, and somebody has to decide",
            "synchromesh saga list",
            "saga repair",
            "stuck-saga.md",
            "`saga impact` says what each verb would do; then `saga retry`, `skip` or `undo`.",
        ),
        Symptom(
            "a customer is charged twice after a timeout",
            "synchromesh trace last",
            "idempotency key, inbox",
            "patterns/database-per-service.md",
            "Send the command with a key of the business, such as the order's number.",
        ),
        Symptom(
            "two services write the same tables",
            "synchromesh db verify",
            "database per service",
            "patterns/database-per-service.md",
            "Give the table to one of them; the other calls it, or keeps what its events tell.",
        ),
        Symptom(
            "an event was lost, or told though nothing happened",
            "synchromesh messages list",
            "transactional outbox, inbox",
            "patterns/messaging.md",
            "Publish with `tx.publish` in the transaction of the rows.",
        ),
        Symptom(
            "one message fails, and those behind it wait",
            "synchromesh messages list",
            "dead letter",
            "operate-messages.md",
            "Mend the handler and `messages replay`; or `messages drop` with the reason.",
        ),
        Symptom(
            "a list shows yesterday's data",
            "synchromesh projection list",
            "projection",
            "projections.md",
            "Look whether it lags or is parked at an event; `wait_for` its own change.",
        ),
        Symptom(
            "nobody knows how the data came to be as it is",
            "synchromesh events list",
            "event sourcing",
            "patterns/event-sourcing.md",
            "Write decisions as events of a `Decider`, beside the rows at first.",
        ),
        Symptom(
            "somebody wants their personal data gone, and it is in events",
            "synchromesh personal list",
            "crypto-shredding",
            "erase-personal-data.md",
            "Declare the fields `Personal`, then `personal erase`.",
        ),
        Symptom(
            "the disk fills",
            "synchromesh db status",
            "retention",
            "back-up.md",
            "See what grows, and shorten its `[retention]`.",
        ),
    ),
    "A change breaks something": (
        Symptom(
            "a deploy of one service breaks another",
            "synchromesh contract check",
            "contract, expand and contract",
            "change-a-contract.md",
            "Freeze contracts beside the code, and let CI run `contract check`.",
        ),
        Symptom(
            "a new version of a saga strands the runs that are under way",
            "synchromesh saga check",
            "saga versions",
            "change-a-saga.md",
            "Keep the old code under its `version=` until its runs have ended.",
        ),
        Symptom(
            "old events do not fit the new code",
            "synchromesh db verify",
            "upcaster",
            "change-an-event.md",
            "Raise the event's version and add an upcaster.",
        ),
        Symptom(
            "a migration cannot be taken back",
            "synchromesh db status",
            "expand and contract",
            "change-a-table.md",
            "Add first, move, and drop a release later; `readable_by_min` says who may read it.",
        ),
        Symptom(
            "requests fail while a service is replaced",
            "synchromesh restart SERVICE",
            "graceful shutdown, drain",
            "operate-failures.md",
            "Replace parts by `restart`: it drains, and refuses what would break others.",
        ),
        Symptom(
            "it works, and nobody knows what will hurt as it grows",
            "synchromesh advise",
            "architecture review",
            "advise.md",
            "Take the first advice that has evidence; ignore what has a reason, with the reason.",
        ),
        Symptom(
            "one instance of several fails or hangs",
            "synchromesh status",
            "outlier ejection, load balancing",
            "replicas.md",
            "Run `replicas = 3`: the one that fails is left out by its callers.",
        ),
    ),
    "The edge": (
        Symptom(
            "clients have to know every service, and its address",
            "synchromesh gateway explain",
            "API gateway",
            "patterns/api-gateway.md",
            "Put a `Gateway` with a `Route` for each before them.",
        ),
        Symptom(
            "a page needs five requests",
            "synchromesh gateway explain",
            "gateway aggregation",
            "aggregates.md",
            "Compose it with an `Aggregate`; each branch has its own time and fallback.",
        ),
        Symptom(
            "one client takes all there is",
            "synchromesh gateway explain",
            "rate limit",
            "rates.md",
            "Give the route a `rate`, and each client a key of its own.",
        ),
        Symptom(
            "it is not known who asks, or everybody may do everything",
            "synchromesh gateway check",
            "authentication, scopes",
            "who-asks.md",
            "Name an authenticator and the `scopes` of each route.",
        ),
        Symptom(
            "an application that exists cannot take part in the system",
            "synchromesh status",
            "service registration, joined application",
            "join-an-app.md",
            "Wrap the ASGI application in `join`, or name it as `[services.NAME] app`.",
        ),
        Symptom(
            "a script or a job has to call a service, and has no place in the system",
            "synchromesh client list",
            "client credential",
            "call-from-outside.md",
            "Give it a credential by `synchromesh client add`, and call by contract with `Client`.",
        ),
        Symptom(
            "a service has to be written in another language",
            "synchromesh openapi SERVICE",
            "service over plain HTTP",
            "from-any-language.md",
            "Serve the contract's routes, and register by HTTP with a credential that `serves` it.",
        ),
        Symptom(
            "a monolith has to be split while it runs",
            "synchromesh gateway mirror",
            "strangler",
            "strangler.md",
            "Put the gateway before it with `Forward`, and take out one path.",
        ),
    ),
}


@click.command()
@click.argument("words", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def guide(words: tuple[str, ...], as_json: bool) -> int:
    """Say which problem it is: what to look at, the pattern, the change.

    With WORDS only what has all of them, such as `guide charged twice`.
    """
    found = {
        title: kept
        for title, symptoms in GUIDE.items()
        if (kept := [each for each in symptoms if _has(each, words)])
    }
    if not found:
        raise ConfigError(
            f"the guide has nothing with {' '.join(words)!r}; try fewer words, or none for all"
        )
    if as_json:
        print_json({title: [asdict(each) for each in kept] for title, kept in found.items()})
        return 0
    for title, kept in found.items():
        print_line(f"\n{title}")
        for each in kept:
            print_line(f"\n  {each.seen}")
            print_line(f"    look     {each.look}")
            print_line(f"    pattern  {each.pattern} (docs/{each.page})")
            print_line(f"    change   {each.change}")
    return 0


def _has(symptom: Symptom, words: tuple[str, ...]) -> bool:
    text = f"{symptom.seen} {symptom.pattern} {symptom.change}".casefold()
    return all(word.casefold() in text for word in words)
