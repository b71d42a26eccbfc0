"""The one list of requests and answers that both engines are held to.

A case says what is asked, and what comes back: the status, fields of the answer, members of its
problem, and what the upstream got of it. `by` says who answers where Envoy is in front. What
differs there is written in `behind`, and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlencode

from envoy_world import CLIENT, PROXY

ENVOY, GATEWAY = "envoy", "gateway"
# What a field may be besides a text: there in whatever form; None is not there.
ANY: Final = re.compile(".+")
# A minute, and what a slow machine has taken of it.
MINUTE: Final = "(60|[1-5]?[0-9])"
GOOD = "Authorization: Bearer {token}"
PARTNERS = "Authorization: Bearer {partners}"
IN_STEPS = "Authorization: Bearer {steps}"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@dataclass(frozen=True)
class Case:
    """One request, as it is written, and its answer.

    Attributes:
        head: `{engine}`, `{port}` (of the upstream) and tokens by their names in braces are put in.
        by: who answers where Envoy is in front; "" for Envoy's own refusal of a message.
        problem: members of the problem that it answers.
        upstream: method and target that the upstream got, or "" where it got nothing.
        times: how often it got that.
        passed: fields that the upstream got; None for one that it must not get.
        behind: attributes that are others where Envoy is in front.
    """

    head: str
    status: int
    by: str = ENVOY
    headers: Mapping[str, object] = field(default_factory=dict)
    problem: Mapping[str, object] = field(default_factory=dict)
    upstream: str = ""
    times: int = 1
    passed: Mapping[str, str | None] = field(default_factory=dict)
    body: bytes = b""
    text: bytes | None = None
    source: str = CLIENT
    behind: Mapping[str, Any] = field(default_factory=dict)


def passes(line: str, upstream: str, **more: Any) -> Case:
    """Return a case that reaches the upstream and comes back."""
    head, _, fields = line.partition("\n")
    return Case(
        f"{head} HTTP/1.1\n{fields}".strip(), more.pop("status", 200), upstream=upstream, **more
    )


def refused(line: str, status: int, code: str, **more: Any) -> Case:
    """Return a case that is answered by a problem and reaches nobody."""
    head, _, fields = line.partition("\n")
    problem = {"status": status, **({"code": code} if code else {}), **more.pop("problem", {})}
    headers = {"content-type": "application/problem+json", "cache-control": "no-store"}
    headers |= more.pop("headers", {})
    by = more.pop("by", GATEWAY)
    return Case(
        f"{head} HTTP/1.1\n{fields}".strip(), status, by, headers=headers, problem=problem, **more
    )


def leads(name: str, value: str, outside: str, route: str = "/app", **more: Any) -> Case:
    """Return a case of a field that leads somewhere: as the upstream says it, and outside."""
    query = urlencode({name: value}).replace("%7Bport%7D", "{port}")
    target = f"/lead?{query}"
    return passes(
        f"GET {route}{target}", f"GET {target}", status=302, headers={name: outside}, **more
    )


# What an upstream says of its failure is its own to say.
INTERNAL = b"out of order"
ALWAYS = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "synchromesh-trace": ANY,
    "server": None,
    "x-envoy-upstream-service-time": None,
}
NOT_TOLD: dict[str, str | None] = dict.fromkeys(
    (
        "authorization",
        "x-api-key",
        "x-real-ip",
        "x_real_ip",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "forwarded",
        "x-secret",
        "synchromesh-principal",
        "x-request-id",
        "x-envoy-original-path",
        "x-envoy-attempt-count",
        "x-envoy-expected-rq-timeout-ms",
        "cookie2",
    )
)
CLAIMED = (
    "X-Forwarded-For: 9.9.9.9\nForwarded: for=9.9.9.9\nX-Forwarded-Host: evil.example\n"
    "X-Forwarded-Proto: https\nX-Real-IP: 9.9.9.9"
)


def rate(left: int, more: str = f";t={MINUTE}") -> dict[str, object]:
    """Return what an answer says of a rate."""
    return {
        "ratelimit-policy": '"GET /few";q=2;w=120',
        "ratelimit": re.compile(f'"GET /few";r={left}{more}'),
        "x-ratelimit-remaining": None,
    }


def takes(passed: Mapping[str, str | None]) -> dict[str, Any]:
    """Return what differs where Envoy takes a message, and writes it anew."""
    return {"status": 200, "upstream": "GET /x", "passed": passed}


CASES: Final[Mapping[str, Case]] = {
    # -- what passes -------------------------------------------------------------------------------
    "a get": passes("GET /app/x?a=1&b=%2F", "GET /x?a=1&b=%2F", headers=ALWAYS),
    "a head": passes("HEAD /same/x", "HEAD /same/x", text=b""),
    "a method of any": passes("PATCH /app/x\nContent-Length: 0", "PATCH /x"),
    "a post with a body": passes(
        "POST /app/x\nContent-Length: 3", "POST /x", body=b"abc", text=b'["POST", "/x", 3]'
    ),
    "the empty rest": passes("GET /app/", "GET /"),
    "a trailing slash": passes("GET /app/x/", "GET /x/"),
    "headers from outside": passes(
        f"GET /app/x\nCookie: a=b\nX-Secret: 1\nX_Real_IP: 1\nAuthorization: Bearer zzz\n{CLAIMED}",
        "GET /x",
        passed={**NOT_TOLD, "cookie": "a=b", "via": "1.1 synchromesh"},
    ),
    "headers of negotiation": passes(
        'GET /app/x\nAccept: text/plain\nIf-None-Match: "1"\nRange: bytes=0-1',
        "GET /x",
        passed={"accept": "text/plain", "if-none-match": '"1"', "range": "bytes=0-1"},
    ),
    "what an upstream may not say": passes(
        "GET /app/fields\nX-Request-Id: mine-1",
        "GET /fields",
        headers={
            "x-request-id": "mine-1",
            "idempotency-key": None,
            "cache-control": "max-age=5",
            "x-own": "1",
            "server": "legacy/1",
            "x-content-type-options": "nosniff",
        },
    ),
    "a status of the upstream": passes("GET /app/status/404", "GET /status/404", status=404),
    "no content": passes("GET /app/status/204", "GET /status/204", status=204, text=b""),
    "an answer that takes longer than the deadline": passes(
        "GET /late/stream?s=0.8", "GET /stream?s=0.8", text=b"onetwo"
    ),
    "a body in chunks": passes(
        "PUT /up/x\nTransfer-Encoding: chunked",
        "PUT /x",
        by=GATEWAY,
        body=b"3\r\nabc\r\n0\r\n\r\n",
        text=b'["PUT", "/x", 3]',
    ),
    "expect 100": passes(
        "PUT /up/x\nContent-Length: 3\nExpect: 100-continue",
        "PUT /x",
        body=b"abc",
        text=b'["PUT", "/x", 3]',
    ),
    "fields of this hop, of an upstream": passes(
        "GET /app/hop",
        "GET /hop",
        headers={"x-hop": None, "keep-alive": None, "x-own": "1"},
    ),
    "fields of this hop, of a client": passes(
        "GET /app/x\nConnection: close, If-Match\nIf-Match: 1",
        "GET /x",
        passed={"if-match": None},
    ),
    "an upgrade that is not taken": passes(
        "GET /app/x\nUpgrade: h2c\nConnection: Upgrade", "GET /x", passed={"upgrade": None}
    ),
    "a split that takes all": passes("GET /all/x", "GET /other/x"),
    "a split that takes none": passes("GET /none/x", "GET /x"),
    "a location of the other upstream": passes(
        "GET /all/lead?location=%2Fother%2Fa",
        "GET /other/lead?location=%2Fother%2Fa",
        status=302,
        headers={"location": "/all/a"},
    ),
    "what is copied": passes("GET /copied/x", "GET /x", by=GATEWAY),
    # -- no route ----------------------------------------------------------------------------------
    "an unknown path": refused("GET /nowhere", 404, "unknown_operation"),
    "an unknown method": refused(
        "POST /same/x\nContent-Length: 0", 405, "method_not_allowed", headers={"allow": "GET, HEAD"}
    ),
    "a prefix without its slash": refused("GET /app", 404, "unknown_operation"),
    "a place that is empty": refused("GET /same/", 404, "unknown_operation"),
    "the wrong case": refused("GET /APP/x", 404, "unknown_operation"),
    # -- hosts -------------------------------------------------------------------------------------
    "a host of its own": passes("GET /app/x\nHost: Own.example:8443", "GET /own/x"),
    "below a host": passes("GET /app/x\nHost: a.b.example", "GET /below/x"),
    "a host that has no such path": passes("GET /same/x\nHost: own.example", "GET /same/x"),
    "a host with a dot at its end": passes(
        "GET /app/x\nHost: own.example.", "GET /own/x", by=GATEWAY
    ),
    "a location by its host": passes(
        "GET /app/lead?location=%2Fown%2Fa\nHost: own.example",
        "GET /own/lead?location=%2Fown%2Fa",
        headers={"location": "/app/a"},
        status=302,
    ),
    # -- paths -------------------------------------------------------------------------------------
    "an encoded slash": refused("GET /app/a%2Fb", 400, "bad_request"),
    "an encoded backslash": refused("GET /app/a%5Cb", 400, "bad_request"),
    "dots": refused("GET /app/../admin/x", 400, "bad_request"),
    "encoded dots": refused("GET /app/%2e%2e/admin/x", 400, "bad_request"),
    "an empty segment beside a guarded path": refused("GET /app//admin/x", 400, "bad_request"),
    "a parameter beside a guarded path": refused("GET /app/admin;a/x", 400, "bad_request"),
    "a letter that is encoded": passes("GET /app/%78", "GET /%78", by=GATEWAY),
    "a guarded path": refused("GET /app/admin/x", 401, "unauthenticated"),
    "a guarded path, encoded": refused("GET /app/%61dmin/x", 401, "unauthenticated"),
    "a guarded path, by another method": passes(
        "POST /app/admin/x\nContent-Length: 0", "POST /admin/x"
    ),
    # -- who asks ----------------------------------------------------------------------------------
    "a token": passes(f"GET /guarded/x\n{GOOD}", "GET /x", passed={"authorization": None}),
    "a token with its scopes in a list": passes(
        "GET /guarded/x\nAuthorization: Bearer {listed}", "GET /x"
    ),
    "a token for several": passes("GET /guarded/x\nAuthorization: Bearer {several}", "GET /x"),
    "a token with an audience that is nearly right": refused(
        "GET /guarded/x\nAuthorization: Bearer {nearly}", 401, "unauthenticated"
    ),
    "a token that has just expired": passes(
        "GET /guarded/x\nAuthorization: Bearer {just}", "GET /x"
    ),
    "no credential": refused(
        "GET /guarded/x", 401, "unauthenticated", headers={"www-authenticate": "Bearer"}
    ),
    "a token that has expired": refused(
        "GET /guarded/x\nAuthorization: Bearer {expired}", 401, "unauthenticated"
    ),
    "a token without an end": refused(
        "GET /guarded/x\nAuthorization: Bearer {endless}", 401, "unauthenticated"
    ),
    "a token that is not valid yet": refused(
        "GET /guarded/x\nAuthorization: Bearer {early}", 401, "unauthenticated"
    ),
    "a token for others": refused(
        "GET /guarded/x\nAuthorization: Bearer {others}", 401, "unauthenticated"
    ),
    "a token of another issuer": refused(
        "GET /guarded/x\nAuthorization: Bearer {foreign}", 401, "unauthenticated"
    ),
    "a token of another kind": refused(
        "GET /guarded/x\nAuthorization: Bearer {logout}", 401, "unauthenticated"
    ),
    "a token that brings its key": refused(
        "GET /guarded/x\nAuthorization: Bearer {bringing}", 401, "unauthenticated"
    ),
    "a token that nobody has signed": refused(
        "GET /guarded/x\nAuthorization: Bearer {unsigned}", 401, "unauthenticated"
    ),
    "a token that was changed": refused(
        "GET /guarded/x\nAuthorization: Bearer {forged}", 401, "unauthenticated"
    ),
    "a token without a name": refused(
        "GET /guarded/x\nAuthorization: Bearer {nameless}", 401, "unauthenticated"
    ),
    "a token that lacks a scope": refused(
        "GET /guarded/x\nAuthorization: Bearer {narrow}", 403, "forbidden"
    ),
    "a scope that begins alike": refused(
        "GET /guarded/x\nAuthorization: Bearer {alike}", 403, "forbidden"
    ),
    "a token in the query": refused("GET /guarded/x?access_token={token}", 401, "unauthenticated"),
    "two credentials": refused(f"GET /guarded/x\n{GOOD}\nX-Api-Key: sm_a", 401, "unauthenticated"),
    "a token twice": refused(f"GET /guarded/x\n{GOOD}\n{GOOD}", 401, "unauthenticated"),
    "an API key": passes(
        "GET /guarded/x\nX-Api-Key: {key}", "GET /x", by=GATEWAY, passed={"x-api-key": None}
    ),
    "an API key as a bearer": passes(
        "GET /guarded/x\nAuthorization: Bearer {key}",
        "GET /x",
        by=GATEWAY,
        passed={"authorization": None},
    ),
    "an API key that is wrong": refused(
        "GET /guarded/x\nX-Api-Key: {wrong}", 401, "unauthenticated"
    ),
    # -- how often ---------------------------------------------------------------------------------
    "the first of a rate": passes(
        "GET /few", "GET /few", headers=rate(1), behind={"headers": rate(1, "")}
    ),
    "the second of a rate": passes("GET /few", "GET /few", headers=rate(0)),
    "one too many": refused(
        "GET /few",
        429,
        "rate_limited",
        by=ENVOY,
        headers={"retry-after": re.compile(MINUTE), **rate(0)},
    ),
    "another client": passes("GET /few", "GET /few", source="127.0.0.3"),
    "the first of a principal": passes(f"GET /mine\n{GOOD}", "GET /mine"),
    "the second of a principal": passes(f"GET /mine\n{GOOD}", "GET /mine", source="127.0.0.3"),
    "one too many of a principal": refused(
        f"GET /mine\n{GOOD}",
        429,
        "rate_limited",
        by=ENVOY,
        headers={"retry-after": re.compile(MINUTE)},
    ),
    "another principal": passes("GET /mine\nAuthorization: Bearer {bob}", "GET /mine"),
    # The claim is one of the whole name, or is found step by step; the name is another issuer's.
    "the first of a partner's": passes(f"GET /mine\n{PARTNERS}", "GET /mine"),
    "the second of a partner's": passes(f"GET /mine\n{IN_STEPS}", "GET /mine"),
    "one too many of a partner's": refused(
        f"GET /mine\n{PARTNERS}",
        429,
        "rate_limited",
        by=ENVOY,
        headers={"retry-after": re.compile(MINUTE)},
    ),
    "one too many of a partner's, in steps": refused(
        f"GET /mine\n{IN_STEPS}",
        429,
        "rate_limited",
        by=ENVOY,
        headers={"retry-after": re.compile(MINUTE)},
    ),
    "a claim of the whole name goes first": refused(
        "GET /mine\nAuthorization: Bearer {both}", 401, "unauthenticated"
    ),
    # -- upstreams that fail -----------------------------------------------------------------------
    "a failure of the upstream": passes(
        "GET /app/status/500?{engine}",
        "GET /status/500?{engine}",
        status=500,
        times=3,
        text=INTERNAL,
        headers={**ALWAYS, "x-own": "1"},
        behind={"times": 2},
    ),
    "a failure that is not repeated": passes(
        "POST /app/status/502\nContent-Length: 0", "POST /status/502", status=502, text=INTERNAL
    ),
    "an upstream that is away": passes(
        "POST /app/status/503\nContent-Length: 0", "POST /status/503", status=503, text=INTERNAL
    ),
    "an upstream that is away, with a body": passes(
        "POST /app/status/503?b\nContent-Length: 1",
        "POST /status/503?b",
        status=503,
        body=b"b",
        text=INTERNAL,
    ),
    "a get that is broken off": passes("GET /app/flaky/{engine}", "GET /flaky/{engine}", times=2),
    "a delete that is broken off": passes(
        "DELETE /app/flaky/{engine}d", "DELETE /flaky/{engine}d", times=2
    ),
    "a get that fails once": passes("GET /app/broken/{engine}", "GET /broken/{engine}", times=2),
    "a post that is broken off": refused(
        "POST /app/flaky/{engine}p\nContent-Length: 3",
        502,
        "call_failed",
        by=ENVOY,
        body=b"abc",
        upstream="POST /flaky/{engine}p",
    ),
    "a put with a body that is broken off": refused(
        "PUT /app/flaky/{engine}u\nContent-Length: 3",
        502,
        "call_failed",
        by=ENVOY,
        body=b"abc",
        upstream="PUT /flaky/{engine}u",
    ),
    "an upstream that is late": refused(
        "GET /late/slow?s=2", 504, "timed_out", by=ENVOY, upstream="GET /slow?s=2"
    ),
    "an upstream that is down": refused("GET /gone/x", 503, "connect_failed", by=ENVOY),
    # -- bodies ------------------------------------------------------------------------------------
    "the longest body": passes(
        "PUT /up/x\nContent-Length: 1024", "PUT /x", body=b"x" * 1024, text=b'["PUT", "/x", 1024]'
    ),
    "a body that is too long": refused(
        "PUT /up/x\nContent-Length: 1025",
        413,
        "",
        body=b"x" * 1025,
        headers={"cache-control": None},
    ),
    "chunks that are too long": refused(
        "PUT /up/x\nTransfer-Encoding: chunked",
        413,
        "",
        body=b"401\r\n" + b"x" * 1025 + b"\r\n0\r\n\r\n",
        headers={"cache-control": None},
    ),
    # -- where answers lead ------------------------------------------------------------------------
    "a location of the upstream": leads("location", "http://127.0.0.1:{port}/x?y#z", "/app/x?y#z"),
    "its path alone": leads("location", "/login", "/app/login"),
    "its host without a scheme": leads("location", "//127.0.0.1:{port}/x", "/app/x"),
    "its host without a path": leads("location", "http://127.0.0.1:{port}", "/app/"),
    "a location elsewhere": leads("location", "https://shop.example/x", "https://shop.example/x"),
    "another port": leads("location", "http://127.0.0.1:1/x", "http://127.0.0.1:1/x"),
    "a relative location": leads("location", "../x", "../x"),
    "a location that some take for a host": leads("location", "/\\evil.example", "/\\evil.example"),
    "a path that some take for a host": leads(
        "location", "http://127.0.0.1:{port}//evil.example", "/app//evil.example"
    ),
    "a location by a single route": leads("location", "/x", "/cross/x", route="/cross"),
    "a location that no route has": leads("location", "/a/b", "/app/a/b", route="/cross"),
    "a content-location": leads("content-location", "/x", "/app/x"),
    "a refresh": leads("refresh", "5; url=/x", "5; url=/app/x"),
    "a link": leads(
        "link",
        "</x>; rel=next, <https://a.example/>; rel=a",
        "</app/x>; rel=next, <https://a.example/>; rel=a",
    ),
    "a cookie": leads(
        "set-cookie", "a=b; Path=/x; Domain=127.0.0.1; HttpOnly", "a=b; Path=/app/x; HttpOnly"
    ),
    "a cookie of a host": leads(
        "set-cookie", "__Host-a=b; Path=/; Secure", "__Host-a=b; Path=/; Secure"
    ),
    # -- cross-origin ------------------------------------------------------------------------------
    "a page of the shop": passes(
        "GET /cross/x\nOrigin: https://shop.example",
        "GET /x",
        headers={
            "access-control-allow-origin": "https://shop.example",
            "vary": "origin",
            "access-control-allow-credentials": "true",
            "access-control-expose-headers": ANY,
        },
    ),
    "another page": passes(
        "GET /cross/x\nOrigin: https://evil.example",
        "GET /x",
        headers={"access-control-allow-origin": None, "vary": "origin"},
    ),
    "no page": passes(
        "GET /cross/x", "GET /x", headers={"access-control-allow-origin": None, "vary": "origin"}
    ),
    "what the upstream says of pages": passes(
        "GET /cross/fields\nOrigin: https://evil.example",
        "GET /fields",
        headers={"access-control-allow-origin": None},
    ),
    "any page": passes(
        "GET /open/x\nOrigin: https://a.example",
        "GET /x",
        headers={"access-control-allow-origin": "*", "vary": None},
    ),
    "a failure shown to a page": refused(
        "GET /cross/x\nOrigin: https://shop.example\nX-Api-Key: a\nIf-Match: a\nIdempotency-Key: "
        + "k" * 300,
        400,
        "bad_request",
        headers={"access-control-allow-origin": "https://shop.example"},
    ),
    "a preflight": Case(
        "OPTIONS /cross/x HTTP/1.1\nOrigin: https://shop.example\n"
        "Access-Control-Request-Method: GET",
        204,
        GATEWAY,
        headers={
            "access-control-allow-methods": "GET",
            "access-control-allow-origin": "https://shop.example",
        },
    ),
    "a preflight of another page": refused(
        "OPTIONS /cross/x\nOrigin: https://evil.example\nAccess-Control-Request-Method: GET",
        403,
        "forbidden",
    ),
    "a preflight without a route of its own": passes(
        "OPTIONS /app/x\nOrigin: https://a.example\nAccess-Control-Request-Method: GET",
        "OPTIONS /x",
        by=GATEWAY,
    ),
    # -- traces and names --------------------------------------------------------------------------
    "a trace from outside": passes(
        f"GET /app/x\nTraceparent: {TRACE}\nTracestate: a=b",
        "GET /x",
        headers={"synchromesh-trace": TRACE[3:35]},
        passed={"tracestate": "a=b"},
    ),
    "a trace that is malformed": passes(
        "GET /app/x\nTraceparent: 00-XYZ",
        "GET /x",
        by=GATEWAY,
        headers={"synchromesh-trace": ANY},
        passed={"tracestate": None},
    ),
    "a tracestate alone": passes(
        "GET /app/x\nTracestate: a=b", "GET /x", passed={"tracestate": None}
    ),
    "a name": passes(
        "GET /app/x\nX-Request-Id: order/1",
        "GET /x",
        headers={"x-request-id": "order/1"},
        passed={"x-request-id": "order/1"},
    ),
    "a name that is malformed": passes(
        "GET /app/x\nX-Request-Id: a b",
        "GET /x",
        by=GATEWAY,
        headers={"x-request-id": None},
        passed={"x-request-id": None},
    ),
    "an idempotency key": passes(
        "POST /app/x\nIdempotency-Key: k\nContent-Length: 0", "POST /x", by=GATEWAY
    ),
    # -- whom a request comes from -----------------------------------------------------------------
    "told by a client": passes(
        f"GET /same/x\n{CLAIMED}",
        "GET /same/x",
        passed={
            "x-forwarded-for": CLIENT,
            "x-forwarded-host": "shop",
            "x-forwarded-proto": "http",
            "forwarded": f'for={CLIENT};proto=http;host="shop"',
            "x-real-ip": None,
        },
    ),
    "told by a proxy": passes(
        "GET /same/x\nX-Forwarded-For: 203.0.113.9\nX-Forwarded-Proto: https\n"
        "X-Forwarded-Host: shop.example",
        "GET /same/x",
        source=PROXY,
        passed={
            "x-forwarded-for": "203.0.113.9",
            "x-forwarded-proto": "https",
            "x-forwarded-host": "shop.example",
            "forwarded": 'for=203.0.113.9;proto=https;host="shop.example"',
        },
    ),
    "told by a chain of proxies": passes(
        "GET /same/x\nX-Forwarded-For: 9.9.9.9, 203.0.113.9, 127.0.0.1",
        "GET /same/x",
        source=PROXY,
        passed={"x-forwarded-for": "203.0.113.9"},
    ),
    "an address of IPv6": passes(
        "GET /same/x\nX-Forwarded-For: 2001:db8::9",
        "GET /same/x",
        source=PROXY,
        by=GATEWAY,
        passed={
            "x-forwarded-for": "2001:db8::9",
            "forwarded": 'for="[2001:db8::9]";proto=http;host="shop"',
        },
    ),
    # -- what is the gateway's ---------------------------------------------------------------------
    "a query of a contract": Case("GET /count HTTP/1.1", 200, GATEWAY, text=b"0"),
    "whether it takes requests": Case("GET /app/healthz HTTP/1.1", 200, GATEWAY),
    "an aggregate": Case("GET /page HTTP/1.1", 200, GATEWAY),
    "a command": Case(
        f"POST /notes HTTP/1.1\n{GOOD}\nContent-Type: application/json\nContent-Length: {{length}}",
        200,
        GATEWAY,
        body=b'{"id": "{engine}", "text": "hello"}',
        headers={"idempotency-key": ANY},
    ),
    "a service of the system": Case("GET /own/nothing HTTP/1.1", 404, GATEWAY),
    "an upstream that is told who asks": passes(f"GET /told/x\n{GOOD}", "GET /x", by=GATEWAY),
    # -- messages that are none --------------------------------------------------------------------
    "two lengths": Case(
        "POST /app/x HTTP/1.1\nContent-Length: 3\nContent-Length: 4", 400, "", body=b"abcd"
    ),
    "a length and chunks": Case(
        "POST /app/x HTTP/1.1\nContent-Length: 3\nTransfer-Encoding: chunked",
        400,
        "",
        body=b"0\r\n\r\n",
    ),
    "a head that is too long": Case("GET /app/x HTTP/1.1\nX-Long: " + "x" * 40_000, 431, ""),
    "HTTP/1.0": Case("GET /app/x HTTP/1.0", 200, upstream="GET /x"),
    "no host": Case("GET /app/x HTTP/1.1\nHost:", 400, ""),
    "two hosts": Case("GET /app/x HTTP/1.1\nHost: a\nHost: b", 400, ""),
    "a host that is none": Case("GET /app/x HTTP/1.1\nHost: a b", 400, ""),
    "a folded field": Case(
        "GET /app/x HTTP/1.1\nAccept: a\n b: c", 400, "", behind=takes({"accept": "a b: c"})
    ),
    "a blank before a colon": Case("GET /app/x HTTP/1.1\nX-A : a", 400, ""),
    "a NUL": Case("GET /app/x HTTP/1.1\nX-A: a\0b", 400, ""),
    "a carriage return alone": Case(
        "GET /app/x HTTP/1.1\nAccept: a\rIf-Match: b",
        400,
        "",
        behind=takes({"accept": "aIf-Match: b", "if-match": None}),
    ),
    "a length with a sign": Case("PUT /up/x HTTP/1.1\nContent-Length: +3", 400, "", body=b"abc"),
    "chunks of no length": Case(
        "PUT /up/x HTTP/1.1\nTransfer-Encoding: chunked", 400, "", body=b"x\r\nabc\r\n0\r\n\r\n"
    ),
    "another transfer coding": Case(
        "PUT /up/x HTTP/1.1\nTransfer-Encoding: gzip, chunked", 501, "", body=b"0\r\n\r\n"
    ),
    "a method that nobody knows": Case("FOO /app/x HTTP/1.1", 400, ""),
    "a tunnel": Case("CONNECT shop:443 HTTP/1.1", 501, ""),
    "an echo": Case("TRACE /app/x HTTP/1.1", 405, ""),
}
