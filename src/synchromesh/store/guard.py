"""Who is inside a unit of work: rooms above ask it before they call, wait or publish."""

from __future__ import annotations

from contextvars import ContextVar

from synchromesh.errors import ForeignAwait

in_unit: ContextVar[str | None] = ContextVar("synchromesh_in_unit", default=None)
"""The name of the unit of work that is driven in this context, or None outside of any."""


def refuse_in_unit(what: str) -> None:
    """Raise `ForeignAwait` where a unit of work is being driven; `what` was tried.

    Example:
        >>> refuse_in_unit("a call")
        >>> token = in_unit.set("reserve")
        >>> try:
        ...     refuse_in_unit("a call")
        ... except ForeignAwait as error:
        ...     print(error.message)
        ... finally:
        ...     in_unit.reset(token)
        unit 'reserve' tried a call; a unit may await nothing but itself: do it before or after
    """
    name = in_unit.get()
    if name is not None:
        raise ForeignAwait(
            f"unit {name!r} tried {what}; a unit may await nothing but itself: "
            "do it before or after"
        )
