"""The definition of a gateway: routes and aggregates as values; making them starts nothing.

They hold what was written, right or wrong: `check` names every mistake of the whole gateway at
once, before anything listens.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from synchromesh.calls.contract import Operation
from synchromesh.gateway.beside import Mirror, Split
from synchromesh.gateway.caching import Cache
from synchromesh.gateway.cors import Cors
from synchromesh.gateway.principal import Auth


@dataclass(frozen=True, slots=True)
class Rate:
    """Limits the rate of one route, for each principal by itself: a token bucket.

    Attributes:
        limit: a count per `s`, `m` or `h`, such as "20/s".
        burst: how many may come at once; None for what one second brings, at least 1.

    Example:
        >>> Rate("20/s", burst=40)
        Rate(limit='20/s', burst=40)
    """

    limit: str
    burst: int | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """Exposes one operation at a method and a path.

    A place of the path is a parameter of the operation; the other arguments come from the query
    (GET, DELETE) or the body, as the contract says.

    Attributes:
        route: method and path, such as "GET /stock/{sku}".
        operation: what answers.
        scopes: what the principal has to hold, all of them.
        rate: bounds each principal; on a public route each client address.
        public: answers without a principal. Routes are closed unless they say so (G1).
        by: the kinds of credentials that it takes: "key", "token", "certificate", or that of an
            authenticator of your own; any where there are none.
        deadline: bounds the answer, retries too.
        fallback: what a query answers where the service fails; never where it says no. The answer
            says so in `Synchromesh-Fallback`, with its age (F1).
        priority: "interactive" where a person waits, "batch" where nobody does: shed first where a
            service has more to do than it can (exports, imports, scheduled requests).
        cors: which pages of other origins may use it; None for what the gateway says of all.
        host: the host that a request has to ask, such as "shop.example.com", or "*.example.com" for
            all below it; "" for any. Routes of a closer host go first, whatever their paths. It is
            no guard: a client may ask any host.
        strict: refuses a body that has a field which its type does not name, at any depth, or one
            that stands twice in an object. Else unknown fields are ignored, unless their type says
            `forbid_unknown_fields`, and of two the last one counts. Unknown arguments are refused
            either way.
        cache: how long the answers of a query by GET may be kept, here and by clients; None says
            `no-store`.

    Example:
        >>> from typing import Protocol
        >>> from synchromesh.calls import Contract, query
        >>> class Inventory(Contract, Protocol, service="inventory", version="1.0"):
        ...     @query("GET /stock/{sku}")
        ...     async def stock(self, sku: str) -> int: ...
        >>> Route("GET /stock/{sku}", Inventory.stock, public=True).deadline
        '5s'
    """

    route: str
    operation: Operation[..., Any]
    _: KW_ONLY
    scopes: AbstractSet[str] = frozenset()
    rate: Rate | None = None
    public: bool = False
    by: AbstractSet[str] = frozenset()
    deadline: str = "5s"
    fallback: Static | Stale | None = None
    priority: str = "interactive"
    cors: Cors | None = None
    host: str = ""
    cache: Cache | None = None
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Forward:
    """Proxies a request to an upstream as it is; both bodies are streamed.

    A request's body is read ahead before the upstream is asked, all of it or 64 KiB.

    It is for what is no call of a contract: uploads, long reports, services in other languages,
    whole applications. A GET answers HEAD too. The query passes, and so do the headers of content,
    conditions and negotiation; whoever asks is told to the upstream by the gateway alone (G2).

    Attributes:
        route: method and path, such as "PUT /firmware/{name}" or "ANY /app/{path...}", which is
            every method but CONNECT and TRACE, and all paths that begin with "/app/".
        to: the upstream: a service of the system, or an external one of `synchromesh.toml`.
        path: where the upstream has it, with the same places, such as "/images/{name}", or
            "/{path...}" to strip a prefix; "" where it is the same path.
        headers: what else passes, such as {"x-checksum"} or {"cookie"}; on a public route
            "authorization", too.
        forwarded: whether the upstream is told whom the request comes from, by `X-Forwarded-For`,
            `-Proto`, `-Host` and `Forwarded`; None for a service of the system, and not for an
            external one.
        encoded_slashes: whether a place and the rest may hold `%2F`, `%5C` and `\\`, which are 400
            otherwise: most upstreams decode them to steps of a path that no route has looked at.
        principal: whether the upstream is told who asks, and with which scopes, by a signed token
            in `Synchromesh-Principal`: a JWT of HS256 under a key of this upstream alone.
        body_max: how long a request's body may be; an answer's may have any length.
        websocket: whether a client may have a WebSocket to the upstream, where that takes it.
        quiet: how long nothing may move in one, either way.
        split: gives a share of the requests to another upstream.
        mirror: sends copies of requests to another upstream, and compares the answers.
        scopes, rate, public, by, priority, cors, host: as for a `Route`.
        deadline: when the answer has to begin. Where a body is sent that is counted from its end.

    Example:
        >>> Forward("PUT /firmware/{name}", to="firmware_store", body_max="64MiB").path
        ''
        >>> Forward("ANY /app/{path...}", to="legacy", path="/{path...}").to
        'legacy'
    """

    route: str
    _: KW_ONLY
    to: str
    path: str = ""
    headers: AbstractSet[str] = frozenset()
    forwarded: bool | None = None
    encoded_slashes: bool = False
    principal: bool = False
    body_max: str = "1MiB"
    websocket: bool = False
    quiet: str = "5m"
    split: Split | None = None
    mirror: Mirror | None = None
    scopes: AbstractSet[str] = frozenset()
    rate: Rate | None = None
    public: bool = False
    by: AbstractSet[str] = frozenset()
    deadline: str = "5s"
    priority: str = "interactive"
    cors: Cors | None = None
    host: str = ""


@dataclass(frozen=True, slots=True)
class Static:
    """Falls back to a fixed value where a branch or a route failed; marked "static".

    Attributes:
        value: plain data or a value of the operation's result type.

    Example:
        >>> Static([]).value
        []
    """

    value: object


@dataclass(frozen=True, slots=True)
class Stale:
    """Falls back to the last good answer where a branch or a route failed; marked "stale".

    It is the last answer to the same arguments for the same principal, in this process, and is
    told with its age. On a public route the principal is nobody, so that all share one.

    Attributes:
        at_most: how old it may be.

    Example:
        >>> Stale("10m")
        Stale(at_most='10m')
    """

    at_most: str


@dataclass(frozen=True, slots=True)
class Each:
    """Says which array a branch is asked for, element by element.

    Attributes:
        of: the array: another branch's answer, such as "machines", or a field of it, such as
            "order.lines".
        at_most: how many elements are asked for, 1 to 1000.
        at_once: how many of them at a time.
        beyond: what becomes of a longer array: "fail" asks nothing, and the branch has failed;
            "cut" asks for the first `at_most`, and the branch is partial.

    Example:
        >>> Each("order.lines", at_most=20, beyond="cut").at_once
        8
    """

    of: str
    _: KW_ONLY
    at_most: int = 100
    at_once: int = 8
    beyond: str = "fail"


@dataclass(frozen=True, slots=True)
class Branch:
    """Fetches one part of an aggregate by one query, or by one for each element of an array.

    Attributes:
        operation: a query, of a service or of an external one; no fallback can make a failed write
            look done (F2).
        args: each parameter's source: "path.id" is a place of the aggregate's path,
            "machine.order_id" a field of another branch's answer, "machine" the whole of it,
            "each.sku" a field of an element. What needs another branch starts after it.
        required: its failure is the failure of the aggregate; else it is marked and the rest is
            answered. With `each` that is the failure of any element.
        timeout: bounds this branch within the aggregate's deadline; None leaves it the whole.
        fallback: what is answered where the service fails; never where it says no.
        each: asks for each element of an array; the answer is an array in the same order, with null
            for an element without data.
        pick: which fields of the answer are shown: names, or by the shown name a field such as
            "site.city"; of an array those of each element. None shows all of it.
        empty: what an answer without content stands for (204, no body, null). Without it that is
            null, where the operation's result may be null, and else a failure.

    Example:
        >>> from typing import Protocol
        >>> from synchromesh.calls import Contract, query
        >>> class Fleet(Contract, Protocol, service="fleet", version="1.0"):
        ...     @query("GET /machines/{id}")
        ...     async def machine(self, id: str) -> str: ...
        >>> Branch(Fleet.machine, args={"id": "path.id"}, required=True).timeout is None
        True
    """

    operation: Operation[..., Any]
    _: KW_ONLY
    args: Mapping[str, str] = field(default_factory=dict)
    required: bool = False
    timeout: str | None = None
    fallback: Static | Stale | None = None
    each: Each | None = None
    pick: Collection[str] | Mapping[str, str] | None = None
    empty: Static | None = None


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Composes one response from several queries, which run concurrently where they can.

    The answer is `{"data": {branch: answer or null}, "branches": {branch: {"status": ...}}}`. An
    aggregate that is not whole says so in `Synchromesh-Partial` and at each branch (G4).

    Attributes:
        route: GET and a path, such as "GET /machines/{id}".
        branches: by name; at least one has `required=True`, where `all_or_nothing` is not set.
        all_or_nothing: the failure of any branch is the failure of the whole, which is never
            partial; a branch has no fallback then.
        scopes, rate, public, by, deadline, priority, cors, host, cache: as for a `Route`.

    Example:
        >>> from typing import Protocol
        >>> from synchromesh.calls import Contract, query
        >>> class Orders(Contract, Protocol, service="orders", version="1.0"):
        ...     @query("GET /orders/{id}")
        ...     async def one(self, id: str) -> dict[str, str]: ...
        ...     @query("GET /customers/{id}")
        ...     async def customer(self, id: str) -> str: ...
        >>> page = Aggregate(
        ...     "GET /pages/{id}",
        ...     branches={
        ...         "order": Branch(Orders.one, args={"id": "path.id"}, required=True),
        ...         "customer": Branch(Orders.customer, args={"id": "path.id"}, timeout="300ms"),
        ...     },
        ... )
        >>> sorted(page.branches)
        ['customer', 'order']
    """

    route: str
    _: KW_ONLY
    branches: Mapping[str, Branch]
    all_or_nothing: bool = False
    scopes: AbstractSet[str] = frozenset()
    rate: Rate | None = None
    public: bool = False
    by: AbstractSet[str] = frozenset()
    deadline: str = "5s"
    priority: str = "interactive"
    cors: Cors | None = None
    host: str = ""
    cache: Cache | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenApi:
    """Describes a gateway to its clients: by OpenAPI 3.1, and on a page for people.

    Routes with a `host` are left out: a path of the document is the same on every host.

    Attributes:
        title, version, description: of the API; the version is that of what is described, and
            yours to count.
        path: where the document is served, such as "/openapi.json"; "" serves none.
        reference: where the page is served, such as "/reference"; "" serves none.
        public: both are answered without a principal.

    Example:
        >>> OpenApi(title="servo-works", reference="/reference").path
        '/openapi.json'
    """

    title: str = "API"
    version: str = "1.0"
    description: str = ""
    path: str = "/openapi.json"
    reference: str = ""
    public: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """Defines the API gateway of a system: its routes, authentication and limits.

    Attributes:
        routes: what it answers; anything else is 404, or 405 on another method's path.
        auth: tells who asks, asked in order; the first that knows the credential of a request
            decides. `Certificates` look at its connection: where that has one, both have to name
            the same principal.
        in_flight_max: requests that are worked on at once, each until its answer begins; one more
            is answered 503.
        tunnels_max: WebSockets that are open at once; one client has a quarter of them at most.
        buckets_max: token buckets that each rate keeps; beyond, newcomers share one.
        stale_max: answers that are kept for `Stale`, all together.
        stale_bytes_max: how much they may take, in bytes of JSON.
        cache_max: answers that are kept for routes with a `Cache`, all together.
        cache_bytes_max: how much they may take, in bytes of JSON.
        openapi: what describes it to clients; None serves nothing of that kind.
        cors: which pages of other origins may use the routes that do not say so themselves; None
            for none.

    Example:
        >>> Gateway(routes=[]).in_flight_max
        1024
    """

    routes: Sequence[Route | Aggregate | Forward]
    auth: Sequence[Auth] = ()
    in_flight_max: int = 1024
    tunnels_max: int = 256
    buckets_max: int = 10_000
    stale_max: int = 1024
    stale_bytes_max: int = 16 * 1024 * 1024
    cache_max: int = 1024
    cache_bytes_max: int = 16 * 1024 * 1024
    openapi: OpenApi | None = None
    cors: Cors | None = None
