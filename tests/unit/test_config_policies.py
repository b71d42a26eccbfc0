"""Policies of `synchromesh.toml`: what contradicts what, and what all of it comes to."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any, Protocol

import pytest

import gateway_fakes
from cli_runs import Ran, Run, runner
from notes_app import Running, write_config
from servo_works_world import FOLDER
from synchromesh import (
    Aggregate,
    Branch,
    Contract,
    Forward,
    Gateway,
    Route,
    Service,
    Stale,
    Static,
    command,
    query,
)
from synchromesh.errors import ConfigError
from synchromesh.gateway import Cache, Each
from synchromesh.system.config.explaining import explain_branches

TOML = """[system]
name = "kiosk"
[services.kiosk]
app = "kiosk_app:kiosk"
[services.shelf]
app = "kiosk_app:shelf"
[external.mint]
url = "http://127.0.0.1:9"
[gateway]
app = "kiosk_app:gateway"
"""


class Kiosk(Contract, Protocol, service="kiosk", version="1.0"):
    @query("GET /window")
    async def window(self) -> int: ...
    @command("POST /orders")
    async def order(self, n: int) -> int: ...


class Shelf(Contract, Protocol, service="shelf", version="1.0"):
    @query("GET /left")
    async def left(self) -> int: ...


class Mint(Contract, Protocol, service="mint", version="1.0", external=True):
    @query("GET /rate")
    async def rate(self) -> int: ...
    @command("POST /coins")
    async def strike(self, n: int) -> int: ...


kiosk, shelf = Service("kiosk", implements=Kiosk), Service("shelf", implements=Shelf)


@kiosk.handles(Kiosk.window)
async def window(_: object) -> int:
    return 1


@kiosk.handles(Kiosk.order)
async def order(_: object, n: int) -> int:
    return n


@shelf.handles(Shelf.left)
async def left(_: object) -> int:
    return 1


gateway = Gateway(
    routes=[
        Route("GET /window", Kiosk.window, public=True, deadline="500ms", fallback=Stale("1h")),
        Route("POST /orders", Kiosk.order, public=True),
        Forward("GET /coin", to="mint", public=True, deadline="1s"),
        Aggregate(
            "GET /page",
            public=True,
            deadline="2s",
            branches={
                "window": Branch(Kiosk.window, required=True),
                "left": Branch(Shelf.left, timeout="300ms", fallback=Static(0)),
                "more": Branch(Shelf.left, fallback=Stale("5m")),
                "most": Branch(Shelf.left),
            },
        ),
    ]
)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line in a folder, in this process."""
    module = types.ModuleType("kiosk_app")
    vars(module).update(kiosk=kiosk, shelf=shelf, gateway=gateway)
    monkeypatch.setitem(sys.modules, "kiosk_app", module)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return runner(capsys)


def checked(run: Run, folder: Path, policies: str) -> Ran:
    return run(write_config(folder, TOML + policies), "config", "check")


