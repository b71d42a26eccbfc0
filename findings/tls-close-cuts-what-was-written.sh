#!/bin/sh
# transport.close() of a TLS connection drops what was written to it, once a timer is over.
#
# "Buffered data will be flushed asynchronously" is what close() promises, and of a plain connection
# it is so, however slow the reader. One expects `ssl_shutdown_timeout` (30 s by default) to bound
# the exchange of close_notify after that, as its name says. It begins with close() and bounds the
# flush: a reader that is slower than that gets the beginning alone. asyncio and uvloop are alike in it,
# while get_write_buffer_size() says 0, for it does not count the transport below. So a server cannot
# see that something is unsent, and wait with its close().
#
# What to do: run ssl.SSLObject over the plain transport yourself, so that buffers, limits and the end
# are those of the plain connection; or close only when the other end has said that it has all.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    trustme==1.2.1 uvloop==0.22.1
cat > "$work/shown.py" <<'PY'
import asyncio
import platform
import socket
import ssl
import sys
import time

import trustme
import uvloop

SIZE = 32 << 20
authority = trustme.CA()
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
authority.issue_cert("localhost").configure_cert(context)
client = ssl.create_default_context()
authority.configure_trust(client)


def read_slowly(port, *, by_tls):
    """Read for some seconds, and return how many bytes came before the end."""
    got = 0
    with socket.create_connection(("127.0.0.1", port)) as plain:
        stream = client.wrap_socket(plain, server_hostname="localhost") if by_tls else plain
        while True:
            try:
                data = stream.recv(1 << 20)
            except (ssl.SSLError, OSError):
                return got
            if not data:
                return got
            got += len(data)
            time.sleep(len(data) / (8 << 20))


async def sent(*, by_tls):
    """Write all, close; return what is said to be unsent, and what the reader got."""
    unsent = []

    class Writes(asyncio.Protocol):
        def connection_made(self, transport):
            transport.write(bytes(SIZE))
            unsent.append(transport.get_write_buffer_size())
            transport.close()

    more = {"ssl": context, "ssl_shutdown_timeout": 1.0} if by_tls else {}
    server = await asyncio.get_running_loop().create_server(Writes, "127.0.0.1", 0, **more)
    port = server.sockets[0].getsockname()[1]
    got = await asyncio.to_thread(read_slowly, port, by_tls=by_tls)
    server.close()
    return unsent[0], got


is_so = True
print(f"version: CPython {platform.python_version()}, uvloop 0.22.1, {ssl.OPENSSL_VERSION}")
print("behaviour: one would expect close() to send what was written; with TLS a timer cuts it off")
for name, loop in (("asyncio", asyncio.new_event_loop), ("uvloop", uvloop.new_event_loop)):
    with asyncio.Runner(loop_factory=loop) as runner:
        plain = runner.run(sent(by_tls=False))
        secured = runner.run(sent(by_tls=True))
    print(f"seen: {name}: of {SIZE} bytes plain {plain[1]} came; by TLS {secured[1]}, of which "
          f"{secured[0]} were said to be unsent at close()")
    is_so = is_so and plain[1] == SIZE and secured[1] < SIZE
sys.exit(0 if is_so else 1)
PY
"$work/venv/bin/python" "$work/shown.py"
