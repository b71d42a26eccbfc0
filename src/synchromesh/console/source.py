"""What the console is told by: the control API of the system, as the command line asks it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

# An answer of the control API: its JSON, decoded.
Told: TypeAlias = dict[str, Any]


class Source(Protocol):
    """Answers for a whole running system."""

    async def ask(self, method: str, path: str, body: Mapping[str, object] | None = None) -> Told:
        """Ask the control API, and return its answer.

        Raises:
            SynchromeshError: what it answers instead.
        """
        ...

    async def work(self) -> Told:
        """Return what was done of late.

        "work" is by route and operation, "edges" by edge, and "stood_in" by the branches of routes
        that came to something else than an answer.
        """
        ...

    async def policies(self) -> Told:
        """Return what guards each "edges", and what stands in on each of "branches"."""
        ...

    async def advice(self) -> Told:
        """Return what `synchromesh advise` says; it takes seconds.

        Raises:
            SynchromeshError: it failed, or said nothing in time.
        """
        ...


async def read(source: Source, action: str, **request: object) -> list[Any]:
    """Return what the services answer to an action that reads, joined."""
    told = await source.ask("POST", f"/actions/{action}", request)
    return list(told["answers"].values())
