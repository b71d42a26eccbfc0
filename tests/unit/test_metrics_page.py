"""What `GET /metrics` says: the names and texts, and the format that an Accept chooses."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from metrics_check import read
from synchromesh.errors import BadRequest
from synchromesh.http import Headers, HttpRequest
from synchromesh.runtime import RealRuntime
from synchromesh.system.control.catalogue import EVERY
from synchromesh.system.host.metrics_page import OPENMETRICS, TEXT, MetricsPage, choose
from synchromesh.telemetry.exposition import SERIES_EACH, exposed, label_name, prometheus_name
from synchromesh.telemetry.metrics import (
    COUNTER,
    GAUGE,
    HISTOGRAM,
    Family,
    Histogram,
    Metric,
    Sample,
)
from synchromesh.testing import SimRuntime, run

# As Prometheus 3 asks.
PROMETHEUS = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;"
    "q=0.7,application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;"
    "escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
HITS = Metric("shop.hits", COUNTER, "{hit}", "Hits.", ("shop.page",))
SIZE = Metric("shop.size", GAUGE, "By", 'Size, "in" bytes\\ and\nlines.')
TOOK = Metric("shop.took", HISTOGRAM, "s", "Took.", ("shop.page",), (0.1, 1.0))


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", TEXT),
        ("*/*", OPENMETRICS),
        (PROMETHEUS, OPENMETRICS),
        ("text/plain", TEXT),
        ("text/*", TEXT),
        ("TEXT/Plain; Version=0.0.4; Charset=UTF-8", TEXT),
        ("text/plain;version=0.0.4, application/openmetrics-text;q=0", TEXT),
        ("application/openmetrics-text;q=0.3, text/plain;q=0.4", TEXT),
        ("text/plain;q=0.4, application/openmetrics-text; version=1.0.0 ;q=0.5", OPENMETRICS),
        # The range that says most counts, whatever others say.
        ("*/*, application/openmetrics-text;q=0", TEXT),
        ("*/*;q=0, text/*;q=0.001", TEXT),
        ("text/plain;q=1, text/plain;version=0.0.4;q=0, application/*;q=0.1", OPENMETRICS),
        ("application/openmetrics-text;version=2.0.0", None),
        ("application/openmetrics-text;version=2.0.0, */*;q=0.1", OPENMETRICS),
        ("text/plain;version=1.0.0", None),
        ("text/plain;charset=latin-1", None),
        ("text/plain;flavour=vanilla", None),
        ("text/html, image/*", None),
        ("*/*;q=0", None),
        ('text/plain;version="0.0.4"', TEXT),
        ('text/html;title="a, b; text/plain", text/plain;q=0.1', TEXT),
        (" , text/plain , ", TEXT),
        ("text/plain;;version=0.0.4;", TEXT),
    ],
)
def test_accept_is_read_to_the_letter(accept: str, chosen: str | None) -> None:
    """By quality, then by what we prefer; a version that is not written is none of ours."""
    assert choose(accept) == chosen


@pytest.mark.parametrize(
    "accept",
    [
        "text",
        "text/",
        "*/plain",
        "text/plain;q=2",
        "text/plain;q=0.1234",
        "text/plain;q=-1",
        "text/plain;q=nan",
        "text/plain;version=1;version=2",
        "text/plain;version",
        'text/plain;version="0.0.4',
        "text/plain text/html",
        "text/plain;q=1 x",
        "text/plain, " * 500,
    ],
)
def test_an_accept_that_is_none_is_refused(accept: str) -> None:
    """It is named; nothing is guessed."""
    with pytest.raises(BadRequest, match="Accept"):
        choose(accept)


@given(st.text(max_size=200))
def test_any_text_is_a_choice_or_is_refused(accept: str) -> None:
    """Nothing else comes of it."""
    try:
        chosen = choose(accept)
    except BadRequest:
        return
    assert chosen in (TEXT, OPENMETRICS, None)


def test_the_page_answers_in_what_was_asked_for() -> None:
    """It says which; who takes neither is told what there is."""
    page = MetricsPage(_families, RealRuntime())

    async def ask(*accepts: str) -> tuple[int, str, bytes]:
        headers = Headers([("accept", each) for each in accepts])
        answer = await page.answer(HttpRequest("GET", "/metrics", "/metrics", "", headers, b""))
        return answer.status, answer.headers.get("content-type") or "", answer.body

    async def main() -> None:
        status, kind, body = await ask("text/html;q=0.9", "application/openmetrics-text")
        assert (status, kind) == (200, OPENMETRICS)
        assert body.endswith(b"# EOF\n")
        assert (await ask())[:2] == (200, TEXT)
        status, _, body = await ask("text/html")
        assert status == 406
        assert b"openmetrics-text" in body
        assert (await ask("nonsense"))[0] == 400

    asyncio.run(main())


def test_the_library_is_loaded_with_the_first_scrape() -> None:
    """A system that nobody scrapes has none of it."""
    program = (
        "import asyncio, sys, synchromesh.system, synchromesh.system.host.metrics_page as page; "
        "from synchromesh.runtime import RealRuntime; "
        "before = 'prometheus_client' in sys.modules; asyncio.run(page._loaded(RealRuntime())); "
        "print(before, 'prometheus_client' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.split() == [b"False", b"True"]


async def _families() -> list[Family]:
    return [Family(HITS, [Sample(("a",), 1.0)])]


@pytest.mark.parametrize("is_openmetrics", [True, False])
def test_whatever_a_label_says_comes_out_as_it_was(is_openmetrics: bool) -> None:
    """Quotes, line ends and backslashes are escaped; what no text can have is replaced."""
    values = ['a"b', "back\\slash", "line\nend", "\N{SNOWMAN}", "", "x" * 500]
    took = Histogram(TOOK.bounds)
    took.observe(0.1)
    took.observe(5.0)
    families = [
        Family(
            HITS, [Sample((value,), number) for number, value in enumerate([*values, "\ud800"])]
        ),
        Family(SIZE, [Sample((), 1.5e10)]),
        Family(TOOK, [took.sample(value) for value in values]),
    ]
    text = b"".join(exposed(families, is_openmetrics=is_openmetrics)).decode()
    strict = read(text, is_openmetrics=is_openmetrics)
    assert {name: shown.kind for name, shown in strict.items()} == {
        "shop_hits": "counter",
        "shop_size_bytes": "gauge",
        "shop_took_seconds": "histogram",
    }
    parse = openmetrics.text_string_to_metric_families if is_openmetrics else None
    parsed = {each.name: each for each in (parse or text_string_to_metric_families)(text)}
    told = [sample.labels["shop_page"] for sample in parsed["shop_hits"].samples]
    assert told == [*values, "?"]
    assert parsed["shop_size_bytes"].samples[0].value == 1.5e10
    counts = [s.value for s in parsed["shop_took_seconds"].samples if s.labels.get("le") == "+Inf"]
    assert counts == [2.0] * len(values)


@pytest.mark.parametrize("is_openmetrics", [True, False])
def test_many_series_are_written_in_parts(is_openmetrics: bool) -> None:
    """Each is quick to make, and together they are one family with one head."""
    samples = [Sample((f"/{number}",), number) for number in range(5 * SERIES_EACH + 1)]
    parts = list(exposed([Family(HITS, samples)], is_openmetrics=is_openmetrics))
    assert len(parts) == 6 + is_openmetrics
    strict = read(b"".join(parts).decode(), is_openmetrics=is_openmetrics)
    assert list(strict["shop_hits"].samples.values()) == [sample.value for sample in samples]


def test_names_follow_prometheus_rules() -> None:
    """Base units at their end, no unit that is only what is counted, no reserved ending."""
    names = {prometheus_name(metric): metric for metric in EVERY}
    assert len(names) == len(EVERY)
    for name, metric in names.items():
        assert name.islower()
        assert name.startswith(("synchromesh_", "http_server_", "messaging_client_")), name
        assert not name.endswith(("_total", "_count", "_sum", "_bucket", "_info", "_created"))
        assert name.endswith(("_seconds", "_bytes")) == (metric.unit in ("s", "By"))
        assert metric.unit in ("s", "By", "") or metric.unit[0] + metric.unit[-1] == "{}"
        assert metric.help.endswith("."), name
        assert bool(metric.bounds) == (metric.kind == HISTOGRAM)
        assert list(metric.bounds) == sorted(metric.bounds)
        labels = [label_name(label) for label in metric.labels]
        assert len(set(labels)) == len(labels)
        # Prometheus says these itself.
        assert not {"le", "job", "instance", "quantile"} & set(labels)


def test_it_is_loaded_in_simulation_too() -> None:
    """The thread comes from the runtime, so that a simulated system is scraped as any other."""

    async def main(runtime: SimRuntime) -> int:
        page, headers = MetricsPage(_families, runtime), Headers([])
        answers = [
            await page.answer(HttpRequest("GET", "/metrics", "/metrics", "", headers, b""))
            for _ in range(2)
        ]
        assert answers[0].body == answers[1].body
        return answers[0].status

    assert run(main) == 200
