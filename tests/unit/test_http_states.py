"""The states of a server connection, and two ways to judge a head that have to agree."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_fakes import Connection
from synchromesh.http import HttpRequest, Limits
from synchromesh.http.reading import RequestReader
from synchromesh.http.states import (
    READING,
    READS,
    REPLIES,
    REPLYING,
    WAITED,
    ReadingEvent,
    ReadingState,
    Replying,
    ReplyingEvent,
    wait_of,
)


def test_reading_ends_deaf_and_deaf_for_ever() -> None:
    """Nothing is parsed after the last request, whatever happens."""
    assert {after for before, _, after in READING if before is ReadingState.CLOSED} == {
        ReadingState.CLOSED
    }
    assert all(READS[before][ReadingEvent.CLOSED] is ReadingState.CLOSED for before in ReadingState)
    with pytest.raises(KeyError):
        READS[ReadingState.CLOSED][ReadingEvent.BEGAN]


def test_a_request_is_read_in_one_order() -> None:
    """Its head is judged before a body is taken, and nothing is skipped."""
    order = [ReadingEvent.BEGAN, ReadingEvent.JUDGED, ReadingEvent.COMPLETE]
    for start in (ReadingState.FRESH, ReadingState.IDLE):
        state = start
        for event in order:
            assert set(READS[state]) == {event, ReadingEvent.CLOSED}
            state = READS[state][event]
        assert state is ReadingState.IDLE


def test_one_request_is_answered_at_a_time() -> None:
    """A second one is taken only once the first was answered, and nothing is answered twice."""
    for state in (Replying.BEGUN, Replying.BUSY):
        assert ReplyingEvent.TAKEN not in REPLIES[state]
        assert REPLIES[state][ReplyingEvent.ANSWERED] is Replying.FREE
    assert ReplyingEvent.ANSWERED not in REPLIES[Replying.FREE]
    assert set(REPLIES[Replying.LOST]) == {ReplyingEvent.LOST}


def test_every_state_is_reached() -> None:
    """No state is there for nothing."""
    assert {after for _, _, after in READING} | {ReadingState.FRESH} == set(ReadingState)
    assert {after for _, _, after in REPLYING} | {Replying.FREE} == set(Replying)


def test_a_client_is_timed_only_for_what_it_owes() -> None:
    """While it is answered it owes nothing but what it has begun; who has gone owes nothing."""
    for reading, answering in itertools.product(ReadingState, Replying):
        wait = wait_of(reading, answering)
        assert wait is WAITED[answering][reading]
        if answering in (Replying.BEGUN, Replying.BUSY):
            begun = reading in (ReadingState.HEAD, ReadingState.BODY)
            assert (wait is not None) == begun
            assert wait is None or wait.status == 408
        if answering is Replying.LOST or (reading, answering) == (
            ReadingState.CLOSED,
            Replying.FREE,
        ):
            assert wait is None
    for wait in filter(
        None, (wait_of(*pair) for pair in itertools.product(ReadingState, Replying))
    ):
        assert getattr(Limits(), wait.limit) > 0


# -- two ways ----------------------------------------------------------------------------------


class Nobody:
    """Takes requests, and does nothing with them."""

    peer = "10.0.0.1:1"
    transport = Connection()

    def answered(self, head: bytes, body: bytes) -> None: ...
    def begun(self, head: bytes, data: bytes) -> None: ...
    def part(self, data: bytes) -> bool:
        return True

    def ended(self, *, is_whole: bool) -> None: ...
    def answered_by(self, request: HttpRequest, answering: object) -> None: ...
    def on_room(self) -> None: ...


def read(raw: bytes, *, is_fast: bool) -> object:
    """Return what a reader makes of raw bytes: its requests, its refusal, and how it is left."""
    reader = RequestReader(
        Limits(body_bytes_max=20, headers_max=8, head_bytes_max=300),
        None,
        Nobody(),
        is_fast=is_fast,
    )
    refusal = reader.feed(raw)
    requests = [
        (each.method, each.target, each.pairs, each.body, each.request()) for each in reader.ready
    ]
    return requests, refusal, reader.state, reader.owes_continue


FIELDS = st.sampled_from([
    b"Host: x", b"HOST: x:80", b"host:", b"host: a b", b"host: [::1]:1", b"Host: x  ", b"host: x\t",
    b"Content-Length: 3", b"content-length: +3", b"content-length: 21", b"content-length: 3 ",
    b"Content-Length: 0", b"content-length: " + b"9" * 30, b"content-length: ",
    b"Transfer-Encoding: chunked", b"transfer-encoding: gzip", b"Upgrade: h2c",
    b"Expect: 100-continue", b"expect: more", b"Connection: close", b"connection: keep-alive",
    b"X-A: \xe4", b"x-a: b", b"x-long: " + b"b" * 200, b"Cookie: a=b; c=d",
])  # fmt: skip
TARGETS = st.sampled_from([
    b"/", b"/a?b=c", b"/a%20b", b"/a%2", b"/a?b=%zz", b"/a#b", b"*", b"http://x/a", b"http://y/",
    b"/\xff", b"/{a}", b"x:1", b"/" + b"a" * 400,
])  # fmt: skip


@given(
    method=st.sampled_from([b"GET", b"POST", b"HEAD", b"OPTIONS", b"CONNECT", b"DELETE", b"FOO"]),
    target=TARGETS,
    version=st.sampled_from([b"1.1", b"1.1", b"1.1", b"1.0", b"2.0", b"0.9"]),
    fields=st.lists(FIELDS, max_size=10),
    body=st.sampled_from(
        [b"", b"abc", b"3\r\nabc\r\n0\r\n\r\n", b"3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n"]
    ),
)
def test_the_fast_way_judges_as_the_rules_do(
    method: bytes, target: bytes, version: bytes, fields: list[bytes], body: bytes
) -> None:
    """Whatever comes: the same requests, the same refusal, the same end."""
    top = b"\r\n".join([b"%b %b HTTP/%b" % (method, target, version), *fields, b"", b""])
    raw = top + body + b"GET /next HTTP/1.1\r\nhost: x\r\n\r\n"
    assert read(raw, is_fast=True) == read(raw, is_fast=False)


def test_the_fast_way_is_taken_at_all() -> None:
    """A usual request is plain by it, and by the rules alone it never is."""
    raw = b"POST /a?b HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nX-A: 1\r\n\r\nabc"
    for is_fast in (True, False):
        reader = RequestReader(Limits(), None, Nobody(), is_fast=is_fast)
        assert reader.feed(raw) is None
        assert [each.is_plain for each in reader.ready] == [is_fast]
