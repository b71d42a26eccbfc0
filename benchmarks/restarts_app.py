"""The system whose gateway is replaced, and reloaded, under load: a service, a POST for everybody.

A reload takes up what has changed: the system's folder has a definition of its own, `front.py`,
which is written anew with one more route each time.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.app import Shelf
from synchromesh import Gateway, Route

_CONFIG = """
[system]
name = "restarts"

[services.shelf]
app = "benchmarks.app:shelf"

[gateway]
app = "front:gateway"
"""
_FRONT = """
from benchmarks.restarts_app import gateway_of

gateway = gateway_of({version})
"""


def gateway_of(version: int) -> Gateway:
    """Return the gateway with what clients ask for, and a route that is of this version alone."""
    return Gateway(
        routes=[
            Route("POST /look", Shelf.look, public=True),
            Route(f"POST /look-{version}", Shelf.look, public=True),
        ]
    )


def write(folder: Path, version: int) -> None:
    """Write the system as it is at a version."""
    (folder / "synchromesh.toml").write_text(_CONFIG)
    (folder / "front.py").write_text(_FRONT.format(version=version))
