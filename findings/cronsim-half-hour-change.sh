#!/bin/sh
# cronsim loses a time on the day on which clocks change by half an hour, and which one depends on
# where it begins.
#
# Where the hour is `*` or `*/n`, cronsim walks in real time: it goes to the full hour, and on by 3600
# seconds at a time. On Lord Howe Island clocks go back by 30 minutes at 02:00 on 5 April 2026. From
# then on its steps stand at half past, 06:30 is the first that it finds in hour 6, and 06:15 is
# behind it. Whoever asks after the change gets 06:15. The same holds for any iterator that is kept.
#
# What to do: keep no iterator; ask anew from the last time that was run, as a scheduler does that
# keeps its state in a database. Say in the documentation that hours which begin with `*` may pass
# over one time on such a day; hours that are listed, such as `0,6,12,18`, are found.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    cronsim==2.8 tzdata==2025.2
PYTHONTZPATH='' "$work/venv/bin/python" - <<'PY'
import datetime as dt
import platform
from importlib.metadata import version
from zoneinfo import ZoneInfo

from cronsim import CronSim

zone = ZoneInfo("Australia/Lord_Howe")
before = dt.datetime(2026, 4, 5, 1, 30, tzinfo=zone)
after = dt.datetime(2026, 4, 5, 5, 50, tzinfo=zone)


def first(expression: str, begin: dt.datetime) -> str:
    return next(CronSim(expression, begin)).strftime("%H:%M")


seen = (
    first("15 */6 * * *", before),
    first("15 */6 * * *", after),
    first("15 0,6,12,18 * * *", before),
)
print(f"version: cronsim {version('cronsim')}, CPython {platform.python_version()}")
print(
    "behaviour: one would expect 06:15 to be the next time of `15 */6` whoever asks earlier on that "
    "day; who asks before the change gets 12:15"
)
print(f"seen: every sixth hour, asked at 01:30 and at 05:50; hours listed, asked at 01:30: {seen}")
assert seen == ("12:15", "06:15", "06:15"), seen
PY
