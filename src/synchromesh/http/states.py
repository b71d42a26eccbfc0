"""The states of a server connection: what is read next, who answers, and for what time is given.

Reading and answering go on side by side, since a client may send its next requests ahead:

    FRESH ──began──▶ HEAD ──judged──▶ BODY ──complete──▶ IDLE ──began──▶ HEAD
      └──────────────┴───────closed───┴───────────────────┴──────────▶ CLOSED

    FREE ──taken──▶ BEGUN ──waits──▶ BUSY ──answered──▶ FREE
      │               └────answered──────────────────────▲
      └──ended──▶ LINGERING                        and LOST from anywhere

BEGUN is an answer within the turn in which its request was taken: what does not wait never leaves
it. After CLOSED nothing more is parsed: the last request has come, one was refused, or the server
drains. A pure machine; `protocol` is its shell.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeVar

S = TypeVar("S", bound=IntEnum)
E = TypeVar("E", bound=IntEnum)


class ReadingState(IntEnum):
    """Names the states of the reading side: what the client is to send next."""

    FRESH = 0
    IDLE = 1
    HEAD = 2
    BODY = 3
    CLOSED = 4


class ReadingEvent(IntEnum):
    """Names the events of the reading side."""

    BEGAN = 0
    JUDGED = 1
    COMPLETE = 2
    CLOSED = 3


class Replying(IntEnum):
    """Names the states of the writing side: whether a request is being answered."""

    FREE = 0
    BEGUN = 1
    BUSY = 2
    LINGERING = 3
    LOST = 4


class ReplyingEvent(IntEnum):
    """Names the events of the writing side."""

    TAKEN = 0
    WAITS = 1
    ANSWERED = 2
    ENDED = 3
    LOST = 4


# Both machines look their next state up here, and diagrams are drawn from it.
READING: Final[tuple[tuple[ReadingState, ReadingEvent, ReadingState], ...]] = (
    (ReadingState.FRESH, ReadingEvent.BEGAN, ReadingState.HEAD),
    (ReadingState.IDLE, ReadingEvent.BEGAN, ReadingState.HEAD),
    (ReadingState.HEAD, ReadingEvent.JUDGED, ReadingState.BODY),
    (ReadingState.BODY, ReadingEvent.COMPLETE, ReadingState.IDLE),
    *((before, ReadingEvent.CLOSED, ReadingState.CLOSED) for before in ReadingState),
)
REPLYING: Final[tuple[tuple[Replying, ReplyingEvent, Replying], ...]] = (
    (Replying.FREE, ReplyingEvent.TAKEN, Replying.BEGUN),
    (Replying.BEGUN, ReplyingEvent.WAITS, Replying.BUSY),
    (Replying.BEGUN, ReplyingEvent.ANSWERED, Replying.FREE),
    (Replying.BUSY, ReplyingEvent.ANSWERED, Replying.FREE),
    (Replying.FREE, ReplyingEvent.ENDED, Replying.LINGERING),
    *((before, ReplyingEvent.LOST, Replying.LOST) for before in Replying),
)


def _table(rows: tuple[tuple[S, E, S], ...]) -> dict[S, dict[E, S]]:
    table: dict[S, dict[E, S]] = {}
    for before, event, after in rows:
        table.setdefault(before, {})[event] = after
    return table


# By state, then event: a KeyError is a bug of the shell.
READS: Final = _table(READING)
REPLIES: Final = _table(REPLYING)


@dataclass(frozen=True, slots=True)
class Wait:
    """A read timeout: which limit, and the status that it is answered with.

    Attributes:
        limit: the field of `Limits` that says how long.
        status: what it is answered when it does not come; 0 closes without a word.
        what: how the answer names it.
    """

    limit: str
    status: int = 0
    what: str = ""


_LINGER: Final = Wait("linger_s")
# Which time runs in which state of reading. A connection that is free waits for a request; one
# that answers waits only for what has begun to come.
WAITS: Final[dict[ReadingState, Wait]] = {
    ReadingState.FRESH: Wait("head_s"),
    ReadingState.IDLE: Wait("idle_s"),
    ReadingState.HEAD: Wait("head_s", 408, "head"),
    ReadingState.BODY: Wait("body_s", 408, "body"),
}


def wait_of(reading: ReadingState, answering: Replying) -> Wait | None:
    """Return the read timeout that runs in a pair of states, None for none.

    Example:
        >>> wait_of(ReadingState.IDLE, Replying.FREE)
        Wait(limit='idle_s', status=0, what='')
        >>> wait_of(ReadingState.IDLE, Replying.BUSY) is None
        True
        >>> wait_of(ReadingState.HEAD, Replying.BUSY).what
        'head'
    """
    if answering is Replying.LINGERING:
        return _LINGER
    wait = WAITS.get(reading)
    if wait is None or answering is Replying.LOST:
        return None
    return wait if wait.status or answering is Replying.FREE else None


# By answering, then reading: the same, for each of a connection's turns.
WAITED: Final = {
    answering: {reading: wait_of(reading, answering) for reading in ReadingState}
    for answering in Replying
}


def doing_of(reading: ReadingState, answering: Replying) -> str:
    """Return what a connection does, in a word.

    Example:
        >>> doing_of(ReadingState.FRESH, Replying.FREE), doing_of(ReadingState.HEAD, Replying.FREE)
        ('idle', 'head')
    """
    if answering is Replying.FREE:
        return "idle" if reading is ReadingState.FRESH else reading.name.lower()
    return "answering" if answering in (Replying.BEGUN, Replying.BUSY) else "ending"
