"""How far a publisher's messages have passed through a stream; pure, and names of what they pass.

A stream is a queue outside of both services: what its consumers acknowledge is gone from it. So
all of a publisher's messages before the oldest one that is still there were taken:

    put, sequence 7 ──▶ mark: up to position 40 all is at 7 or before
    oldest in the stream is 8 ──▶ up to position 40 all was taken
"""

from __future__ import annotations

import re
import zlib
from collections import deque
from typing import NamedTuple

# Two processes that differ in it would break the order of keys, so that nobody can set it.
PARTITIONS = 16
MARKS_MAX = 1024


def partition_of(scope: str) -> int:
    """Return the partition of a partition key: the same in every process and release.

    Example:
        >>> partition_of("SX90"), partition_of("PX12")
        (14, 4)
    """
    return zlib.crc32(scope.encode()) % PARTITIONS


class StreamNames(NamedTuple):
    """Names what belongs to the stream of a system, in one of its incarnations.

    A stream that is made anew has another incarnation: what is published for one that is gone is
    answered by nobody, and is never taken before what was lost with it.

    Example:
        >>> names = StreamNames.of("servo works", "f3a1")
        >>> names.stream, names.subjects
        ('synchromesh-servo=20works', 'synchromesh.servo=20works.f3a1.>')
        >>> names.subject("stock", "shop.sold", "SX90")
        'synchromesh.servo=20works.f3a1.stock.14.shop.sold'
        >>> names.sent("shop", "stock")
        'synchromesh.servo=20works.f3a1.stock.*.shop.>'
        >>> names.received("stock", 7)
        'synchromesh.servo=20works.*.stock.7.>'
    """

    system: str
    incarnation: str

    @classmethod
    def of(cls, system: str, incarnation: str = "*") -> StreamNames:
        """Name them for a system, whose name may have any letters."""
        return cls(
            re.sub(r"[^A-Za-z0-9_-]", lambda found: f"={ord(found[0]):x}", system), incarnation
        )

    @property
    def stream(self) -> str:
        """The name of the stream; it is the same in all incarnations."""
        return f"synchromesh-{self.system}"

    @property
    def subjects(self) -> str:
        """All subjects of the stream."""
        return f"synchromesh.{self.system}.{self.incarnation}.>"

    def subject(self, subscriber: str, name: str, scope: str) -> str:
        """Return the subject of a message of an event and a partition key to a subscriber."""
        return f"{self.subjects[:-1]}{subscriber}.{partition_of(scope)}.{name}"

    def sent(self, publisher: str, subscriber: str) -> str:
        """Return the subjects of all messages of a publisher to a subscriber."""
        return f"{self.subjects[:-1]}{subscriber}.*.{publisher}.>"

    def received(self, subscriber: str, partition: int) -> str:
        """Return the subjects of a partition of what a subscriber takes, of any incarnation."""
        return f"synchromesh.{self.system}.*.{subscriber}.{partition}.>"

    @staticmethod
    def durable(subscriber: str, partition: int) -> str:
        """Return the name of the consumer of a partition."""
        return f"{subscriber}-{partition}"


class Passage:
    """Follows what one publisher has put into a stream for one subscriber.

    Args:
        position: up to which all was taken before.

    Attributes:
        reached: the position up to which all is known to be taken.
        last: the highest sequence number of the stream that a message was given.

    Example:
        >>> passage = Passage(0)
        >>> passage.put(7)
        >>> passage.mark(40)  # whether any of it is not known as taken
        True
        >>> passage.left(oldest=8)
        40
    """

    def __init__(self, position: int) -> None:
        self.reached = position
        self.last = 0
        self._marks: deque[tuple[int, int]] = deque()

    def put(self, sequence: int) -> None:
        """Note that a message is in the stream."""
        self.last = max(self.last, sequence)

    def mark(self, position: int) -> bool:
        """Note up to which position all was put; return whether any of it is not known as taken."""
        if position > (self._marks[-1][1] if self._marks else self.reached):
            if len(self._marks) == MARKS_MAX:
                self._marks.pop()  # the newest two become one: it is only known later
            self._marks.append((self.last, position))
        return bool(self._marks)

    def left(self, oldest: int) -> int:
        """Return up to which position all was taken.

        Args:
            oldest: the first sequence number that is still in the stream, looked for after the last
                `mark`; 0 where there is none.
        """
        while self._marks and (not oldest or self._marks[0][0] < oldest):
            self.reached = self._marks.popleft()[1]
        return self.reached

    def __repr__(self) -> str:
        return f"<Passage taken up to {self.reached}, {len(self._marks)} marks, last {self.last}>"
