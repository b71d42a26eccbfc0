"""What was seen while the demo ran: written beside the databases, and judged with them."""

import datetime as dt
from pathlib import Path
from typing import Any

from msgspec import Struct, field, json

from synchromesh.codec import to_datetime
from synchromesh.telemetry import SpanRecord

FILE_NAME = "account.json"

# What says that time ran out: a deadline passed, or who saw that happen too often, or too much at
# once, sent nothing on. How often it comes to that is a matter of the machine.
NOT_REACHED = "not_reached_in_time"
OUT_OF_TIME = frozenset({"deadline_exceeded", "timed_out", "circuit_open", "shed", NOT_REACHED})

# The routes on which inventory is asked, by the gateway or by a service behind it.
INVENTORY_ROUTES = frozenset({"POST /orders", "GET /stock/{sku}", "GET /configurations"})

# The acts of the play, in their order.
CALM, STALL, ERRORS, HEALED, KILL, RESTART, REPLICAS, BUG, REST = (
    "calm", "stall", "errors", "healed", "kill", "restart", "replicas", "bug", "rest",
)  # fmt: skip


class Act(Struct):
    """One act of the play: from when to when; wall clock, microseconds, 0 while it is on."""

    name: str
    began_us: int
    ended_us: int = 0


class Failure(Struct, frozen=True):
    """A request that failed: when it was sent, in which act, by which route, and why."""

    at_us: int
    act: str
    route: str
    reason: str

    @property
    def is_out_of_time(self) -> bool:
        """True where there was no answer in time; the same was asked again until there was one."""
        return self.reason in OUT_OF_TIME


class Degraded(Struct, frozen=True):
    """An answer in which something stood in for what was asked.

    `branch` is the part of it, `status` says how ("stale", "static", "failed"), and `age_s` how old
    it was, where it said so.
    """

    act: str
    page: str
    branch: str
    status: str
    age_s: float | None = None


class Turn(Struct, frozen=True):
    """A breaker went from one state to another; `at` is a moment in ISO 8601."""

    at: str
    edge: str
    before: str
    after: str


class Kill(Struct, frozen=True):
    """The process of orders was killed, or all of its replicas, and others took their place.

    Attributes:
        pids, successors: the processes before, and after, by name.
        at_us, back_us: from when to when no process of orders was registered.
        in_flight: the sagas that its database had under way when it was dead.
        recovered: how many of them the successors say that they went on with.
    """

    pids: dict[str, int]
    successors: dict[str, int]
    at_us: int
    back_us: int
    in_flight: tuple[str, ...]
    recovered: int


class Restart(Struct, frozen=True):
    """Inventory was replaced while it was called, of several replicas one after the other.

    Attributes:
        pids, successors: the processes before, and after, by name.
        bridged: the calls of all callers that found no instance, were held, and found one.
        given_up: those that were held and found none.
        answered: how often it told meanwhile what is in stock, with nothing that stood in for it.
    """

    pids: dict[str, int]
    successors: dict[str, int]
    at_us: int
    back_us: int
    bridged: int
    given_up: int
    answered: int


class ReplicaLoss(Struct, frozen=True):
    """One of the replicas of quoting was lost while visitors asked for quotes.

    Attributes:
        how: the signal that it got.
        asked: the quotes that were asked for meanwhile, but for those that a rate turned away.
        failed: how many of them failed, whatever for.
    """

    instance: str
    pid: int
    how: str
    at_us: int
    asked: int
    failed: int


class RepairByHand(Struct, frozen=True):
    """What two bugs left behind, and what was repaired once the code was mended.

    Attributes:
        stuck: the sagas that were stuck.
        parked: the messages that were parked, as `synchromesh messages list` names them.
        retried, replayed: those of them of which the command line said so.
        findings: what `synchromesh status` said that needs a person, before the repair.
    """

    stuck: tuple[str, ...]
    parked: tuple[str, ...]
    retried: tuple[str, ...]
    replayed: tuple[str, ...]
    findings: tuple[str, ...]


