"""All actions of operators, by name."""

from __future__ import annotations

from collections.abc import Sequence

from synchromesh.errors import UnknownOperation
from synchromesh.system.control import (
    db_actions,
    event_actions,
    message_actions,
    personal_actions,
    projection_actions,
    saga_actions,
    schedule_actions,
)
from synchromesh.system.control.actions import Action

_ROOMS: Sequence[Sequence[Action]] = (
    db_actions.ACTIONS,
    event_actions.ACTIONS,
    projection_actions.ACTIONS,
    saga_actions.ACTIONS,
    schedule_actions.ACTIONS,
    message_actions.ACTIONS,
    personal_actions.ACTIONS,
)

ACTIONS: dict[str, Action] = {action.name: action for room in _ROOMS for action in room}


def find_action(name: str) -> Action:
    """Return an action.

    Raises:
        UnknownOperation: there is none of this name.
    """
    action = ACTIONS.get(name)
    if action is None:
        raise UnknownOperation(f"there is no action {name!r}; there are {', '.join(ACTIONS)}")
    return action
