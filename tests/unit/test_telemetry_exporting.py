"""What is exported next: literal times, no loop."""

from __future__ import annotations

import random
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synchromesh.telemetry.exporting import (
    ExportOptions,
    ExportQueue,
    Outcome,
    Verdict,
    outcome_of,
)

RNG = random.Random(1)
ACCEPTED, FINAL = Outcome(Verdict.ACCEPTED), Outcome(Verdict.FINAL, "it answered 400")
AGAIN = Outcome(Verdict.TRY_AGAIN, "it answered 503")
SMALL = ExportOptions(items_max=10, batch_max=4, every_s=1.0, base_s=1.0, cap_s=8.0, attempts_max=5)


@pytest.mark.parametrize("status", range(100, 600))
def test_only_four_statuses_are_tried_again(status: int) -> None:
    """429, 502, 503 and 504; 2xx is success, and all else, redirects too, is final."""
    verdict = outcome_of(status, b"").verdict
    if status in (429, 502, 503, 504):
        assert verdict is Verdict.TRY_AGAIN
    else:
        assert verdict is (Verdict.ACCEPTED if 200 <= status < 300 else Verdict.FINAL)


@pytest.mark.parametrize(
    ("body", "rejected", "why"),
    [
        (b"", 0, ""),
        (b"{}", 0, ""),
        (b'{"partialSuccess":{}}', 0, ""),
        (b'{"partialSuccess":null}', 0, ""),
        (b'{"partialSuccess":{"rejectedSpans":"3","errorMessage":"too old"}}', 3, "too old"),
        (b'{"partialSuccess":{"rejectedLogRecords":2}}', 2, ""),
        (b'{"partialSuccess":{"rejectedDataPoints":"1","more":[]}}', 1, ""),
        (b'{"partialSuccess":{"rejectedSpans":-5}}', 0, ""),
        (b'{"partialSuccess":{"errorMessage":"mind\\n\\u001b the limit"}}', 0, "mind the limit"),
        (b'{"partialSuccess":[]}', 0, ""),
        (b"<html>", 0, ""),
        (b"\xff\xfe", 0, ""),
    ],
)
def test_a_partial_success_is_read(body: bytes, rejected: int, why: str) -> None:
    """It is a success all the same; what cannot be read says nothing."""
    assert outcome_of(200, body) == Outcome(Verdict.ACCEPTED, why, rejected)


def test_a_batch_waits_for_others_or_until_it_is_full() -> None:
    """The first item waits for `every_s`; four are a batch at once."""
    queue = ExportQueue[int](SMALL)
    assert (queue.wait_s(0.0), queue.next(0.0)) == (inf, [])
    queue.add([1], 10.0)
    queue.add([2], 10.75)
    assert (queue.wait_s(10.75), queue.next(10.75)) == (0.25, [])
    queue.add([3, 4, 5], 10.8)
    assert (queue.wait_s(10.8), queue.next(10.8)) == (0.0, [1, 2, 3, 4])
    assert queue.next(10.8) == [1, 2, 3, 4]  # until it is settled
    queue.settle(ACCEPTED, 10.9, RNG)
    assert (queue.next(10.9), queue.wait_s(11.05)) == ([], 0.75)
    assert queue.next(11.0, at_once=True) == [5]


def test_what_does_not_fit_is_dropped_and_counted() -> None:
    """The newest, what is under way included in the bound."""
    queue = ExportQueue[int](SMALL)
    queue.add(list(range(8)), 0.0)
    assert queue.next(0.0) == [0, 1, 2, 3]
    queue.add([8, 9, 10, 11], 0.0)
    assert (len(queue), queue.lost) == (10, {"queue_full": 2})
    queue.settle(ACCEPTED, 0.0, RNG)
    assert queue.next(0.0) == [4, 5, 6, 7]


def test_pauses_grow_by_chance_and_end() -> None:
    """From 0.5 to 1 of 1, 2, 4, 8 s; at the fifth attempt the batch is what is wrong."""
    queue = ExportQueue[int](SMALL)
    queue.add([1, 2, 3, 4, 5], 0.0)
    now = 0.0
    for longest_s in (1.0, 2.0, 4.0, 8.0):
        assert queue.next(now) == [1, 2, 3, 4]
        queue.settle(AGAIN, now, RNG)
        wait_s = queue.wait_s(now)
        assert longest_s / 2 <= wait_s <= longest_s
        assert (queue.next(now + wait_s - 0.01), queue.why) == ([], "it answered 503")
        now += wait_s
    assert queue.next(now) == [1, 2, 3, 4]
    queue.settle(AGAIN, now, RNG)
    assert (queue.lost, len(queue)) == ({"gave_up": 4}, 1)


def test_a_retry_after_is_honoured_and_drops_nothing() -> None:
    """However long it is, up to an hour."""
    queue = ExportQueue[int](SMALL)
    queue.add([1], 0.0)
    now = 1.0
    for after_s, waits_s in ((0.0, 0.0), (120.0, 120.0), (1e9, 3600.0)):
        assert queue.next(now) == [1]
        queue.settle(Outcome(Verdict.TRY_AGAIN, after_s=after_s), now, RNG)
        assert queue.wait_s(now) == waits_s
        now += waits_s
    assert not queue.lost


def test_what_is_refused_or_rejected_is_counted() -> None:
    """More than was sent is not believed."""
    queue = ExportQueue[int](SMALL)
    queue.add(list(range(9)), 0.0)
    for outcome in (FINAL, Outcome(Verdict.ACCEPTED, "", 3), Outcome(Verdict.ACCEPTED, "", 99)):
        assert queue.next(5.0, at_once=True)
        queue.settle(outcome, 5.0, RNG)
    assert (queue.sent, queue.lost, len(queue)) == (1, {"refused": 4, "rejected": 4}, 0)


def test_an_end_counts_what_is_left() -> None:
    """What was under way, too."""
    queue = ExportQueue[int](SMALL)
    queue.add(list(range(6)), 0.0)
    queue.next(0.0)
    queue.close()
    assert (len(queue), queue.lost, queue.next(9.0)) == (0, {"closed": 6}, [])


@given(
    acts=st.lists(
        st.one_of(
            st.integers(1, 7),
            st.sampled_from([ACCEPTED, FINAL, AGAIN, Outcome(Verdict.ACCEPTED, "", 1)]),
            st.floats(0.0, 20.0),
        ),
        max_size=60,
    )
)
def test_no_item_is_sent_twice_out_of_order_or_lost_without_count(
    acts: list[int | Outcome | float],
) -> None:
    """Whatever happens: added = sent + lost + waiting, and never more wait than may."""
    queue, now, added, last = ExportQueue[int](SMALL), 0.0, 0, -1
    for act in acts:
        if isinstance(act, int):
            queue.add(list(range(added, added + act)), now)
            added += act
        elif isinstance(act, float):
            now += act
        elif batch := list(queue.next(now)):
            assert len(batch) <= 4
            assert batch == sorted(batch)
            assert batch[0] > last
            settled = queue.sent + queue.lost.total()
            queue.settle(act, now, RNG)
            if queue.sent + queue.lost.total() > settled:
                last = batch[-1]
        assert added == queue.sent + queue.lost.total() + len(queue)
        assert len(queue) <= 10
