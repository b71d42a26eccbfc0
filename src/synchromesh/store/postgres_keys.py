"""The keys of subjects of a service on PostgreSQL: there are none yet, and any use is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from synchromesh.errors import ContractError
from synchromesh.sealing import SubjectRecord


class AbsentKeys:
    """Is the `SubjectKeys` and `KeyReader` of a database with which no keys are kept.

    Example:
        >>> AbsentKeys("shop").is_there
        False
    """

    def __init__(self, service: str) -> None:
        self._service = service
        self.expected = self.lost = self.left_over = ""
        self.on_left_over: Callable[[], None] = _nobody
        self.is_there = False

    def prepare(self) -> str:
        """Raise `ContractError`."""
        self._refuse()

    def seal(self, subject: str, place: str, data: bytes) -> str | None:  # noqa: ARG002
        """Raise `ContractError`."""
        self._refuse()

    def open(self, subject: str, place: str, sealed: str) -> bytes | None:  # noqa: ARG002
        """Raise `ContractError`."""
        self._refuse()

    def is_erased(self, subject: str) -> bool:  # noqa: ARG002
        """Return False: nobody has a key that could be deleted."""
        return False

    def erase(self, subject: str, *, now_us: int, who: str, why: str) -> SubjectRecord | None:  # noqa: ARG002
        """Raise `ContractError`."""
        self._refuse()

    def overwrite(self) -> bool:
        """Return True: nothing is left over."""
        return True

    def find(self, subject: str) -> SubjectRecord | None:  # noqa: ARG002
        """Return None."""
        return None

    def subjects(self, *, is_erased: bool, limit: int) -> list[SubjectRecord]:  # noqa: ARG002
        """Return nobody."""
        return []

    def accesses(self, subject: str, limit: int = 100) -> list[tuple[int, str, str]]:  # noqa: ARG002
        """Return none."""
        return []

    def faults(self, expected: str) -> list[str]:
        """Return that the keys which the database was used with are not there."""
        return [f"the keys {expected} of its personal values are not there"] if expected else []

    def note_access(self, subject: str, *, now_us: int, who: str, why: str) -> None:  # noqa: ARG002
        """Raise `ContractError`."""
        self._refuse()

    def give_up(self, *, now_us: int, who: str, why: str) -> str:  # noqa: ARG002
        """Raise `ContractError`."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ContractError(
            f"{self._service} has a Personal field and its database is on PostgreSQL, where keys "
            "of subjects are not kept yet: keep this service on SQLite ([engine] sqlite)"
        )


def _nobody() -> None:
    """Is called by nobody."""
