"""Where Envoy answers otherwise than the gateway would: known, told, and held by the tests."""

from __future__ import annotations

from typing import Final

import msgspec


class EngineDifference(msgspec.Struct, frozen=True):
    """What differs for requests that Envoy answers itself; both sides in words."""

    what: str
    gateway: str
    envoy: str


DIFFERENCES: Final = (
    EngineDifference(
        "a rate",
        "one bucket for each client of a route; a wait of less than its time is told to the second",
        "the same in Envoy, and another at the gateway for the requests that go on to it: a client "
        "that mixes both has up to twice the rate. Retry-After is the time of one token, and "
        "RateLimit says when there is one more only where none is left",
    ),
    EngineDifference(
        "an instance that fails",
        "is ejected only while another one is well; the edge's breaker opens on the share of "
        "failures, and a ramp of probes closes it",
        "is ejected after as many failures in a row, or that share of them in a second; one that "
        "is alone after as many as its breaker asks for: 503 until its time is over",
    ),
    EngineDifference(
        "retries",
        "within the deadline and the budget, as long as there is time; of a `POST`, too, that was "
        "answered 503 with `Retry-After`",
        "as many as fit when each attempt takes its whole timeout; a `POST` only where nothing was "
        "sent",
    ),
    EngineDifference(
        "nobody is listed",
        "the request waits for an instance, within its time",
        "503 at once",
    ),
    EngineDifference(
        "a message that is malformed",
        "a problem, 400",
        "400 as well, with another text. But it reads lines that end in a line feed alone, unfolds "
        "fields that are folded, and drops a carriage return that stands alone; whatever it sends "
        "on is written anew",
    ),
    EngineDifference(
        "more connections than there may be",
        "an idle one of the client with most of them makes room, else 503; "
        "`connections_per_client` bounds each client",
        "the newest is closed; no client has a bound of its own",
    ),
    EngineDifference(
        "slow bodies",
        "less than 4096 bytes in `body` is 408",
        "a pause of `body` or `quiet`, whichever is longer, ends it; the pace has no bound",
    ),
    EngineDifference(
        "what services would be told of a token",
        "one whose scopes and `claims` are too long, or of another type, is 401",
        "is not looked at: external services are told nothing of it",
    ),
    EngineDifference(
        "a token's iat",
        "one that lies ahead by more than the leeway is 401",
        "is not looked at",
    ),
    EngineDifference(
        "spans, counts and logs",
        "each request is a span, counts, and is a line of the access log where that is on",
        "none of ours; Synchromesh-Trace and traceparent go on all the same",
    ),
    EngineDifference(
        "X-Forwarded-Host of a trusted proxy",
        "the name beside the client's address counts",
        "is passed on as it came",
    ),
)
