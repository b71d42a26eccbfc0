"""The drill's own parts: what it reads, what it calls an answer, and the page that it writes."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path

import pytest

from synchromesh.drill.answers import Seen, ToldAnswer, usual_of, words_of
from synchromesh.drill.course import Column, DrillPace
from synchromesh.drill.live import LiveDrill
from synchromesh.drill.probes import Probe, Says, read_probes
from synchromesh.drill.table import differences, read_tables, write_page
from synchromesh.http import HttpRequest, HttpResponse, HttpServer
from synchromesh.testing import SimRuntime
from synchromesh.testing import run as simulated

GET, POST = "GET /stock/{sku}", "POST /orders"


# -- probes --------------------------------------------------------------------------------------


def probes_of(folder: Path, text: str) -> str:
    """Return what is said of a file of probes; "" where nothing is wrong with it."""
    (folder / "probes.toml").write_text(text)
    try:
        read_probes(folder)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "missing required field `probe`"),
        ("probe = []", "it has 0 probes; write 1 to 100"),
        ("[[probe]]\nroute = 'stock'", "a route is a method and a path"),
        ("[[probe]]\nroute = 'GET /stock/{sku}'", "its target '/stock/{sku}' is no example"),
        ("[[probe]]\nroute = 'GET /a'\n[[probe]]\nroute = 'GET /a'", "there are several"),
        ("[[probe]]\nroute = 'GET /a'\nevery = 0", "every and times are 1 or more"),
        ("[[probe]]\nroute = 'GET /a'\ntimeout = 3", "unknown field `timeout`"),
        (
            "[[probe]]\nroute = 'GET /a'\nfollow = { target = '/b', at = 'c', row = 'd' }",
            "follow is for what changes something",
        ),
        ("[[probe]\n", "probes.toml: "),
    ],
)
def test_a_mistake_in_the_probes_is_told_with_its_place(
    tmp_path: Path, text: str, told: str
) -> None:
    """One message names the file and what would be right; none is a traceback of another error."""
    said = probes_of(tmp_path, text)
    assert said.startswith("ConfigError: ")
    assert told in said


def test_each_request_has_a_number_of_its_own() -> None:
    """In its target and in the texts of its body, however deep they are."""
    probe = Probe(POST, target="/orders/{n}", body={"id": "P-{n}", "lines": [{"of": "{n}"}, 1]})
    assert probe.target_of(7) == "/orders/7"
    assert json.loads(probe.body_of(7)) == {"id": "P-7", "lines": [{"of": "7"}, 1]}
    assert Probe(GET).body_of(7) == b""


# -- words ---------------------------------------------------------------------------------------

SAYING = Probe(GET, word="kind", says=[Says("free.old", "as last told", True)])


@pytest.mark.parametrize(
    ("status", "headers", "body", "words"),
    [
        (200, {}, b'{"kind": "placed"}', "placed"),
        (200, {}, b'{"kind": "placed", "free": {"old": true}}', "as last told"),
        (503, {}, b'{"code": "circuit_open"}', "503 circuit_open"),
        (502, {}, b"<html>", "502"),
        (200, {"synchromesh-fallback": "stale;age_s=1.000;code=no_instance"}, b"5",
         "stale, no_instance"),
        (200, {"synchromesh-fallback": "static"}, b"5", "static"),
        (200, {"synchromesh-partial": "a, b"},
         b'{"branches": {"a": {"status": "stale", "code": "timed_out"}, "b": []}}',
         "a stale, timed_out; b partial"),
        (200, {}, b"\xff", "None"),
    ],
)  # fmt: skip
def test_an_answer_is_said_in_few_words(
    status: int, headers: dict[str, str], body: bytes, words: str
) -> None:
    """Errors by their code, stand-ins by their source and reason, the rest as the probe says."""
    assert words_of(SAYING, status, headers, body) == words
    assert words_of(Probe(GET), 200, {}, b"") == "fresh"


def test_the_usual_answer_is_the_most_frequent_one_in_its_usual_time() -> None:
    """A breaker lets one through now and then."""
    told = [
        ToldAnswer("refused", 0.0),
        ToldAnswer("late", 2.0),
        ToldAnswer("refused", 0.2),
        ToldAnswer("refused", 0.1),
    ]
    assert usual_of(told) == ToldAnswer("refused", 0.1)


# -- the page ------------------------------------------------------------------------------------


def column(way: str, first: ToldAnswer, then: ToldAnswer, whole_s: float = 0.5) -> Column:
    """Return what was seen of two routes, of which one is touched."""
    always = Seen("fresh", ToldAnswer("fresh", 0.01), ToldAnswer("fresh", 0.01), 0.02)
    return Column(
        "shop", way, {GET: Seen("fresh", first, then, 3.0), "GET /a": always},
        {"an order": "placed"}, ("gateway → shop",), whole_s,
    )  # fmt: skip


KILLED = column("killed", ToldAnswer("503 no_instance", 3.0), ToldAnswer("503 no_instance", 0.01))
STALLED = column(
    "stalled", ToldAnswer("stale, timed_out", 0.4), ToldAnswer("stale, circuit_open", 0.0), 3.0
)
PAGE = """
## `shop` is off

