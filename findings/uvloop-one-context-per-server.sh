#!/bin/sh
# uvloop keeps one contextvars.Context for each server, and all its connections write into it.
#
# On asyncio a protocol that makes a span current in `data_received` finds it there at the next
# message of the same connection, and nowhere else: each connection is read in a context of its own.
# uvloop runs the callbacks of every connection that a server accepted in the same context. The span
# that one connection made current is the parent of what the others start, without an error or a
# warning; a connection that is accepted later begins with it.
#
# What to do: never attach a span, baggage or any other context variable in a callback of a protocol.
# Keep it in an attribute of the protocol, and attach it in the task that serves the request, which
# has a copy of the context. `asyncio.start_server` is safe: its callback runs in such a task.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    uvloop==0.23.0 opentelemetry-sdk==1.45.2
cat > "$work/shown.py" <<'PY'
import asyncio
import platform
import sys
from importlib.metadata import version

import uvloop
from opentelemetry import context, trace
from opentelemetry.sdk.trace import TracerProvider

tracer = TracerProvider().get_tracer("shown")


class Spans(asyncio.Protocol):
    """Answers each line with the name of the span that is current, or begins one."""

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        said = data.decode().strip()
        if said != "which":
            context.attach(trace.set_span_in_context(tracer.start_span(said)))
        current = getattr(trace.get_current_span(), "name", "none")
        self.transport.write(current.encode() + b"\n")


async def ask(connection, said):
    reader, writer = connection
    writer.write(said.encode() + b"\n")
    return (await reader.readline()).decode().strip()


async def main():
    server = await asyncio.get_running_loop().create_server(Spans, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    one = await asyncio.open_connection("127.0.0.1", port)
    two = await asyncio.open_connection("127.0.0.1", port)
    await ask(one, "span-of-one")
    await ask(two, "span-of-two")
    late = await asyncio.open_connection("127.0.0.1", port)
    seen = [await ask(connection, "which") for connection in (one, two, late)]
    for _, writer in (one, two, late):
        writer.close()
    server.close()
    return seen


def on(factory):
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main())


plain, fast = on(asyncio.new_event_loop), on(uvloop.new_event_loop)
print(
    f"version: uvloop {version('uvloop')}, opentelemetry-sdk {version('opentelemetry-sdk')},"
    f" CPython {platform.python_version()}"
)
print(
    "behaviour: one would expect that a span made current in one connection's data_received is not"
    " current in another's, as on asyncio; on uvloop all connections of a server share one context"
)
print(f"seen: current span in connections one, two, late: asyncio {plain}, uvloop {fast}")
sys.exit(
    plain != ["span-of-one", "span-of-two", "none"]
    or fast != ["span-of-two", "span-of-two", "span-of-two"]
)
PY
"$work/venv/bin/python" "$work/shown.py"