@pytest.mark.parametrize(
    ("policies", "said"),
    [
        (
            (
                "[policies.'gateway:kiosk']\ntimeout = '300ms'\n"
                "[policies.'kiosk:mint']\ntimeout = '300ms'"
            ),
            (
                '[policies."gateway:kiosk"] timeout = "300ms" is no longer than that of '
                '[policies."kiosk:mint"], "300ms": kiosk is given up before it can say that mint '
                "did not answer; make the first one longer than 300ms, or the second one shorter"
            ),
        ),
        (
            (
                "[policies.'gateway:kiosk']\ntimeout = '300ms'\n"
                "[policies.'kiosk:mint'.operations.strike]\ntimeout = '400ms'"
            ),
            (
                '[policies."gateway:kiosk"] timeout = "300ms" is no longer than that of '
                '[policies."kiosk:mint".operations.strike], "400ms": kiosk is given up before'
            ),
        ),
        (
            (
                "[policies.'gateway:kiosk'.operations.order]\ntimeout = '3s'\n"
                "[policies.'kiosk:mint']\ntimeout = '3s'"
            ),
            (
                '[policies."gateway:kiosk".operations.order] timeout = "3s" is no longer than that '
                'of [policies."kiosk:mint"], "3s"'
            ),
        ),
        (
            (
                "[policies.'gateway:kiosk']\nlimit = { in_flight = 8 }\n"
                "[policies.'kiosk:mint']\ntimeout = '9s'"
            ),
            (
                '[policies."gateway:kiosk"] timeout = "2s" (the default) is no longer than that of '
                '[policies."kiosk:mint"], "9s"'
            ),
        ),
        (
            "[policies.'gateway:kiosk']\ntimeout = '600ms'",
            (
                '[policies."gateway:kiosk"]: an attempt of 600ms may take 600ms, and GET /window '
                'has 500ms for the whole call; make timeout "500ms" or less, or give the route '
                "more time"
            ),
        ),
        (
            "[policies.'gateway:kiosk']\ntimeout = '300ms'\nretry = { attempts = 2 }",
            (
                "2 attempts of 300ms may take 600ms without the waits between, and GET /window has "
                "500ms for the whole call; "
                'make timeout "250ms" or less, attempt less often, or give the route more time'
            ),
        ),
        (
            "[policies.'gateway:kiosk'.operations.order]\ntimeout = '3s'\nretry = { attempts = 2 }",
            "2 attempts of 3s may take 6s without the waits between, and POST /orders has 5s",
        ),
        (
            "[policies.'gateway:shelf']\ntimeout = '400ms'",
            "an attempt of 400ms may take 400ms, and branch left of GET /page has 300ms",
        ),
        (
            "[policies.'gateway:mint']\ntimeout = '1500ms'",
            "an attempt of 1500ms may take 1.5s, and GET /coin has 1s",
        ),
        (
            "[policies.'kiosk:shelf'.operations.left]\nhedge = { after = '2s' }",
            'has after = "2s", and an attempt ends after 2s: none is ever sent twice',
        ),
        (
            "[policies.'kiosk:mint'.operations.strike]\nhedge = {}",
            "mint.strike is a command, and its policy has hedge: only queries are sent twice",
        ),
        (
            "[policies.'kiosk:shelf'.operations.lft]\ntimeout = '1s'",
            "no contract of 'shelf' has an operation 'lft'; it has: left",
        ),
        (
            "[policies.'kiosk:mint'.operations.stroke]\ntimeout = '1s'",
            "no contract of 'mint' has an operation 'stroke'; it has: rate, strike",
        ),
        ("[policies.'kiosk:mint']\nlimit = { in_flight = 0 }", "which would send nothing"),
        ("[policies.'kiosk:mint']\nbalancer = 'best'", "make it 'peak_ewma' or 'round_robin'"),
    ],
)
def test_what_contradicts_itself_is_named(
    run: Run, tmp_path: Path, policies: str, said: str
) -> None:
    """`config check` exits 2, and says what would be right."""
    ran = checked(run, tmp_path, policies)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err


@pytest.mark.parametrize(
    "policies",
    [
        "",
        # What nobody wrote contradicts nothing: 3 attempts and 2 s are for whoever says nothing.
        "[policies.'gateway:kiosk']\ntimeout = '500ms'",
        "[policies.'gateway:kiosk']\nretry = { attempts = 5 }",
        "[policies.'kiosk:mint']\ntimeout = '9s'",
        # Nested, and just in time.
        (
            "[policies.'gateway:kiosk']\ntimeout = '250ms'\nretry = { attempts = 2 }\n"
            "[policies.'kiosk:mint']\ntimeout = '249ms'"
        ),
        "[policies.'kiosk:kiosk']\ntimeout = '1s'",
        # One operation has the time, and it may be the one that goes on.
        (
            "[policies.'gateway:kiosk']\ntimeout = '250ms'\n"
            "[policies.'gateway:kiosk'.operations.order]\ntimeout = '3s'\n"
            "[policies.'kiosk:mint'.operations.strike]\ntimeout = '2s'"
        ),
        # A default that is cut short is nobody's mistake.
        (
            "[policies.'gateway:kiosk']\ntimeout = '250ms'\n"
            "[policies.'kiosk:mint']\nlimit = { in_flight = 8 }"
        ),
        # An operation's own goes first; another one's says nothing here.
        (
            "[policies.'gateway:kiosk']\ntimeout = '2s'\n"
            "[policies.'gateway:kiosk'.operations.window]\ntimeout = '400ms'"
        ),
        "[policies.'kiosk:mint'.operations.rate]\nhedge = { after = '50ms' }",
        # Whether a forward is tried again is its method's to say.
        "[policies.'gateway:mint']\ntimeout = '1s'\nretry = { attempts = 3 }",
    ],
)
def test_what_fits_is_right(run: Run, tmp_path: Path, policies: str) -> None:
    """No word about defaults, nor about what is in time."""
    ran = checked(run, tmp_path, policies)
    assert (ran.code, ran.err) == (0, "")


