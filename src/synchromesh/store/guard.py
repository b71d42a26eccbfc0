"""Whether code runs inside a unit of work: asked before a call, a wait or a publication."""

from __future__ import annotations

from contextvars import ContextVar

from synchromesh.errors import ForeignAwait

in_unit: ContextVar[str | None] = ContextVar("synchromesh_in_unit", default=None)
"""The name of the unit of work that runs in this context, or None outside of any."""


def refuse_in_unit(what: str) -> None:
    """Refuse `what` inside a unit of work: raise `ForeignAwait` if one is running in this context.

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
