"""What passes between caller and callee, whatever carries it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from synchromesh.calls.contract import Operation
from synchromesh.codec import encode
from synchromesh.context import CallContext
from synchromesh.discovery import Endpoint
from synchromesh.errors import Rejection, SynchromeshError, from_problem, to_problem


@dataclass(frozen=True, slots=True)
class Request:
    """A call under way: canonical arguments, what travels with it, and the hop's credential."""

    operation: Operation[..., Any]
    arguments: bytes
    context: CallContext
    credential: str


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer under way: 2xx with the result's JSON, or another status with a problem's."""

    status: int
    body: bytes

    @property
    def is_answer(self) -> bool:
        """True where the operation answered; False where the body is a problem."""
        return 200 <= self.status < 300

    @classmethod
    def of_error(cls, error: SynchromeshError) -> Reply:
        """Return the reply that carries an error."""
        return cls(error.status, encode(to_problem(error)))

    def to_error(self, raises: Iterable[type[Rejection]]) -> SynchromeshError:
        """Return the error that a problem carries; a body that is none gives one by its status."""
        try:
            problem = msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            problem = {}
        return from_problem(
            problem if isinstance(problem, dict) else {}, status=self.status, raises=raises
        )


class Transport(Protocol):
    """Carries requests to instances of one kind of endpoint, such as HTTP."""

    async def send(self, endpoint: Endpoint, request: Request) -> Reply:
        """Send a request and return its reply; the caller bounds the time and may cancel.

        Raises:
            ConnectFailed: nothing was sent.
            ConnectionLost: it was sent and the answer will not come.
        """
        ...