@pytest.mark.parametrize(
    ("operation", "timeout", "attempts", "advised"),
    [("order", "1.67s", 3, "1.66s"), ("window", "200ms", 3, "166.66ms"), ("order", "2s", 5, "1s")],
)
def test_the_timeout_that_is_advised_fits(
    run: Run, tmp_path: Path, operation: str, timeout: str, attempts: int, advised: str
) -> None:
    """It is rounded down, and then nothing more is said."""
    section = (
        f"[policies.'gateway:kiosk'.operations.{operation}]\nretry = {{ attempts = {attempts} }}"
    )
    assert (
        f'make timeout "{advised}" or less'
        in checked(run, tmp_path, f"{section}\ntimeout = '{timeout}'").err
    )
    assert checked(run, tmp_path, f"{section}\ntimeout = '{advised}'").code == 0


def test_as_many_attempts_as_there_is_time_for_fit(run: Run, tmp_path: Path) -> None:
    """Three times 0.1 s are 0.3 s, though floats make a little more of it."""
    module = sys.modules["kiosk_app"]
    route = Route("GET /window", Kiosk.window, public=True, deadline="300ms")
    vars(module)["gateway"] = Gateway(routes=[route])
    policies = "[policies.'gateway:kiosk']\ntimeout = '100ms'\nretry = { attempts = 3 }"
    assert checked(run, tmp_path, policies).code == 0


def test_all_contradictions_are_named_at_once(run: Run, tmp_path: Path) -> None:
    """A line each, whatever layer a value came from."""
    folder = write_config(tmp_path, TOML + "[policies.'kiosk:mint']\ntimeout = '1s'\n")
    words = ("config", "check", "--set", "policies.gateway:kiosk.timeout=1s")
    told = run(folder, *words).err
    assert "policies contradict themselves, places: 2\n" in told
    assert len(told.strip().splitlines()) == 3


def test_a_start_refuses_what_is_wrong_in_itself(run: Run, tmp_path: Path) -> None:
    """A hedged command does not start; time-outs that do not nest do."""
    del run
    hedged = "[policies.'gateway:kiosk'.operations.order]\nhedge = {}\n"
    with (
        pytest.raises(ConfigError, match=r"kiosk\.order is a command"),
        Running(write_config(tmp_path / "a", TOML + hedged)),
    ):
        pass
    late = "[policies.'gateway:kiosk']\ntimeout = '9s'\n"
    with Running(write_config(tmp_path / "b", TOML + late)) as running:
        assert running.system.info.gateway


def test_a_start_warns_of_contradictions(run: Run, tmp_path: Path) -> None:
    """They are told before anything is started."""
    late = "[policies.'gateway:kiosk']\ntimeout = '9s'\n"
    ran = run(write_config(tmp_path, TOML + late), "dev", "--set", "system.key=file:gone")
    assert ran.code == 2
    *warnings, refusal = ran.err.strip().splitlines()
    told = 'synchromesh: warning: [policies."gateway:kiosk"]: an attempt of 9s may take 9s'
    assert [each[: len(told)] for each in warnings] == [told] * 3
    assert "gone cannot be read" in refusal


def test_a_service_has_the_places_that_it_is_given(run: Run, tmp_path: Path) -> None:
    """Without a word they are 1,000 each."""
    del run
    text = TOML.replace("[services.shelf]", "in_flight = 3\nwaiting = 2\n[services.shelf]")
    with Running(write_config(tmp_path, text)) as running:
        instances = running.system.instances
        places = {name: repr(each.dispatcher._limiter) for name, each in instances.items()}
    assert places == {
        "kiosk": "<Limiter service kiosk 0/3 in flight, 0/2 waiting>",
        "shelf": "<Limiter service shelf 0/1000 in flight, 0/1000 waiting>",
    }


