"""Finds what no serial order explains in a history of transactions that append to lists.

Each value is appended once. A list then tells in which order its writers came, and a read of it
between which two of them its reader came. Who came before whom is a graph, and where it has a
cycle, the transactions can not have run one after the other.

Source: Kingsbury and Alvaro, "Elle: Inferring Isolation Anomalies from Experimental Observations",
VLDB 2020. The names of anomalies are those of Adya, "Weak Consistency", 1999.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from typing import Final

# One mistake has many consequences: as many of them are told.
ANOMALIES_MAX: Final = 20


class TxnEnd(Enum):
    """How a transaction ended, as far as its client knows."""

    COMMITTED = "committed"
    ABORTED = "aborted"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Append:
    """A value was appended to a list, the only time that it is."""

    key: str
    value: int


@dataclass(frozen=True, slots=True)
class ListRead:
    """A list was read, and had these values."""

    key: str
    values: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Txn:
    """A transaction, as its client saw it.

    Attributes:
        name: unique, for people.
        operations: what it did, in its order.
        end: how it ended. One that is unknown counts as committed where a value of its was read.
        began_s, ended_s: when its client began it and knew its end, by a clock that all clients
            share; None where real time is not to be judged.
    """

    name: str
    operations: tuple[Append | ListRead, ...]
    end: TxnEnd = TxnEnd.COMMITTED
    began_s: float | None = None
    ended_s: float | None = None


@dataclass(frozen=True, slots=True)
class Anomaly:
    """What no serial order explains: its name in the literature, and what was seen, in one line."""

    kind: str
    why: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.why}"


def anomalies(history: Iterable[Txn], final: Mapping[str, Sequence[int]]) -> list[Anomaly]:
    """Return what no serial order of the transactions explains; nothing where one does.

    Transactions with times are held to real time as well (strict serializability): one that ended
    before another began comes before it.

    Args:
        history: all transactions that anybody tried, in any order.
        final: the lists as they are after the last of them.

    Example:
        >>> skewed = [
        ...     Txn("a", (ListRead("x", ()), Append("y", 1))),
        ...     Txn("b", (ListRead("y", ()), Append("x", 2))),
        ... ]
        >>> print(*anomalies(skewed, {"x": [2], "y": [1]}))
        G2: a -rw-> b -rw-> a
    """
    txns = list(history)
    writers = {
        (each.key, each.value): txn
        for txn in txns
        for each in txn.operations
        if isinstance(each, Append)
    }
    last = Txn("the last read", tuple(ListRead(key, tuple(final[key])) for key in sorted(final)))
    seen = [txn for txn in txns if txn.end is TxnEnd.COMMITTED]
    told = {
        (each.key, value) for txn in (*seen, last) for each in _reads(txn) for value in each.values
    }
    seen += [
        txn for txn in txns if txn.end is TxnEnd.UNKNOWN and not told.isdisjoint(_appended(txn))
    ]
    found = [each for txn in (*seen, last) for each in _misread(txn, writers)]
    orders, differences = _orders((*seen, last))
    found += differences
    found += [
        Anomaly("lost append", f"{txn.name} appended {value} to {key}, where it is not")
        for txn in seen
        for key, value in _appended(txn)
        if value not in final.get(key, ())
    ]
    # A graph of lists that have no order would have cycles of its own.
    found += () if found else _cycle(_edges(seen, orders, writers))
    return found[:ANOMALIES_MAX]


# -- what a transaction saw ------------------------------------------------------------------------


def _reads(txn: Txn) -> Iterator[ListRead]:
    return (each for each in txn.operations if isinstance(each, ListRead))


def _appended(txn: Txn) -> list[tuple[str, int]]:
    return [(each.key, each.value) for each in txn.operations if isinstance(each, Append)]


def _misread(txn: Txn, writers: Mapping[tuple[str, int], Txn]) -> Iterator[Anomaly]:
    """Yield what a transaction cannot have read, whatever the order."""
    own: dict[str, tuple[int, ...]] = {}
    others: dict[str, tuple[int, ...]] = {}
    for each in txn.operations:
        key, mine = each.key, own.get(each.key, ())
        if isinstance(each, Append):
            own[key] = (*mine, each.value)
            continue
        values = each.values
        until = len(values) - len(mine)
        read = f"{txn.name} read {key} as {list(values)}"
        if (
            values[max(0, until) :] != mine
            or others.setdefault(key, values[:until]) != values[:until]
        ):
            yield Anomaly("internal", f"{read}, against what it did and read before")
        if twice := [value for value, count in Counter(values).items() if count > 1]:
            yield Anomaly("duplicate", f"{read}, with {twice[0]} more than once")
        for value in values:
            writer = writers.get((key, value))
            if writer is None:
                yield Anomaly("phantom", f"{read}, and nobody appended {value}")
            elif writer.end is TxnEnd.ABORTED:
                yield Anomaly("G1a", f"{read}, and {writer.name} was aborted")
        writer = writers.get((key, values[until - 1])) if until > 0 else None
        if (
            writer
            and [value for at, value in _appended(writer) if at == key][-1] != values[until - 1]
        ):
            yield Anomaly("G1b", f"{read}, and {writer.name} was half done")


def _orders(txns: Iterable[Txn]) -> tuple[dict[str, tuple[int, ...]], list[Anomaly]]:
    """Return the values of each list in their order, the longest read, and reads that differ."""
    reads = [(txn.name, each) for txn in txns for each in _reads(txn)]
    orders: dict[str, tuple[int, ...]] = {}
    for _, read in reads:
        orders[read.key] = max(orders.get(read.key, ()), read.values, key=len)
    return orders, [
        Anomaly("incompatible order", f"{name} read {read.key} as {list(read.values)}, others not")
        for name, read in reads
        if read.values != orders[read.key][: len(read.values)]
    ]


# -- who came before whom --------------------------------------------------------------------------

# A transaction by its name, or a moment: by those real time takes two edges a transaction.
_Node = str | int
_Edges = dict[_Node, dict[_Node, str]]


def _edges(
    txns: Sequence[Txn],
    orders: Mapping[str, tuple[int, ...]],
    writers: Mapping[tuple[str, int], Txn],
) -> _Edges:
    """Return for each who came before it, and whether as its writer, reader, or in real time."""
    before: _Edges = {}

    def follow(node: _Node, other: _Node, why: str) -> None:
        if other != node:
            before.setdefault(node, {}).setdefault(other, why)

    wrote = {key: [writers[key, each].name for each in order] for key, order in orders.items()}
    for names in wrote.values():
        for earlier, later in pairwise(names):
            follow(later, earlier, "ww")
    for txn in txns:
        own = set(_appended(txn))
        for read in _reads(txn):
            names = wrote[read.key]
            length = sum((read.key, value) not in own for value in read.values)
            if length:
                follow(txn.name, names[length - 1], "wr")
            if length < len(names):
                follow(names[length], txn.name, "rw")
    times = [(txn.ended_s, False, txn.name) for txn in txns if txn.ended_s is not None]
    times += [(txn.began_s, True, txn.name) for txn in txns if txn.began_s is not None]
    for moment, (_, is_begin, name) in enumerate(sorted(times)):
        follow(moment, max(0, moment - 1), "")
        if is_begin:
            follow(name, moment, "real time")
        else:
            follow(moment, name, "")
    return before


def _cycle(before: _Edges) -> list[Anomaly]:
    """Return a cycle, by the least that it takes: writes, then reads of writes, then all."""
    for reasons in ({"ww"}, {"ww", "wr"}, {"ww", "wr", "rw"}, {"ww", "wr", "rw", "real time", ""}):
        graph = {
            node: [other for other, why in others.items() if why in reasons]
            for node, others in before.items()
        }
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            return [_told(error.args[1], before)]
    return []


def _told(nodes: Sequence[_Node], before: _Edges) -> Anomaly:
    """Return the anomaly of a cycle, in which each node came before the next."""
    first = min(node for node in nodes if isinstance(node, str))
    start = nodes.index(first)
    circle = (*nodes[start:-1], *nodes[: start + 1])
    told, reasons, against = first, set[str](), 0
    for node, following in pairwise(circle):
        why = before[following][node]
        if isinstance(following, str):
            told += f" -{why}-> {following}"
            reasons.add(why)
            against += why == "rw"
    kind = ("G1c" if "wr" in reasons else "G0", "G-single")[against] if against < 2 else "G2"
    return Anomaly(f"{kind}-realtime" if "real time" in reasons else kind, told)
