#!/bin/sh
# A paced online backup never ends beside a busy writer, unless it holds a read transaction.
#
# `Connection.backup(target, pages=50)` copies in steps, so that a service can go on. One expects the
# copy to take longer while others write. In WAL mode readers have snapshots, after all. But each
# step begins a read transaction of its own, and where another connection has committed meanwhile
# the copy begins anew, from the first page. A writer that commits more often than the whole copy
# takes makes it run for ever; the progress callback counts down and jumps back. No error is raised.
#
# What to do: `begin` and one `select` on the source connection before `backup()`. All steps then
# see that snapshot, and the copy ends. The write-ahead log cannot be reset until it has.
# (`pages=-1`, one step, ends too, and is not paced.)
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check pysqlite3-binary==0.5.4
cat > "$work/shown.py" <<'PY'
import sys

from pysqlite3 import dbapi2 as sqlite3


def copied(path, *, holds):
    """Copy in steps, with a commit of another connection after each; return what came of it."""
    writer = sqlite3.connect(path, isolation_level=None)
    source = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
    steps = []

    def between(_, remaining, total):
        steps.append(remaining)
        if len(steps) > 10 * total:
            raise TimeoutError
        writer.execute("insert into entry values ('later')")

    if holds:
        source.execute("begin")
        source.execute("select 1 from entry limit 1").fetchall()
    try:
        source.backup(sqlite3.connect(":memory:"), pages=10, progress=between)
        return "ends"
    except TimeoutError:
        return f"never ends: {steps[:4]} pages are left after each step"


path = f"{sys.argv[1]}/shop.db"
with sqlite3.connect(path) as database:
    database.execute("pragma journal_mode = wal")
    database.execute("create table entry(name text)")
    database.executemany("insert into entry values (?)", [("x" * 500,)] * 1000)
alone, held = copied(path, holds=False), copied(path, holds=True)
print(f"version: SQLite {sqlite3.sqlite_version}, pysqlite3-binary 0.5.4")
print("behaviour: one would expect a backup in steps to end beside a writer; it begins anew each time")
print(f"seen: each step by itself: {alone}; in one read transaction: {held}")
sys.exit(0 if alone.startswith("never") and held == "ends" else 1)
PY
"$work/venv/bin/python" "$work/shown.py" "$work"
