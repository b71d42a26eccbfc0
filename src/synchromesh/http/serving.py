"""What all connections of one server share: who answers, within which limits, and for whom."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from synchromesh.eager import TaskStarter
from synchromesh.errors import RemoteFailed, Shed
from synchromesh.http.date import DateLine
from synchromesh.http.exchange import HttpExchange
from synchromesh.http.limits import Limits
from synchromesh.http.message import HttpRequest, HttpResponse, error_response
from synchromesh.http.outflow import Taken
from synchromesh.http.pace import Patience
from synchromesh.http.reading import RequestReader, Streaming
from synchromesh.http.together import TurnWrites

Handler: TypeAlias = Callable[[HttpRequest], Awaitable[HttpResponse]]


class Connection(Protocol):
    """One connection, as the server sees it; its `peer` is `host:port`, or "" for not known."""

    peer: str
    reader: RequestReader

    @property
    def is_idle(self) -> bool:
        """True where nothing of a request has come whose answer is not taken."""
        ...

    def make_room(self) -> None:
        """End an idle connection: others need its place."""
        ...

    def drain(self, idle_s: float) -> None:
        """Answer what has been accepted or begun, and what comes within `idle_s`, then close."""
        ...

    def cut(self) -> None:
        """Drop the connection at once, with what it was doing."""
        ...


class ConnectionOwner(Protocol):
    """Tracks the connections of one listener; the server is one."""

    def opened(self, connection: Connection) -> bool:
        """Count the connection in, or return False to have it answered 503 and closed."""
        ...

    def closed(self, connection: Connection, handling: asyncio.Task[object] | None) -> None:
        """Count it out; `handling` has been cancelled and may still need a moment to end."""
        ...


@dataclass(slots=True)
class Serving:
    """Is what all connections of one server share; who answers may be replaced (`take_over`).

    Attributes:
        handler: answers complete requests.
        begin: answers those that it can without a task (see `FastHandler`); None where none can.
        streaming: answers the requests that it wants to have as streams.
        start: makes the tasks of handlers, and runs their first steps.
        taken: counts what a client has taken of what it was sent.
        patience: how slowly it may.
        date: says when an answer was made.
        together: gathers the writes of a turn; None on loops that do so by themselves.
        is_fast: False takes the slow way everywhere, for tests that compare the two.
        refused: told the peer and the status of an answer that no handler gave.
    """

    handler: Handler
    begin: Callable[[HttpExchange], bool] | None
    streaming: Streaming | None
    limits: Limits
    owner: ConnectionOwner
    start: TaskStarter
    taken: Taken
    patience: Patience
    date: DateLine
    together: TurnWrites | None
    is_fast: bool
    refused: Callable[[str, int], None]


FULL: Final = error_response(
    Shed("too many connections are open, or the server drains; try again later")
)
FAILED: Final = error_response(
    RemoteFailed("the handler failed; the reason is in the log of this service")
)
