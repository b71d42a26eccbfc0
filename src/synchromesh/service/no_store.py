"""What a service of queries only has in place of a database."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NoReturn, TypeVar

from synchromesh.errors import ContractError
from synchromesh.sealing import SubjectKeys
from synchromesh.store import (
    SOLE,
    Beside,
    Dialect,
    Fetched,
    Once,
    Owners,
    Recorded,
    Row,
    SqlValue,
    Unit,
)

T = TypeVar("T")


class NoStore:
    """Is the `Store` of a service that keeps nothing: no file is opened, and any use is a mistake.

    Example:
        >>> NoStore("quoting")
        <NoStore of quoting>
    """

    log_id = ""
    place = ""
    broken = None
    full = None
    owners: Owners = SOLE

    def __init__(self, service: str) -> None:
        self.service = service

    async def write(self, body: Callable[[Unit], Awaitable[T]], *, name: str) -> T:  # noqa: ARG002
        """Raise `ContractError`."""
        self._refuse(name)

    async def write_once(
        self,
        body: Callable[[Unit], Awaitable[bytes]],  # noqa: ARG002
        once: Once,  # noqa: ARG002
        *,
        name: str,
    ) -> Recorded:
        """Raise `ContractError`."""
        self._refuse(name)

    async def read(self, sql: str, *values: SqlValue) -> list[Row]:  # noqa: ARG002
        """Raise `ContractError`."""
        self._refuse("a read")

    async def fetch(self, sql: str, *values: SqlValue) -> Fetched:  # noqa: ARG002
        """Raise `ContractError`."""
        self._refuse("a read")

    @property
    def dialect(self) -> Dialect:
        """Raise `ContractError`."""
        self._refuse("SQL")

    @property
    def beside(self) -> Beside:
        """Raise `ContractError`."""
        self._refuse("what is done beside it")

    async def reaches(self, place: str) -> bool:  # noqa: ARG002
        """Return False: there is no connection."""
        return False

    def listen(self, topic: str, listener: Callable[[], None]) -> Callable[[], None]:  # noqa: ARG002
        """Raise `ContractError`."""
        self._refuse(f"listening to {topic}")

    @property
    def vault(self) -> SubjectKeys:
        """Raise `ContractError`."""
        self._refuse("a personal value")

    async def close(self) -> None:
        """Do nothing: nothing is open."""

    def _refuse(self, what: str) -> NoReturn:
        raise ContractError(
            f"{what} in {self.service!r}, which has queries only and therefore no database; give "
            "it migrations, and it has one"
        )

    def __repr__(self) -> str:
        return f"<NoStore of {self.service}>"
