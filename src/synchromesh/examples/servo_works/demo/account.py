"""What was seen while the demo ran: written beside the databases, and judged with them."""

from pathlib import Path
from typing import Any

from msgspec import Struct, field, json

from synchromesh.telemetry import SpanRecord

FILE_NAME = "account.json"


class Turn(Struct, frozen=True):
    """A breaker went from one state to another; `at` is a moment in ISO 8601."""

    at: str
    edge: str
    before: str
    after: str


class Kill(Struct, frozen=True):
    """The system was killed while the sagas named here had not ended; its databases say so.

    `recovered` is how many the engine continued after the next start.
    """

    at_us: int
    in_flight: tuple[str, ...]
    recovered: int


class Account(Struct):
    """All that the demo saw from outside, as a client and by the control socket.

    Attributes:
        told: what the client was told of each order: "placed", "accepted" or "rejected".
        requests, failures: requests that were sent; those that failed and why. Each of those was
            sent again under its key.
        told_at_kill: how many orders had their answer when the system was killed.
        spans: of one trace, of a saga that was in flight then, where there is one.
        reasons: why sagas were undone.
        undone: the story of one of them.
        notes: what went otherwise than it should have.
    """

    orders: int
    took_s: float = 0.0
    told: dict[str, str] = field(default_factory=dict)
    requests: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    told_at_kill: int = 0
    kill: Kill | None = None
    turns: list[Turn] = field(default_factory=list)
    spans: list[SpanRecord] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)
    undone: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)

    def note_failure(self, reason: str) -> None:
        """Count a request that failed."""
        self.failures[reason] = self.failures.get(reason, 0) + 1

    @property
    def failed(self) -> int:
        """How many requests failed."""
        return sum(self.failures.values())

    def save(self, folder: Path) -> None:
        """Write the account into a folder."""
        (folder / FILE_NAME).write_bytes(json.format(json.encode(self), indent=1))


def load(folder: Path) -> Account:
    """Return the account in a folder. Raises FileNotFoundError, or ValueError for another file."""
    return json.decode((folder / FILE_NAME).read_bytes(), type=Account)
