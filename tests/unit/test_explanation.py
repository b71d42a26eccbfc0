"""What is explained of a trace: each part of its time by a figure that is checked by hand."""

from __future__ import annotations

from synchromesh.telemetry.explanation import Explanation, explain
from traces import ORDER, PAGE, span


def parts(explained: Explanation) -> list[tuple[str, str, float]]:
    """Return the parts in milliseconds."""
    return [(part.why, part.where, part.took_us / 1000) for part in explained.parts]


def test_each_part_of_the_time_has_its_cause() -> None:
    """Own work, database, places on either side, pauses between attempts: they add up."""
    explained = explain(PAGE)
    # orders: 268 ms; of these 5 in its handler, which is below it, 40 and 30 as noted.
    assert parts(explained) == [
        ("on the way there and back", "gateway -> orders", 193.0),
        ("waiting for a place", "gateway -> orders", 40.0),
        ("waiting between attempts", "gateway -> orders", 30.0),
        ("own work", "fleet", 13.0),
        ("own work", "gateway", 8.0),
        ("its database", "fleet", 5.0),
        ("own work", "orders", 5.0),
        ("on the way there and back", "gateway -> fleet", 4.0),
        ("waiting for a place", "fleet", 2.0),
    ]
    assert sum(part.took_us for part in explained.parts) == explained.took_us == 300_000


def test_the_path_has_the_spans_that_took_the_time() -> None:
    """In the order in which they begin, each with its own time."""
    told = [(step.service, step.name, step.own_us / 1000) for step in explain(PAGE).path]
    assert told == [
        ("gateway", "GET /page", 8.0),
        ("gateway", "fleet.machine", 4.0),
        ("fleet", "fleet.machine", 15.0),
        ("fleet", "machine", 5.0),
        ("gateway", "orders.one", 263.0),
        ("orders", "orders.one", 5.0),
    ]


def test_what_failed_first_and_what_followed() -> None:
    """The callee's failure is the first, and the call that it was made for follows from it."""
    explained = explain(PAGE)
    first = explained.first_failure
    assert first is not None
    assert (first.service, first.status, first.after_us, first.why) == (
        "orders", "remote_failed", 80_000, "orders.one failed",
    )  # fmt: skip
    assert [(each.name, each.status) for each in explained.followed] == [
        ("orders.one", "timed_out")
    ]
    assert explained.also_failed == ()
    assert explained.stood_in == ("GET /page was answered in part, without a fresh order",)


def test_what_was_cut_is_told_with_its_limit() -> None:
    """By its key, or, where it was the time of who called, by whose that was."""
    key = 'policies."gateway:orders".timeout = 2s'
    spans = [
        span("g", "", "gateway gateway GET /page", 0, 5000),
        span("a", "g", "gateway call orders.one", 0, 2000, "timed_out", limit=key),
        span("b", "g", "gateway call fleet.all", 0, 5000, "timed_out", limit="of who calls"),
        span("c", "", "cron call fleet.all", 0, 5000, "timed_out", limit="of who calls"),
    ]
    alone = "gateway -> fleet: fleet.all, by the deadline of GET /page"
    assert explain([spans[0], spans[2]]).cut == (alone,)
    assert explain(spans).cut == (
        f"gateway -> orders: orders.one, by {key}",
        "gateway -> fleet: fleet.all, by the deadline of GET /page, or the timeout of its branch",
        "cron -> fleet: fleet.all, by of who calls",
    )


def test_a_saga_tells_what_was_undone() -> None:
    """Its own time counts where it is what is asked for; what it did after the answer as well."""
    explained = explain(ORDER, "s")
    assert explained.sagas == ("orders:A-1",)
    assert explained.undone == ("inventory.reserve#1 was undone",)
    assert parts(explained) == [
        ("the saga between its calls", "orders", 86.0),
        ("waiting between attempts", "orders", 50.0),
        ("waiting for an answer", "orders -> bank", 19.0),
    ]
    first = explained.first_failure
    assert first is not None
    assert (first.name, first.status) == ("bank.charge", "credit_declined")
    assert [each.name for each in explained.followed] == ["bank.charge#1"]
    assert (explain(ORDER).took_us, explain(ORDER).ended_us) == (100_000, 160_000)


def test_what_was_asked_again_and_what_answered_all_the_same() -> None:
    """A retry, a hedge, a route's fallback, and a handler that can do without its call."""
    explained = explain(
        [
            span("g", "", "gateway gateway GET /a", 0, 90, fallback="stale;age_s=2"),
            span("c", "g", "gateway call shop.a", 0, 80, attempts="2", failed="connect_failed",
                 hedge="shop#2"),
            span("h", "c", "shop handle shop.a", 10, 70),
            span("d", "h", "shop call bank.rate", 10, 60, "circuit_open", attempts="0"),
        ]
    )  # fmt: skip
    assert explained.stood_in == (
        "GET /a was answered by its fallback: stale;age_s=2",
        "gateway -> shop: shop.a was answered at attempt 2, after connect_failed",
        "gateway -> shop: shop.a was asked a second time, of shop#2",
        "shop.a answered although bank.rate failed: circuit_open",
    )


def test_what_notes_say_is_never_more_than_the_time_that_there_was() -> None:
    """A note that is no number, or too much, is not believed."""
    explained = explain(
        [
            span("a", "", "shop call bank.rate", 0, 10, held_ms="x", place_ms="1e400",
                 backoff_ms="-3"),
            span("b", "a", "bank handle bank.rate", 2, 4, place_ms="999"),
        ]
    )  # fmt: skip
    assert parts(explained) == [
        ("on the way there and back", "shop -> bank", 8.0),
        ("waiting for a place", "bank", 2.0),
    ]


def test_a_fault_on_purpose_is_told_from_the_callee_s_own_time() -> None:
    """Who has broken it himself need not look for the reason; what is passed on has no callee."""
    (part,) = explain([span("a", "", "shop call bank.rate", 0, 10, fault="stall")]).parts
    assert part.why == "a fault that was put in force on purpose"
    (part,) = explain([span("a", "", "gateway call GET /old.html", 0, 10)]).parts
    assert (part.why, part.where) == ("waiting for an answer", "GET /old.html")


def test_a_trace_that_took_no_time_has_no_parts() -> None:
    """Nothing is divided by nothing."""
    explained = explain([span("a", "", "shop handle a.b", 5, 5)])
    assert (explained.parts, explained.path, explained.took_us) == ((), (), 0)
