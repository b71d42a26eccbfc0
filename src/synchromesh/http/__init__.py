"""HTTP/1.1 on the wire: a strict server that drains, a connection pool, an ASGI adapter."""

from synchromesh.http.asgi import AsgiApp, AsgiHandler, Lifespan, Message, Receive, Scope, Send
from synchromesh.http.body import Body
from synchromesh.http.client import ClientExchange, ExchangeState
from synchromesh.http.exchange import FastHandler, HttpExchange
from synchromesh.http.limits import Limits, PoolLimits
from synchromesh.http.message import (
    Headers,
    HttpRequest,
    HttpResponse,
    RawPair,
    error_response,
    problem_response,
    ready_answer,
    request_head,
    status_line,
)
from synchromesh.http.plain import KeptFields
from synchromesh.http.pool import HttpPool
from synchromesh.http.reading import Streaming
from synchromesh.http.server import HttpServer
from synchromesh.http.serving import Handler
from synchromesh.http.switching import ASKED_BY, asks_to_switch
from synchromesh.http.tunnel import Switching, asked_to_switch

__all__ = [
    "ASKED_BY",
    "AsgiApp",
    "AsgiHandler",
    "Body",
    "ClientExchange",
    "ExchangeState",
    "FastHandler",
    "Handler",
    "Headers",
    "HttpExchange",
    "HttpPool",
    "HttpRequest",
    "HttpResponse",
    "HttpServer",
    "KeptFields",
    "Lifespan",
    "Limits",
    "Message",
    "PoolLimits",
    "RawPair",
    "Receive",
    "Scope",
    "Send",
    "Streaming",
    "Switching",
    "asked_to_switch",
    "asks_to_switch",
    "error_response",
    "problem_response",
    "ready_answer",
    "request_head",
    "status_line",
]
