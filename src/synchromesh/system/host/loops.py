"""Which event loop runs a system: asyncio's own, or uvloop where the extra `fast` is installed."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable
from typing import Any

from synchromesh.errors import MissingExtra

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def loop_factory(name: str) -> LoopFactory:
    """Return what makes the event loop of that name, "asyncio" or "uvloop".

    Raises:
        MissingExtra: uvloop is asked for and not installed.
    """
    if name == "asyncio":
        return asyncio.new_event_loop
    try:
        # Imported only where it is asked for: it comes with an extra.
        uvloop: Any = importlib.import_module("uvloop")
    except ImportError as error:
        raise MissingExtra("fast", needed_for=f'[system] loop = "{name}"') from error
    factory: LoopFactory = uvloop.new_event_loop
    return factory
