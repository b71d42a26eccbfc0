#!/bin/sh
# msgspec writes a dict with numbers for keys, but not in a deterministic order.
#
# JSON has texts for keys alone, and `msgspec.json.encode({1: "a"})` makes texts of numbers, dates,
# enums and UUIDs, as the documentation says; decoding by `dict[int, str]` brings them back. Whoever
# asks for `order="deterministic"` as well, to have equal bytes for equal values (digests, signatures,
# diffs), expects the same bytes in order. That combination is a TypeError, at the first such value:
# a type passes all checks at its definition, and all tests whose mapping is empty.
# `to_builtins(value, str_keys=True, order="deterministic")` has no such limit.
#
# What to do: where a type has such keys, run values through `to_builtins` first.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check msgspec==0.22.0 2>/dev/null
cat > "$work/shown.py" <<'PY'
import sys
from importlib.metadata import version

import msgspec

value = {10: "b", 9: "a"}
plain = msgspec.json.encode(value)
back = msgspec.json.decode(plain, type=dict[int, str])
ordered = msgspec.json.Encoder(order="deterministic")
try:
    seen = ordered.encode(value).decode()
except TypeError as error:
    seen = f"TypeError: {error}"
empty = ordered.encode({}).decode()
around = ordered.encode(
    msgspec.to_builtins(value, str_keys=True, order="deterministic")
).decode()
print(f"version: msgspec {version('msgspec')}")
print("behaviour: one would expect an order to change only the order; number keys are refused with one")
print(f"seen: without: {plain.decode()}; with: {seen}; an empty one: {empty}; by to_builtins: {around}")
sys.exit(0 if back == value and seen.startswith("TypeError") and empty == "{}" else 1)
PY
"$work/venv/bin/python" "$work/shown.py"
