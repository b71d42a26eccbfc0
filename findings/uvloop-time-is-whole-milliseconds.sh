#!/bin/sh
# uvloop's loop.time() moves in steps of a whole millisecond; asyncio's is time.monotonic().
#
# What is measured with the loop's clock between two points of a coroutine is right to the
# microsecond on asyncio. On uvloop it is libuv's time, cut to milliseconds: a span of 0.3 ms is 0
# or 1 ms long, and so are percentiles of such calls; a breakdown of a quick request adds up to 0.
#
# Timers are rounded to milliseconds, too, so that one may come half of one before its time.
#
# What to do: time what is shown to people by time.monotonic(), which is the same clock, uncut. Or
# subclass uvloop.Loop with `time = staticmethod(time.monotonic)`, and a `call_at` that rounds up.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check uvloop==0.23.0
cat > "$work/shown.py" <<'PY'
import asyncio
import platform
import sys
import time
from importlib.metadata import version

import uvloop


async def main():
    """Return how often the clock was a whole millisecond, of 200 looks at odd moments."""
    loop, whole = asyncio.get_running_loop(), 0
    for _ in range(200):
        until = time.monotonic() + 0.00037
        while time.monotonic() < until:
            pass
        told_ms = loop.time() * 1000
        whole += abs(told_ms - round(told_ms)) < 1e-4
        await asyncio.sleep(0)
    return whole


print(f"version: uvloop {version('uvloop')}, CPython {platform.python_version()}")
seen = {}
for name, factory in (("asyncio", asyncio.new_event_loop), ("uvloop", uvloop.new_event_loop)):
    with asyncio.Runner(loop_factory=factory) as runner:
        seen[name] = runner.run(main())
print(
    "behaviour: one would expect that loop.time() tells parts of a millisecond, as on asyncio; on"
    " uvloop it is a whole number of them"
)
print(f"seen: of 200 looks at the clock, whole milliseconds: {seen}")
if seen["uvloop"] != 200 or seen["asyncio"] > 20:
    sys.exit("this has changed")
PY
"$work/venv/bin/python" "$work/shown.py"