| what | killed | stalled |
|---|---|---|
| `GET /stock/{sku}` | 503 no_instance, ≤ 5 s → 503 no_instance | stale, timed_out, ≤ 0.5 s → stale, circuit_open |
| every other route | as always | as always |
| an order | placed | placed |
| breakers that open | gateway → shop | gateway → shop |
| whole again | ≤ 1 s | ≤ 5 s |
"""  # noqa: E501 - as it is written


def test_a_page_is_written_and_is_what_was_seen() -> None:
    """Golden: what is touched has a row of its own; read again it does not differ."""
    page = write_page("", [KILLED, STALLED])
    assert page.endswith(PAGE)
    assert differences(read_tables(page), [KILLED, STALLED]) == []
    assert write_page(page, [KILLED, STALLED]) == page


def test_what_was_not_tried_this_time_is_kept() -> None:
    """A drill of one way, or of the running system, leaves the other columns as they are."""
    page = write_page("", [KILLED, STALLED])
    assert write_page(page, [STALLED], is_all=False) == page
    assert "| what | stalled |" in write_page(page, [STALLED])
    failing = column("failing", ToldAnswer("stale, timed_out", 0.01), STALLED.seen[GET].then)
    page = write_page(page, [failing], is_all=False)
    assert "| what | killed | stalled | failing |" in page
    assert differences(read_tables(page), [KILLED, STALLED, failing]) == []


def test_what_is_never_whole_again_is_what_was_seen() -> None:
    """It is told where it is written, and no difference afterwards."""
    lost = column("killed", KILLED.seen[GET].first, KILLED.seen[GET].then, math.inf)
    page = write_page("", [lost])
    assert "| whole again | > 60 s |" in page
    assert differences(read_tables(page), [lost]) == []
    assert [each.row for each in differences(read_tables(PAGE), [lost], is_all=False)] == [
        "whole again"
    ]


def test_what_people_wrote_is_kept() -> None:
    """Their prose, their rows, and a cell that still holds as they have put it."""
    mine = "# Ours\n\n## `shop` is off\n\nIt is.\n" + PAGE.partition("is off\n")[2]
    mine = mine.replace("→ 503 no_instance", "→ 503 no_instance or 504 timed_out")
    mine = mine.replace("| an order |", "| the till | shut | shut |\n| an order |")
    page = write_page(mine + "\nThe end.\n", [KILLED, STALLED])
    assert "It is.\n" in page
    assert page.endswith("\nThe end.\n")
    assert "→ 503 no_instance or 504 timed_out" in page
    assert "| the till | shut | shut |" in page
    assert differences(read_tables(page), [KILLED, STALLED]) == []


@pytest.mark.parametrize(
    ("seen", "row"),
    [
        (column("killed", ToldAnswer("500 x", 3.0), ToldAnswer("503 no_instance", 0.01)), GET),
        (
            column(
                "killed", ToldAnswer("503 no_instance", 7.0), ToldAnswer("503 no_instance", 0.01)
            ),
            GET,
        ),
        (
            column(
                "killed", ToldAnswer("503 no_instance", 0.3), ToldAnswer("503 no_instance", 0.01)
            ),
            GET,
        ),
        (
            column(
                "killed", ToldAnswer("503 no_instance", 3.0), ToldAnswer("503 no_instance", 0.9)
            ),
            GET,
        ),
        (KILLED, ""),
    ],
)
def test_other_words_and_other_times_are_differences(seen: Column, row: str) -> None:
    """Another answer, a later one, a bound that says nothing, and one that is not at once."""
    found = differences(read_tables(PAGE), [seen, STALLED])
    assert [each.row for each in found] == ([row] if row else [])


def test_columns_and_rows_that_are_gone_or_new_are_differences() -> None:
    """A part that is no more, one that has no section, a route that no probe asks."""
    tables = read_tables(PAGE.replace("every other route", "`GET /gone`"))
    assert [each.row for each in differences(tables, [KILLED])] == [
        "GET /a", "GET /gone", "the column",
    ]  # fmt: skip
    bare = column("killed", ToldAnswer("fresh", 0.0), ToldAnswer("fresh", 0.0), math.inf)
    assert [str(each) for each in differences({}, [bare])] == [
        "shop killed, the column: is not there; seen: a part of this"
    ]
    assert [each.row for each in differences(read_tables(PAGE), [bare], is_all=False)] == [
        GET, "whole again",
    ]  # fmt: skip


# -- live ----------------------------------------------------------------------------------------


def test_a_live_drill_heals_what_it_breaks_whatever_happens() -> None:
    """Also where the control API fails in the midst; and the fault would end by itself."""
    asked: list[tuple[str, str, object]] = []

    async def main(runtime: SimRuntime) -> None:
        is_broken = False

        async def answer(request: HttpRequest) -> HttpResponse:
            return HttpResponse(503 if is_broken else 200, [], b'{"code": "circuit_open"}')

        server = HttpServer(answer, network=runtime.network)
        await server.start()

        async def ask(method: str, path: str, body: object) -> object:
            nonlocal is_broken
            if method == "POST":
                asked.append((method, path, body))
                is_broken = path == "/faults"
            elif is_broken and fails:
                raise ConnectionError("the control API is gone")
            return {"gateway": {"url": server.url}, "clients": {}, "services": {}}

        drill = LiveDrill(
            ask, runtime.network, [Probe("GET /a")], lambda _: "", first=1,
            pace=DrillPace(2.0, 1.0, 1.0, 0.0),
        )  # fmt: skip
        fails = False
        seen = await drill.run("shop", "failing")
        assert seen.seen["GET /a"].cell() == "503 circuit_open"
        assert seen.whole_s < 1.0
        fails = True
        with pytest.raises(ConnectionError):
            await drill.run("shop", "stalled")
        await server.close()

    simulated(main)
    assert asked == [
        ("POST", "/faults", {"target": "shop", "for": "12s", "errors": "100%"}),
        ("POST", "/faults/heal", {"target": "shop"}),
        ("POST", "/faults", {"target": "shop", "for": "12s", "stall": True}),
        ("POST", "/faults/heal", {"target": "shop"}),
    ]


@pytest.mark.parametrize("after_s", [2.5, 3.5, 4.5])
def test_a_live_drill_that_is_stopped_heals_after_it_has_broken(after_s: float) -> None:
    """Ctrl-C cancels it: also while the fault is on its way, which then is waited for."""
    done: list[str] = []

    async def main(runtime: SimRuntime) -> None:
        async def answer(_: HttpRequest) -> HttpResponse:
            return HttpResponse(200, [], b"{}")

        server = HttpServer(answer, network=runtime.network)
        await server.start()

        async def sent(path: str) -> None:
            await asyncio.sleep(1.0)
            done.append(path)

        async def ask(method: str, path: str, _: object) -> object:
            if method == "POST":
                # As in a thread: it goes on when nobody waits for it any more.
                await asyncio.shield(asyncio.ensure_future(sent(path)))
            return {"gateway": {"url": server.url}, "clients": {}, "services": {}}

        drill = LiveDrill(
            ask, runtime.network, [Probe("GET /a")], lambda _: "", first=1,
            pace=DrillPace(5.0, 1.0, 1.0, 0.0),
        )  # fmt: skip
        running = asyncio.ensure_future(drill.run("shop", "failing"))
        await asyncio.sleep(after_s)
        assert done == (["/faults"] if after_s > 3.2 else [])
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await server.close()

    simulated(main)
    assert done == ["/faults", "/faults/heal"]
