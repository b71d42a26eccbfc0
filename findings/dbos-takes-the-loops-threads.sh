#!/bin/sh
# After DBOS.destroy() the event loop of the application can start no thread, and look up no host name.
#
# The first await of any DBOS coroutine sets DBOS's own pool of threads as the default executor of the
# running loop, which is not DBOS's: from then on whatever the application or a library of its hands to
# threads (asyncio.to_thread, run_in_executor, loop.getaddrinfo under each connection to a host by name)
# runs there. DBOS.destroy() shuts that pool down and does not give the loop its own back. One would
# expect the end of one library to leave the loop as it was; instead all of these raise "cannot schedule
# new futures after shutdown" for as long as the loop lives: an application that stops its workflows
# first and closes its other clients after, a test that destroys DBOS within a loop that others share.
#
# What to do: give the loop an executor of yours after destroy(): loop.set_default_executor(
# ThreadPoolExecutor()); or run what uses DBOS in a loop that ends with it.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check dbos==3.4.0
cat > "$work/shown.py" <<'PY'
import asyncio
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

from dbos import DBOS

folder = sys.argv[1]


@DBOS.step()
async def add(a: int, b: int) -> int:
    return a + b


@DBOS.workflow()
async def sums() -> int:
    return await add(1, 2)


async def tried(awaitable):
    try:
        await awaitable
    except RuntimeError as error:
        return str(error)
    return "works"


async def main():
    loop = asyncio.get_running_loop()
    DBOS(config={"name": "shown", "system_database_url": f"sqlite:///{folder}/system.sqlite"})
    DBOS.launch()
    before = await tried(asyncio.to_thread(int))
    done = await sums()
    DBOS.destroy()
    threads = await tried(asyncio.to_thread(int))
    names = await tried(loop.getaddrinfo("localhost", 80))
    loop.set_default_executor(ThreadPoolExecutor())
    return done, before, threads, names, await tried(asyncio.to_thread(int))


logging.disable()
seen = asyncio.run(main())
print(f"version: dbos {version('dbos')}")
print("behaviour: one would expect the loop to be as before DBOS once DBOS is destroyed")
print(f"seen: workflow, to_thread before, to_thread and getaddrinfo after, mended: {seen}")
refused = "cannot schedule new futures after shutdown"
sys.exit(0 if seen == (3, "works", refused, refused, "works") else 1)
PY
"$work/venv/bin/python" "$work/shown.py" "$work"
