"""Which event loop runs a system: uvloop where the extra `fast` is installed, else asyncio's."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
from collections.abc import Callable

from synchromesh.errors import MissingExtra

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def loop_factory(name: str) -> LoopFactory:
    """Return the factory of an event loop: "asyncio", "uvloop", or "auto" for the better one here.

    Raises:
        MissingExtra: uvloop is asked for and not installed.
    """
    if name == "asyncio" or (name == "auto" and not _has_uvloop()):
        return asyncio.new_event_loop
    if not _has_uvloop():
        raise MissingExtra("fast", needed_for=f'[system] loop = "{name}"')
    # Imported only where it is asked for: it comes with an extra.
    factory: LoopFactory = importlib.import_module(
        "synchromesh.system.host.precise_loop"
    ).PreciseLoop
    return factory


def _has_uvloop() -> bool:
    try:
        return importlib.util.find_spec("uvloop") is not None
    except ValueError:  # it is kept from being imported
        return False
