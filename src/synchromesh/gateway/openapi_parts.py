"""What every OpenAPI document of a gateway has: problems, and the headers of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from synchromesh.gateway.problems import codes_by_status
from synchromesh.gateway.schemas import PLACE, Schema

# Printable characters of a header field, without blanks at the ends.
_INK: Final = "!-~\u00a1-\u00ac\u00ae-\u00ff"
_KEY: Final = f"^[{_INK}]([ {_INK}]*[{_INK}])?$"

# What a client can do nothing wrong with: any other value counts as none.
PARAMETERS: Final = {
    "IdempotencyKey": {
        "name": "idempotency-key",
        "in": "header",
        "required": False,
        "description": "Names the request, so that it takes effect once, however often it is sent: "
        "the same key and arguments get the same answer. The answer tells the key of a request "
        "that had none.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": _KEY},
    },
    "IfNoneMatch": {
        "name": "if-none-match",
        "in": "header",
        "required": False,
        "description": "The `etag` of an answer that the client has, or several with commas.",
        "schema": {"type": "string"},
    },
    "RequestId": {
        "name": "x-request-id",
        "in": "header",
        "required": False,
        "description": "The client's own name of the request, which the answer repeats: at most "
        "128 letters, digits and `._~:/+=@-`; anything else counts as none.",
        "schema": {"type": "string"},
    },
    "Traceparent": {
        "name": "traceparent",
        "in": "header",
        "required": False,
        "description": "The trace that the request continues (W3C Trace Context); one that is "
        "malformed counts as none.",
        "schema": {"type": "string"},
    },
}

HEADERS: Final = {
    "Trace": {
        "description": "The trace of the request: 32 hex digits.",
        "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    },
    "RequestId": {
        "description": "What the client named its request.",
        "schema": {"type": "string"},
    },
    "IdempotencyKey": {
        "description": "The key under which to ask again.",
        "schema": {"type": "string"},
    },
    "Fallback": {
        "description": "What stands in for a fresh answer, with its age and why: "
        "`stale;age_s=2.500;code=circuit_open`.",
        "schema": {"type": "string"},
    },
    "Partial": {
        "description": "The branches that are not as they could be: `order, slot`.",
        "schema": {"type": "string"},
    },
    "ETag": {
        "description": "What tells the answer from others; a degraded one has none.",
        "schema": {"type": "string"},
    },
    "CacheControl": {
        "description": "How long the answer may be kept, and by whom; a degraded one by nobody.",
        "schema": {"type": "string"},
    },
    "Age": {
        "description": "How old the answer is, in seconds, where it was kept here.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "RateLimit": {
        "description": "How many requests are left at the moment, and in how many seconds there is "
        'one more: `"POST /orders";r=39;t=1`.',
        "schema": {"type": "string"},
    },
    "RateLimitPolicy": {
        "description": "How many may come at once, and in how many seconds so many more: "
        '`"POST /orders";q=40;w=2`.',
        "schema": {"type": "string"},
    },
    "RetryAfter": {
        "description": "After how many seconds to ask again.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "WwwAuthenticate": {
        "description": "How to authenticate.",
        "schema": {"type": "string"},
    },
}

_PROBLEM: Final[Schema] = {
    "title": "Problem",
    "description": "What went wrong (RFC 9457); `code` says it to programs.",
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "trace_id": {"type": "string", "description": "Leads to the reason in the logs."},
        "retry_after_s": {"type": "number", "minimum": 0},
        "errors": {
            "type": "array",
            "description": "What does not fit in the request, as far as it was looked for.",
            "items": {
                "type": "object",
                "properties": {
                    "detail": {"type": "string"},
                    "pointer": {
                        "type": "string",
                        "description": "Its place in the body, a JSON pointer (RFC 6901).",
                    },
                    "name": {"type": "string", "description": "Of what is no part of the body."},
                    "in": {"enum": ["path", "query"]},
                },
                "required": ["detail"],
            },
        },
        "is_final": {"type": "boolean", "description": "Asking again would end the same way."},
    },
    "required": ["type", "title", "status", "detail", "code"],
}
_BRANCH_MARK: Final[Schema] = {
    "title": "BranchMark",
    "description": "How the answer of a branch came about.",
    "type": "object",
    "properties": {
        "status": {"type": "string"},
        "age_s": {"type": "number", "description": "How old a stale answer is, in seconds."},
        "code": {"type": "string", "description": "The error for which there is no fresh answer."},
        "detail": {"type": "string", "description": "The words of a rejection."},
        "details": {"type": "object", "description": "What a rejection says beside them."},
        "because": {"type": "string", "description": "The branch for want of which there is none."},
        "elements": {
            "type": "array",
            "description": "Of a branch over an array, the marks of those that are not `ok`.",
            "items": {
                "allOf": [{"$ref": f"{PLACE}BranchMark"}],
                "type": "object",
                "properties": {"index": {"type": "integer", "minimum": 0}},
                "required": ["index"],
            },
        },
        "count": {
            "type": "integer",
            "description": "How many elements there are, where not all were asked for.",
        },
    },
    "required": ["status"],
}
# Names of types have a dot in them, so that these are free.
SCHEMAS: Final = {"Problem": _PROBLEM, "BranchMark": _BRANCH_MARK}

# What the gateway says by itself, before any service hears of the request.
_OWN: Final[dict[int, dict[str, str]]] = {
    400: {"bad_request": "the request does not fit what is described here"},
    401: {"unauthenticated": "a credential is needed, and none came that is valid"},
    403: {"forbidden": "the credential lacks a scope, or the service does not allow this"},
    404: {"unknown_operation": "there is nothing under this path"},
    405: {"method_not_allowed": "the path takes other methods, which `allow` lists"},
    408: {"bad_request": "the request did not come in time"},
    413: {"bad_request": "the body is too long"},
    415: {"bad_request": "the body has to be `application/json`"},
    429: {"rate_limited": "too many requests; ask again after `retry-after`"},
    503: {"shed": "the gateway or a service has too much to do; ask again soon"},
}
_RETRIED: Final = frozenset({429, 503})


def responses() -> dict[str, Any]:
    """Return the problems that operations have in common, by name."""
    within = codes_by_status()
    return {
        f"Problem{status}": _problem(status, within.get(status, {}) | _OWN.get(status, {}))
        for status in sorted({*within, *_OWN})
    }


def problem(
    status: int,
    rejections: Sequence[Schema] = (),
    told: Sequence[str] = (),
    *,
    or_anything: bool = False,
) -> dict[str, Any]:
    """Return the answer of a status: the common one, or one that may be a rejection as well.

    Args:
        rejections: the schemas of those that have this status.
        told: what they mean, a line each.
        or_anything: whether an upstream may answer with it, too, and in its own words.
    """
    common = {"$ref": f"#/components/responses/Problem{status}"}
    if or_anything:
        written = _problem(status, codes_by_status().get(status, {}) | _OWN.get(status, {}))
        return {**written, "content": {**written["content"], "*/*": {}}}
    if not rejections:
        return common
    codes = codes_by_status().get(status, {}) | _OWN.get(status, {})
    written = _problem(status, codes)
    known = f"\n{written['description']}" if codes else ""
    members = [*rejections, *([{"$ref": f"{PLACE}Problem"}] if codes else [])]
    schema = members[0] if len(members) == 1 else {"anyOf": members}
    return {
        **written,
        "description": "\n".join(f"- {each}" for each in told) + known,
        "content": {"application/problem+json": {"schema": schema}},
    }


def _problem(status: int, codes: dict[str, str]) -> dict[str, Any]:
    headers = {"x-request-id": "RequestId", "synchromesh-trace": "Trace"}
    if status in _RETRIED:
        headers["retry-after"] = "RetryAfter"
    if status == 429:
        headers |= {"ratelimit": "RateLimit", "ratelimit-policy": "RateLimitPolicy"}
    if status == 401:
        headers["www-authenticate"] = "WwwAuthenticate"
    return {
        "description": "\n".join(f"- `{code}`: {words}" for code, words in sorted(codes.items())),
        "headers": {
            name: {"$ref": f"#/components/headers/{part}"} for name, part in headers.items()
        },
        "content": {"application/problem+json": {"schema": {"$ref": f"{PLACE}Problem"}}},
    }
