"""The priority of a call: what is shed first where there is more work than can be done.

It is set inside the system, by a route of the gateway or by a saga, and travels in the signed
credential of each hop. Nothing that comes from outside is asked for it.

Source: Google, "Site Reliability Engineering" (2016), chapter 21, "Criticality"; Netflix,
"Keeping Netflix Reliable Using Prioritized Load Shedding" (2020).
"""

from __future__ import annotations

from enum import IntEnum

from synchromesh.errors import ConfigError


class Priority(IntEnum):
    """Orders calls by who waits for them; the lowest are shed first.

    Attributes:
        BATCH: nobody waits: exports, imports, scheduled work.
        RETRY: an attempt after the first one.
        SAGA: steps of sagas and messages: they are tried again later by themselves.
        INTERACTIVE: a person waits.

    Example:
        >>> min(Priority.INTERACTIVE, Priority.RETRY).name
        'RETRY'
    """

    BATCH = 0
    RETRY = 1
    SAGA = 2
    INTERACTIVE = 3


def priority_of(name: object) -> Priority:
    """Return the priority that a route or a saga may be given by name.

    Raises:
        ConfigError: it is none of "interactive", "saga" and "batch".

    Example:
        >>> priority_of("batch").name
        'BATCH'
    """
    priority = _BY_NAME.get(name) if isinstance(name, str) else None
    if priority is None:
        raise ConfigError(
            f"priority is {str(name)[:40]!r}; make it one of {', '.join(sorted(_BY_NAME))}"
        )
    return priority


# A retry is no choice: an attempt becomes one.
_BY_NAME = {each.name.lower(): each for each in Priority if each is not Priority.RETRY}
