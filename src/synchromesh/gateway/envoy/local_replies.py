"""What Envoy itself answers: the problems of the gateway, under its statuses. A pure machine.

Source: RFC 9457; the response flags of Envoy's access log.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from synchromesh.errors import (
    BadRequest,
    CallError,
    ConnectFailed,
    NoInstance,
    RateLimited,
    Shed,
    SynchromeshError,
    TimedOut,
    to_problem,
)
from synchromesh.gateway.answers import ALWAYS, TRACE
from synchromesh.gateway.envoy.names import TRACE_ID
from synchromesh.gateway.problems import outside
from synchromesh.http import problem_response


def _told(error: SynchromeshError, *, is_read: bool = False) -> Mapping[str, Any]:
    return to_problem(outside(error, is_read=is_read))


_LIMITED: Final = to_problem(RateLimited("too many requests for %ROUTE_NAME%; try again later"))
_MALFORMED: Final = to_problem(BadRequest("the request is malformed"))
# All but this method have a route, if only to the gateway.
_TUNNEL: Final = msgspec.json.decode(
    problem_response(501, "this does not tunnel; use another method than CONNECT").body
)

# By response flags; the first that fits counts.
_BY_FLAGS: Final[tuple[tuple[tuple[str, ...], Mapping[str, Any]], ...]] = (
    (("UF",), _told(ConnectFailed(""))),
    (("NR",), _TUNNEL),
    (("UH", "NC"), _told(NoInstance(""))),
    (("UO",), _told(Shed(""))),
    (("UC", "UR", "UPE", "LR"), _told(CallError(""))),
    (("DPE",), _MALFORMED),
)
_LATE: Final = ("UT", "SI", "UMSDR")


def problem(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a problem is written, with its trace."""
    return {
        "json_format": {**told, "trace_id": TRACE_ID},
        "content_type": "application/problem+json",
    }


def local_replies() -> dict[str, Any]:
    """Return what becomes of answers that are Envoy's own."""
    read = {
        "header_filter": {
            "header": {
                "name": ":method",
                "string_match": {"safe_regex": {"regex": "GET|HEAD"}},
            }
        }
    }
    late = {"response_flag_filter": {"flags": list(_LATE)}}
    mappers = [
        _mapper({"response_flag_filter": {"flags": list(flags)}}, told) for flags, told in _BY_FLAGS
    ]
    mappers += [
        _mapper(_of_status(429), _LIMITED),
        _mapper({"and_filter": {"filters": [late, read]}}, _told(TimedOut(""), is_read=True)),
        _mapper(late, _told(TimedOut(""))),
    ]
    return {"mappers": mappers}


def _of_status(status: int) -> dict[str, Any]:
    value = {"default_value": status, "runtime_key": "export.unset"}
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}


def _mapper(accepted: dict[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    fields = [*ALWAYS, (TRACE, TRACE_ID)]
    return {
        "filter": accepted,
        "status_code": told["status"],
        "body_format_override": problem(told),
        "headers_to_add": [
            {
                "header": {"key": name, "value": value},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            }
            for name, value in fields
        ],
    }
