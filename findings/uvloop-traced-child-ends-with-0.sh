#!/bin/sh
# uvloop reports the end of a child that a debugger of the same process has only stopped.
#
# A process that starts a child and traces it (ptrace, as profilers and debuggers do) waits for two
# kinds of news with the same call: that the child has stopped, and that it has ended. asyncio of
# CPython 3.12 and later looks at the process itself, by a pidfd, and keeps them apart. uvloop takes
# the stop for the end: `wait()` returns 0, as if all had gone well, and the child lives on, watched by
# nobody. asyncio of CPython 3.11 does so too, with the number 4991 as the return code.
#
# What to do: trace from another process than the one that started the child; and do not take the
# return code of a traced child for its end, look whether /proc/PID is still there.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check uvloop==0.23.0
cat > "$work/traced.py" <<'PY'
import asyncio
import ctypes
import os

import uvloop

ATTACH, DETACH = 16, 17
libc = ctypes.CDLL(None, use_errno=True)


async def main() -> str:
    child = await asyncio.create_subprocess_exec("sleep", "30")
    if libc.ptrace(ATTACH, child.pid, None, None):
        raise OSError(ctypes.get_errno(), "this machine allows no ptrace")
    try:
        code = str(await asyncio.wait_for(child.wait(), 3.0))
    except TimeoutError:
        code = "none"
    with open(f"/proc/{child.pid}/stat") as stat:
        state = stat.read().rpartition(")")[2].split()[0]
    libc.ptrace(DETACH, child.pid, None, None)
    os.kill(child.pid, 9)
    return f"return code {code}, the child is {'traced and alive' if state == 't' else state}"


with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    print(runner.run(main()))
PY
"$work/venv/bin/python" - <<'PY'
import platform
from importlib.metadata import version

print(f"version: uvloop {version('uvloop')}, CPython {platform.python_version()}")
PY
echo "behaviour: one would expect wait() to return when the child has ended; it returns when a tracer" \
    "of the same process has stopped it"
seen=$("$work/venv/bin/python" "$work/traced.py")
echo "seen: $seen"
test "$seen" = "return code 0, the child is traced and alive"
