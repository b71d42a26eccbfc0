"""The faults of a simulated network: latency, loss, duplicates, late messages, partitions."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from synchromesh.durations import FROM_0, SHARE, refuse_wrong_numbers


@dataclass(frozen=True, slots=True)
class NetworkFaults:
    """Configures the faults of a world; the default is a calm network with a little latency.

    Args:
        loss: the share of messages that never arrive.
        duplication: the share that arrive twice.
        tail: the share that arrive late, at any time within `tail_s`, overtaken by later ones.
        tail_s: how late a late message may be.
        latency_min_s, latency_max_s: what every other message takes.
        io_s: the most that a worker takes before and after its work.
        skew_s: the most that a node's wall clock is wrong by, either way.

    Example:
        >>> NetworkFaults(loss=0.05, duplication=0.05).latency_max_s
        0.002
    """

    loss: float = 0.0
    duplication: float = 0.0
    tail: float = 0.0
    tail_s: float = 0.0
    latency_min_s: float = 0.0005
    latency_max_s: float = 0.002
    io_s: float = 0.002
    skew_s: float = 0.0

    def __post_init__(self) -> None:
        refuse_wrong_numbers(
            self,
            (SHARE, "loss duplication tail"),
            (FROM_0, "tail_s latency_min_s latency_max_s io_s skew_s"),
        )


CALM = NetworkFaults()
STORMY = NetworkFaults(
    loss=0.03,
    duplication=0.03,
    tail=0.03,
    tail_s=8.0,
    latency_min_s=0.001,
    latency_max_s=0.02,
    skew_s=0.5,
)


class Wire:
    """Draws the fate of each message between two nodes, and counts rare ones.

    Example:
        >>> wire = Wire(random.Random(1), NetworkFaults(loss=1.0))
        >>> wire.delays("a", "b"), wire.count["message lost"]
        ([], 1)
    """

    def __init__(self, rng: random.Random, faults: NetworkFaults) -> None:
        self.rng, self.faults = rng, faults
        self.count: Counter[str] = Counter()
        # By how much all wall clocks were set forward since the beginning.
        self.jumped_us = 0
        self._partitions: Counter[frozenset[str]] = Counter()

    def latency_s(self) -> float:
        """Draw how long a message takes that is neither lost nor late."""
        least, most = self.faults.latency_min_s, self.faults.latency_max_s
        return least + (most - least) * self.rng.random()

    def delays(self, source: str, target: str) -> list[float]:
        """Draw when the copies of a message arrive: none, one or two of them."""
        faults, draw = self.faults, self.rng.random
        copies = 1
        if faults.duplication and draw() < faults.duplication:
            self.count["message duplicated"] += 1
            copies = 2
        delays = []
        for _ in range(copies):
            if self.is_partitioned(source, target):
                self.count["message cut off"] += 1
            elif faults.loss and draw() < faults.loss:
                self.count["message lost"] += 1
            elif faults.tail and draw() < faults.tail:
                self.count["message late"] += 1
                delays.append(draw() * faults.tail_s)
            else:
                delays.append(self.latency_s())
        return delays

    def segment_delay_s(self) -> float:
        """Draw how long a piece of a byte stream takes; what is lost is sent again, so is late."""
        faults, draw = self.faults, self.rng.random
        delay_s = self.latency_s()
        if faults.loss and draw() < faults.loss:
            self.count["segment sent again"] += 1
            delay_s += 0.2 + faults.latency_max_s
        if faults.tail and draw() < faults.tail:
            self.count["segment late"] += 1
            delay_s += draw() * faults.tail_s
        return delay_s

    def is_partitioned(self, a: str, b: str) -> bool:
        """Return whether a partition is between two nodes."""
        return bool(self._partitions) and self._partitions[frozenset((a, b))] > 0

    def partition(self, a: str, b: str) -> None:
        """Partition two nodes; partitions of the same two add up."""
        self.count["partition"] += 1
        self._partitions[frozenset((a, b))] += 1

    def heal(self, a: str, b: str) -> None:
        """End one partition between two nodes."""
        pair = frozenset((a, b))
        if self._partitions[pair] > 1:
            self._partitions[pair] -= 1
        else:
            del self._partitions[pair]

    def heal_all(self) -> None:
        """End every partition."""
        self._partitions.clear()
