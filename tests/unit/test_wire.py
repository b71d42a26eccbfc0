"""What passes between caller and callee: replies without a transport."""

from __future__ import annotations

import pytest

from calls_fakes import Bank, NeverHeardOf, OutOfStock, Shop
from synchromesh.calls import Reply
from synchromesh.calls.http_client import Place
from synchromesh.errors import (
    BadRequest,
    CircuitOpen,
    RateLimited,
    Rejection,
    RemoteFailed,
    Shed,
    SynchromeshError,
)


class Sold(Rejection, code="sold", status=409):
    """Tells that it is sold."""


class Full(Rejection, code="shed", status=409):
    """Tells a business no whose code is that of an error."""


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (409, b'{"code":"out_of_stock"}', OutOfStock),
        (409, b'{"code":"never_heard_of"}', BadRequest),
        (409, b'{"code":"shed"}', Full),
        (503, b'{"code":"circuit_open"}', CircuitOpen),
        (503, b'{"code":"bad_request","detail":"too many connections"}', RemoteFailed),
        (429, b'{"code":"bad_request"}', RateLimited),
        (413, b'{"code":"bad_request"}', BadRequest),
        (405, b'{"code":"unknown_operation"}', BadRequest),
        (500, b'{"code":"shed"}', RemoteFailed),
        (409, b'{"code":["out_of_stock"]}', BadRequest),
        (500, b"[" * 5_000, RemoteFailed),
        (500, b"null", RemoteFailed),
    ],
)
def test_a_code_counts_only_under_its_own_status(
    status: int, body: bytes, expected: type[SynchromeshError]
) -> None:
    """Under another one it was a server or proxy on the way that spoke, not the operation."""
    raises = (OutOfStock, NeverHeardOf, Full) if expected is not BadRequest else (OutOfStock,)
    assert type(Reply(status, body).to_error(raises)) is expected


def test_a_status_of_two_rejections_is_neither() -> None:
    """A foreign service is understood by status only where that is unambiguous."""
    reply = Reply(409, b"no")
    assert type(reply.to_error((OutOfStock, Sold), is_external=True)) is BadRequest
    assert type(reply.to_error((OutOfStock,), is_external=True)) is OutOfStock
    assert type(reply.to_error((OutOfStock,))) is BadRequest


def test_a_reply_says_how_long_to_wait() -> None:
    """By the problem where that says so, else by what the transport was told."""
    own = Reply.of_error(Shed("full", retry_after_s=0.5), attempts_used=2)
    assert (own.status, own.attempts_used, own.retry_after_s) == (503, 2, 0.5)
    error = Reply(503, own.body, retry_after_s=9.0).to_error(())
    assert isinstance(error, Shed)
    assert error.retry_after_s == 0.5
    told = Reply(429, b"", retry_after_s=9.0).to_error(())
    assert isinstance(told, RateLimited)
    assert told.retry_after_s == 9.0


@pytest.mark.parametrize(
    ("status", "is_answer"), [(199, False), (200, True), (299, True), (300, False)]
)
def test_only_2xx_answers(status: int, is_answer: bool) -> None:
    """Anything else is a problem."""
    assert Reply(status, b"").is_answer is is_answer


def test_who_is_not_ours_is_told_what_is_read_and_by_whom() -> None:
    """Without these a server may answer by gzip or in XML, and some refuse who has no name."""
    place = Place("bank.example", 443, "", 443)
    assert place.line(Bank.charge, "/charges").split(b"\r\n")[1:] == [
        b"host: bank.example",
        b"accept: application/json, */*;q=0.1",
        b"accept-encoding: identity",
        b"user-agent: synchromesh",
        b"",
    ]
    ours = place.line(Shop.reserve, "/reservations")
    assert ours.split(b"\r\n")[1:] == [b"host: bank.example", b""]
