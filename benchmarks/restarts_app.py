"""The system whose gateway is replaced under load: one service, and a POST for everybody."""

from __future__ import annotations

from benchmarks.app import Shelf
from synchromesh import Gateway, Route

CONFIG = """
[system]
name = "restarts"

[services.shelf]
app = "benchmarks.app:shelf"

[gateway]
app = "benchmarks.restarts_app:gateway"
"""

gateway = Gateway(routes=[Route("POST /look", Shelf.look, public=True)])
