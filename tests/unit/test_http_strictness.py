"""Heads: one row for each that is refused, and for each that looks odd and is not."""

from __future__ import annotations

import pytest

from synchromesh.http.strictness import RULES, Head, origin_form, refusal_of

Pairs = list[tuple[str, str]]
HOST: Pairs = [("host", "x")]

ACCEPTED: list[tuple[str, str, str, Pairs]] = [
    ("GET", "/", "1.1", HOST),
    ("GET", "/", "1.0", []),
    ("GET", "/", "1.0", HOST),
    ("GET", "/a%20b?c=%zz", "1.1", HOST),
    ("GET", "http://x/a", "1.1", HOST),
    ("GET", "HTTPS://X", "1.1", HOST),
    ("GET", "http://x:8080?q", "1.1", [("host", "x:8080")]),
    ("GET", "/", "1.1", [("host", "[::1]:80")]),
    ("OPTIONS", "*", "1.1", HOST),
    ("POST", "/", "1.1", [*HOST, ("content-length", "10")]),
    ("POST", "/", "1.1", [*HOST, ("transfer-encoding", "Chunked")]),
    ("POST", "/", "1.1", [*HOST, ("expect", "100-Continue")]),
]

REFUSED: list[tuple[int, str, str, str, Pairs]] = [
    (505, "GET", "/", "2.0", HOST),
    (505, "GET", "/", "0.9", HOST),
    (400, "GET", "/", "1.1", []),
    (400, "GET", "/", "1.1", HOST * 2),
    (400, "GET", "/", "1.0", HOST * 2),
    (400, "GET", "/", "1.1", [("host", "")]),
    (400, "GET", "/", "1.1", [("host", "a b")]),
    (400, "GET", "/", "1.1", [("host", "a,b")]),
    (400, "GET", "/", "1.1", [("host", "a/b")]),
    (400, "GET", "/", "1.1", [("host", "x:")]),
    (400, "GET", "/", "1.1", [("host", "x:123456")]),
    (501, "CONNECT", "x:1", "1.1", HOST),
    (400, "POST", "/", "1.0", [*HOST, ("transfer-encoding", "chunked")]),
    (501, "POST", "/", "1.1", [*HOST, ("transfer-encoding", "gzip, chunked")]),
    (501, "POST", "/", "1.1", [*HOST, *[("transfer-encoding", "chunked")] * 2]),
    (501, "POST", "/", "1.1", [*HOST, ("transfer-encoding", "")]),
    (400, "POST", "/", "1.1", [*HOST, ("content-length", "1"), ("content-length", "1")]),
    (400, "POST", "/", "1.1", [*HOST, ("content-length", "1"), ("transfer-encoding", "chunked")]),
    (400, "POST", "/", "1.1", [*HOST, ("content-length", "+1")]),
    (400, "POST", "/", "1.1", [*HOST, ("content-length", "1,1")]),
    (400, "POST", "/", "1.1", [*HOST, ("content-length", "\u0661")]),
    (400, "GET", "a", "1.1", HOST),
    (400, "GET", "*", "1.1", HOST),
    (400, "GET", "/a#b", "1.1", HOST),
    (400, "GET", "/a%2", "1.1", HOST),
    (400, "GET", "/\xe4", "1.1", HOST),
    (400, "GET", "ftp://x/", "1.1", HOST),
    (400, "GET", "http://u@x/", "1.1", HOST),
    (400, "GET", "http://y/", "1.1", HOST),
    (400, "GET", "http://x:80/", "1.1", HOST),
    (417, "POST", "/", "1.1", [*HOST, ("expect", "a miracle")]),
    (413, "POST", "/", "1.1", [*HOST, ("content-length", "11")]),
    (413, "POST", "/", "1.1", [*HOST, ("content-length", "9" * 40)]),
]


@pytest.mark.parametrize(("method", "target", "version", "headers"), ACCEPTED)
def test_a_legal_head_is_accepted(method: str, target: str, version: str, headers: Pairs) -> None:
    """Strict is not narrow: what RFC 9112 allows and nobody can misread is served."""
    assert refusal_of(Head(method, target, version, headers), body_bytes_max=10) is None


@pytest.mark.parametrize(("status", "method", "target", "version", "headers"), REFUSED)
def test_an_odd_head_is_refused(
    status: int, method: str, target: str, version: str, headers: Pairs
) -> None:
    """Each row is a way to be read differently by two parties, or to ask for what is not there."""
    refusal = refusal_of(Head(method, target, version, headers), body_bytes_max=10)
    assert refusal is not None
    assert refusal.status == status


def test_every_rule_decides_some_row() -> None:
    """No rule is dead: each is the first that matches for one of the rows."""
    heads = [Head(*row[1:]) for row in REFUSED]
    first = {next((i for i, rule in enumerate(RULES) if rule[0](head)), None) for head in heads}
    assert first - {None} == set(range(len(RULES)))


def test_no_sentence_repeats_what_the_client_sent() -> None:
    """A refusal is the same for every client; nothing can be reflected."""
    for row in REFUSED:
        refusal = refusal_of(Head(*row[1:]), body_bytes_max=10)
        assert refusal is not None
        assert refusal.detail in {rule[2] for rule in RULES} | {"the body is longer than 10 bytes"}


def test_only_a_client_of_http_1_1_waits_for_100_continue() -> None:
    """An expectation of HTTP/1.0 is ignored (RFC 9110, section 10.1.1)."""
    expecting = [*HOST, ("expect", "100-continue")]
    assert Head("POST", "/", "1.1", expecting).is_continue_expected
    assert not Head("POST", "/", "1.0", expecting).is_continue_expected
    assert not Head("POST", "/", "1.1", HOST).is_continue_expected


def test_the_asterisk_stays_as_it_is() -> None:
    """`*` is no path and is not made one."""
    assert origin_form("*") == "*"