class Account(Struct):
    """All that the demo saw from outside: as a client of the gateway and of the control socket.

    Attributes:
        replicas: how many gateways, and processes of each service, there are at least.
        processes: the process of each service, and of the gateway, at the start.
        ways_in: how many answers came from each gateway, by its URL.
        told: what the client was told of each order: "placed", "accepted" or "rejected".
        with_keys, with_tokens: how many customers came with an API key, and with a token.
        intruders: how often each kind of wrong credential was refused as it has to be.
        let_in: what was said otherwise to one, in words.
        accepted: how many orders were first only accepted.
        requests: how many requests were sent, by route.
        turned_away: how many of them a rate turned away, by route; they are no failures.
        repair: what was repaired by hand; None where nothing was.
        longest_hold: the span of the call that was held longest over the restart.
        spans: of one trace, of a saga that the kill met.
        slowest: the spans of the request that took longest, of those that were kept.
        reasons: why sagas were undone.
        undone: the story of one of them.
        ended: how often each process of the system ended, and was started again by itself.
        notes: what went otherwise than it should have.
    """

    orders: int
    replicas: int = 1
    took_s: float = 0.0
    ways_in: dict[str, int] = field(default_factory=dict)
    processes: dict[str, int] = field(default_factory=dict)
    told: dict[str, str] = field(default_factory=dict)
    with_keys: int = 0
    with_tokens: int = 0
    intruders: dict[str, int] = field(default_factory=dict)
    let_in: list[str] = field(default_factory=list)
    accepted: int = 0
    requests: dict[str, int] = field(default_factory=dict)
    turned_away: dict[str, int] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    degraded: list[Degraded] = field(default_factory=list)
    acts: list[Act] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    restarts: list[Restart] = field(default_factory=list)
    losses: list[ReplicaLoss] = field(default_factory=list)
    repair: RepairByHand | None = None
    longest_hold: SpanRecord | None = None
    spans: list[SpanRecord] = field(default_factory=list)
    slowest: list[SpanRecord] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)
    undone: dict[str, Any] | None = None
    ended: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def act(self) -> str:
        """The act that is on; "" before the first."""
        return self.acts[-1].name if self.acts else ""

    def begin(self, name: str, now_us: int) -> None:
        """Begin the next act."""
        self.end(now_us)
        self.acts.append(Act(name, now_us))

    def end(self, now_us: int) -> None:
        """End the act that is on."""
        if self.acts:
            self.acts[-1].ended_us = now_us

    def act_of(self, turn: Turn) -> str:
        """Return the act in which a breaker turned; "" where none was on."""
        moment = dt.datetime.fromisoformat(turn.at)
        for act in reversed(self.acts):
            if to_datetime(act.began_us) <= moment:
                is_over = act.ended_us and to_datetime(act.ended_us) <= moment
                return "" if is_over else act.name
        return ""

    @property
    def degraded_pages(self) -> list[Degraded]:
        """What stood in for a branch of an aggregate, in all acts."""
        return [each for each in self.degraded if each.branch]

    def note_request(self, route: str) -> None:
        """Count a request that was sent."""
        self.requests[route] = self.requests.get(route, 0) + 1

    def note_way_in(self, url: str) -> None:
        """Count an answer that a gateway gave."""
        self.ways_in[url] = self.ways_in.get(url, 0) + 1

    def note_intruder(self, kind: str, status: int, expected: int) -> None:
        """Note what was said to a wrong credential."""
        if status == expected:
            self.intruders[kind] = self.intruders.get(kind, 0) + 1
        else:
            self.let_in.append(f"{kind} was answered {status}, not {expected}, in act {self.act}")

    def note_turned_away(self, route: str) -> None:
        """Count a request that came sooner than its rate allows."""
        self.turned_away[route] = self.turned_away.get(route, 0) + 1

    def save(self, folder: Path) -> None:
        """Write the account into a folder."""
        (folder / FILE_NAME).write_bytes(json.format(json.encode(self), indent=1))


def load(folder: Path) -> Account:
    """Return the account in a folder. Raises FileNotFoundError, or ValueError for another file."""
    return json.decode((folder / FILE_NAME).read_bytes(), type=Account)
