"""The web console: pages of a running system, rendered on the server, on loopback."""

from synchromesh.console.markup import Markup, tag
from synchromesh.console.server import Console
from synchromesh.console.sessions import Sessions
from synchromesh.console.source import Source

__all__ = ["Console", "Markup", "Sessions", "Source", "tag"]