def test_servo_works_has_none(run: Run) -> None:
    """The shipped system is right."""
    ran = run(FOLDER, "config", "check")
    assert (ran.code, ran.err) == (0, "")


# -- explain ---------------------------------------------------------------------------------------


def explained(run: Run, folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(run(folder, "config", "explain", "--json").out)
    return told


def test_each_edge_is_explained(run: Run, tmp_path: Path) -> None:
    """Those with a policy, those that routes use, and once what guards all others."""
    policies = (
        "[policies.'kiosk:mint']\ntimeout = '300ms'\nbalancer = 'round_robin'\n"
        "limit = { in_flight = 8, waiting = 2 }\n"
        "[policies.'kiosk:mint'.operations.rate]\ntimeout = '100ms'\nhedge = { after = '50ms' }\n"
    )
    edges = explained(run, write_config(tmp_path, TOML + policies))["edges"]
    names = ["kiosk:mint", "gateway:kiosk", "gateway:mint", "gateway:shelf", "every other edge"]
    assert [edge["edge"] for edge in edges] == names
    mint = edges[0]
    assert "limiter   8 at once, 2 waiting, the rest is shed" in mint["policy"]
    assert mint["policy"][-2:] == ["timeout   0.3 s an attempt", "balancer  round_robin"]
    assert mint["operations"] == {
        "rate": [
            "hedge     a query is sent a second time after 0.05 s, at most 5% of them",
            "timeout   0.1 s an attempt",
        ]
    }
    assert edges[-1]["policy"] == edges[1]["policy"][:-1]


def test_what_stands_in_is_explained(run: Run, tmp_path: Path) -> None:
    """For each route and branch, from a live answer down to the last that can be given."""
    branches = explained(run, write_config(tmp_path, TOML))["branches"]
    assert [(each["route"], each["branch"], each["asks"], each["ladder"]) for each in branches] == [
        ("GET /window", "", "kiosk.window", ["live", "stale, at most 1h", "refused"]),
        ("POST /orders", "", "kiosk.order", ["live", "refused"]),
        ("GET /coin", "", "mint", ["live", "refused"]),
        ("GET /page", "window", "kiosk.window", ["live", "refused"]),
        ("GET /page", "left", "shelf.left", ["live", "static"]),
        ("GET /page", "more", "shelf.left", ["live", "stale, at most 5m", "absent"]),
        ("GET /page", "most", "shelf.left", ["live", "absent"]),
    ]


def test_what_is_kept_and_what_is_asked_for_each_is_explained() -> None:
    """What is kept comes before anything is asked; all or nothing refuses the whole page."""
    page = Aggregate(
        "GET /page",
        branches={
            "names": Branch(gateway_fakes.Fleet.names),
            "all": Branch(gateway_fakes.Fleet.machine, args={"id": "each"}, each=Each("names")),
        },
        all_or_nothing=True,
        cache=Cache("1m"),
    )
    route = Route("GET /n", gateway_fakes.Fleet.names, cache=Cache())
    explained = explain_branches(Gateway(routes=[page, route]))
    assert [(each.asks, each.ladder) for each in explained] == [
        ("fleet.names", ["kept, at most 1m", "live", "refused"]),
        ("fleet.machine, for each of names", ["kept, at most 1m", "live", "refused"]),
        ("fleet.names", ["live", "refused"]),
    ]


def test_people_are_shown_the_same(run: Run, tmp_path: Path) -> None:
    """Settings, then edges, then the ladder of each branch."""
    hedged = "[policies.'kiosk:mint'.operations.rate]\nhedge = {}\n"
    ran = run(write_config(tmp_path, TOML + hedged), "config", "explain")
    assert (ran.code, ran.err) == (0, "")
    at = [
        ran.out.index(words)
        for words in (
            "policies.kiosk:mint.operations.rate.hedge.after",
            "\nkiosk:mint\n  deadline  the call's own",
            "\n  rate:\n    hedge     a query is sent a second time after p95, at most 5%",
            "\nevery other edge\n",
            "live → stale, at most 5m → absent",
        )
    ]
    assert at == sorted(at)
