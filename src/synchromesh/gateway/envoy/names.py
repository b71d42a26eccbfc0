"""Names that several parts of an export have in common."""

from __future__ import annotations

from typing import Final

TYPE: Final = "type.googleapis.com/envoy"
# Says that a body comes in chunks; Envoy takes off the field that says so before it routes.
CHUNKED: Final = "synchromesh-chunked"
LUA: Final = "envoy.filters.http.lua"
# What the script has found out, for the answers that are Envoy's own.
TRACE_ID: Final = f"%DYNAMIC_METADATA({LUA}:trace)%"
