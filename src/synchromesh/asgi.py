"""Lets an existing ASGI application join a running system: FastAPI, Starlette, or any other.

`join` wraps the application whole, and no handler of it changes:

    lifespan:  the application starts → registered once its address accepts → SIGTERM: unlisted →
               the server has drained → the lease ends → the application stops
    request:   credential → deadline → context → the application

A request of a service of the system carries a signed credential: it is verified, and who calls, for
whom, until when and in which trace is what `current` tells within the handler, and what the calls
that are made there go on with. A request without one is that of an ordinary client, and goes
through as it came; only its trace is read.

An application that the system itself is to run needs no `join`: it is named as the `app` of a
service, and `current` tells the same in its handlers.

What a service of one's own has, and this has not: an inbox. A command that is repeated under its
key runs again, and nothing is undone by the key of a command.

Source: the ASGI specification, version 3.0; W3C Trace Context.
"""

from __future__ import annotations

from synchromesh.system.host.joined_app import Joined, JoinedContext, current, join

__all__ = ["Joined", "JoinedContext", "current", "join"]
