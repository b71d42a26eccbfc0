#!/bin/sh
# Interrupting a slow UPDATE through aiosqlite undoes the whole transaction, and what follows commits.
#
# `Connection.interrupt()` is how a statement that took too long is stopped. One expects it to end
# that statement, as it does where the statement is a SELECT. Where it writes, SQLite rolls back the
# transaction around it, and Python's sqlite3 begins another one, unasked, at the next INSERT. A unit
# that takes the error for a time-out and goes on commits its second half without its first. No call
# fails but the interrupted one.
#
# What to do: after any error that may be an interrupt or a full disk, look at `in_transaction` before
# the next statement; where it is False, run the whole unit again. With `isolation_level=None` and a
# BEGIN of your own the last COMMIT fails at least ("no transaction is active"), yet what followed the
# interrupt was stored statement by statement.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check aiosqlite==0.22.1
cat > "$work/shown.py" <<'PY'
import asyncio
import platform
import sqlite3
import sys
from importlib.metadata import version

import aiosqlite

# Either counts far longer than anybody waits; `begun()` says that it runs.
NUMBERS = "with recursive n(i) as (select begun() union all select i + 1 from n limit 4000000000)"
COUNT = f"({NUMBERS} select count(*) from n)"


async def unit(slow, isolation_level=""):
    """Store `first`, run and interrupt a slow statement, store `second`, commit."""
    loop, begun = asyncio.get_running_loop(), asyncio.Event()
    async with aiosqlite.connect(":memory:", isolation_level=isolation_level) as db:
        await db.create_function("begun", 0, lambda: loop.call_soon_threadsafe(begun.set) and 1)
        await db.execute("create table entry(name)")
        await db.commit()
        if isolation_level is None:
            await db.execute("begin")
        await db.execute("insert into entry values ('first')")
        running = asyncio.ensure_future(db.execute_fetchall(slow))
        await begun.wait()
        await db.interrupt()
        try:
            await running
        except sqlite3.OperationalError as error:
            said = str(error)
        is_open = db.in_transaction
        await db.execute("insert into entry values ('second')")
        try:
            await (db.commit() if isolation_level == "" else db.execute("commit"))
            ended = "committed"
        except sqlite3.OperationalError as error:
            ended = str(error).rpartition(" - ")[2]
        await db.rollback()
        rows = await db.execute_fetchall("select name from entry order by rowid")
    return said, is_open, ended, [name for (name,) in rows]


async def main():
    read = await asyncio.wait_for(unit(f"select {COUNT}"), 60)
    write = await asyncio.wait_for(unit(f"update entry set name = {COUNT}"), 60)
    by_hand = await asyncio.wait_for(unit(f"update entry set name = {COUNT}", None), 60)
    print(
        f"version: aiosqlite {version('aiosqlite')}, SQLite {sqlite3.sqlite_version},"
        f" CPython {platform.python_version()}"
    )
    print(
        "behaviour: one would expect interrupt() to undo the statement it stops and leave the"
        " transaction, as with a SELECT; a stopped UPDATE takes the rows before it along, and the"
        " commit at the end stores the rows after it, without an error"
    )
    print(
        "seen: (error, in_transaction after it, end, rows stored): "
        f"SELECT {read}; UPDATE {write}; UPDATE after an explicit BEGIN {by_hand}"
    )
    return (
        read != ("interrupted", True, "committed", ["first", "second"])
        or write != ("interrupted", False, "committed", ["second"])
        or by_hand != ("interrupted", False, "no transaction is active", ["second"])
    )


sys.exit(asyncio.run(main()))
PY
"$work/venv/bin/python" "$work/shown.py"
